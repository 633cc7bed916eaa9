//go:build bench

package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// tick of the kernel's clock that /proc counts in.
const tick = 10 * time.Millisecond

// processorTime these processes have used so far, those that are gone not counted.
func processorTime(pids []int) (used time.Duration) {
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
		for _, f := range fields[11:13] { // user, system
			ticks, err := strconv.ParseInt(string(f), 10, 64)
			if err == nil {
				used += time.Duration(ticks) * tick
			}
		}
	}
	return used
}

// weighed measures and adds what the processes that took the calls, and the generator with its client, used of the processors,
// per answered call. The warm-up's share is in it and counted in proportion.
func weighed(pids []int, part float64, measure func() sample) sample {
	own := []int{os.Getpid()}
	before, ownBefore := processorTime(pids), processorTime(own)
	s := measure()
	if s.calls > 0 {
		s.servers = time.Duration(float64(processorTime(pids)-before) * part / float64(s.calls))
		s.client = time.Duration(float64(processorTime(own)-ownBefore) * part / float64(s.calls))
	}
	return s
}

// share of the measured interval in the whole.
func share(warm, length time.Duration) float64 { return float64(length) / float64(warm+length) }
