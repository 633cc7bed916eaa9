package cluster

import (
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
)

var (
	rangeMu   sync.Mutex
	rangeNext = 20000 + os.Getpid()%40*250
)

// freeRange finds n consecutive ports nobody listens on, below the range the kernel hands out.
func freeRange(t testing.TB, n int) int {
	t.Helper()
	rangeMu.Lock()
	defer rangeMu.Unlock()
	lowest, above := 20000, 32000
	if n > (above-lowest)/2 {
		lowest = 11000 // there is always something in the middle
	}
search:
	for range 1000 {
		from := rangeNext
		if from < lowest || from+n > above {
			from = lowest
		}
		for p := from; p < from+n; p++ {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
			if err != nil {
				rangeNext = p + 1
				continue search
			}
			_ = l.Close()
		}
		rangeNext = from + n
		return from
	}
	t.Fatalf("no %d consecutive free ports", n)
	return 0
}
