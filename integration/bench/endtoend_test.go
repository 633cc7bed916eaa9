//go:build bench

package bench

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	// pacedConnections carry paced arrivals: more than are ever open at once on a queue that keeps up.
	pacedConnections = 512
	// saturation is how many callers find out what can be delivered.
	saturation = 64
	// burstCalls at burstCallers.
	burstCalls, burstCallers = 1000, 64
	// drainWithin bounds the wait for calls that were accepted.
	drainWithin = 60 * time.Second
)

// read is one request as the function read it.
type read struct{ AtNs, TookNs int64 }

// TestBenchQueueEndToEnd: from sending a request to the function reading it, at half of what can be delivered, against what an
// accept takes in the same interval; and a burst.
func TestBenchQueueEndToEnd(t *testing.T) {
	var fractions, ends, accepts, rates, silences, slowest, drains []float64
	for round := range *rounds {
		ok := t.Run(fmt.Sprintf("round-%d", round+1), func(t *testing.T) {
			o := startOurs(t)
			for _, name := range []string{"reads", "burst"} {
				o.wake(t, name)
			}
			rate := o.deliveryRate(t)
			accept, end := o.paced(t, rate/2)
			accepts, ends, rates = append(accepts, accept), append(ends, end), append(rates, rate)
			fractions = append(fractions, end/accept)
			silence, slow, drained := o.burst(t)
			silences, slowest, drains = append(silences, silence), append(slowest, slow), append(drains, drained)
			t.Logf("delivered %.0f/s at most; at half of it accept p50 %.2f ms, read by the function p50 %.2f ms; burst drained in %.0f ms, longest silence %.1f ms, slowest accept %.1f ms",
				rate, accept, end, drained, silence, slow)
		})
		if !ok {
			t.FailNow()
		}
	}
	fmt.Printf("\nEnd to end, %d rounds, medians; one edge, one replica, NumberParallelRequest 256\n", *rounds)
	table([][]string{
		{"delivered/s at most", "accept p50 ms at half", "read by the function p50 ms", "burst of 1,000 at 64 drained ms", "longest silence ms", "slowest accept ms"},
		{
			fmt.Sprintf("%.0f", median(rates)), fmt.Sprintf("%.2f", median(accepts)), fmt.Sprintf("%.2f", median(ends)),
			fmt.Sprintf("%.0f", median(drains)), fmt.Sprintf("%.1f", median(silences)), fmt.Sprintf("%.1f", median(slowest)),
		},
	})
	atMost("end_to_end_half_rate_ms", "accept-p50", median(ends), median(accepts), 3)
	// A call that waited for a poll (a second) would show as a silence; one that waited for the disk shows in the accepts too.
	atMost("burst_longest_silence_ms", "slowest-accept", median(silences), median(slowest), 3)
}

// wake a function and forget what it has read.
func (o *ours) wake(t *testing.T, name string) {
	t.Helper()
	o.Eventually(30*time.Second, name+" is awake", func() error {
		_, err := o.read(name)
		return err
	})
}

// read takes what a function has read since the last time.
func (o *ours) read(name string) ([]read, error) {
	status, body, err := o.Get(0, "/function/"+name+"/stats")
	if err != nil {
		return nil, err
	}
	var answer struct{ Reads []read }
	if status != 200 {
		return nil, fmt.Errorf("%s answered %d", name, status)
	}
	return answer.Reads, json.Unmarshal(body, &answer)
}

// drained waits until the function has read so many and gives them in the order they were read.
func (o *ours) drained(t *testing.T, name string, calls int) []read {
	t.Helper()
	var all []read
	o.Eventually(drainWithin, fmt.Sprintf("%s has read %d calls", name, calls), func() error {
		more, err := o.read(name)
		all = append(all, more...)
		if err == nil && len(all) < calls {
			err = fmt.Errorf("%d so far", len(all))
		}
		return err
	})
	slices.SortFunc(all, func(a, b read) int { return int(a.AtNs - b.AtNs) })
	return all
}

// stamped is a payload that begins with the time.
func stamped(n int) []byte {
	body := slices.Clone(payload(n))
	binary.BigEndian.PutUint64(body, uint64(time.Now().UnixNano()))
	return body
}

// deliveryRate is what the function reads per second while callers send as fast as they are answered and until all is drained.
func (o *ours) deliveryRate(t *testing.T) float64 {
	t.Helper()
	var mu sync.Mutex
	accepted := 0
	drive(t, saturation, 0, *length, func(int) (caller, func()) {
		c := dial(t, o.edge)
		return func(_ context.Context, n int) error {
			err := c.post("/async-function/reads/x", stamped(n))
			if err == nil {
				mu.Lock()
				accepted++
				mu.Unlock()
			}
			return err
		}, c.close
	})
	reads := o.drained(t, "reads", accepted)
	first, last := reads[0].AtNs, reads[len(reads)-1].AtNs
	return float64(len(reads)) / time.Duration(last-first).Seconds()
}

// paced sends at an even rate, whatever the answers do, and gives the medians of accept and of the function's reading, in ms.
func (o *ours) paced(t *testing.T, rate float64) (accept, end float64) {
	t.Helper()
	all := o.pace(t, "reads", rate, int(rate*length.Seconds()))
	ends := tooks(o.drained(t, "reads", len(all)))
	return median(all), median(ends)
}

// tooks is how long each call took from its sending to the function's reading it, in ms.
func tooks(reads []read) []float64 {
	ends := make([]float64, len(reads))
	for i, r := range reads {
		ends[i] = millis(time.Duration(r.TookNs))
	}
	return ends
}

// pace sends so many calls to a function at an even rate, whatever the answers do, and gives how long each accept took, in ms.
func (o *ours) pace(t *testing.T, function string, rate float64, total int) []float64 {
	t.Helper()
	turns := make(chan int, total)
	var senders sync.WaitGroup
	took := make([][]float64, min(pacedConnections, total))
	for i := range took {
		senders.Go(func() {
			var c *wire1
			defer func() {
				if c != nil {
					c.close()
				}
			}()
			for n := range turns {
				if c == nil { // not before: a connection without a request is closed after five seconds
					c = dial(t, o.edge)
				}
				began := time.Now()
				if err := c.post("/async-function/"+function+"/x", stamped(n)); err != nil {
					t.Errorf("paced call of %s: %v", function, err)
					return
				}
				took[i] = append(took[i], millis(time.Since(began)))
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for sent := 0; sent < total; {
		<-tick.C
		for due := min(total, int(time.Since(began).Seconds()*rate)); sent < due; sent++ {
			turns <- sent
		}
	}
	close(turns)
	senders.Wait()
	return slices.Concat(took...)
}

// burst sends many at once and gives the longest time in which the function read none of those that waited, the slowest accept,
// and how long all took, in ms.
func (o *ours) burst(t *testing.T) (silence, slow, drained float64) {
	t.Helper()
	turns := make(chan int, burstCalls)
	for n := range burstCalls {
		turns <- n
	}
	close(turns)
	var senders sync.WaitGroup
	worst := make([]float64, burstCallers)
	began := time.Now()
	for i := range burstCallers {
		senders.Go(func() {
			c := dial(t, o.edge)
			defer c.close()
			for n := range turns {
				sent := time.Now()
				if err := c.post("/async-function/burst/x", stamped(n)); err != nil {
					t.Errorf("call of the burst: %v", err)
					return
				}
				worst[i] = max(worst[i], millis(time.Since(sent)))
			}
		})
	}
	senders.Wait()
	reads := o.drained(t, "burst", burstCalls)
	last := began.UnixNano()
	for _, r := range reads {
		silence = max(silence, millis(time.Duration(r.AtNs-last)))
		last = r.AtNs
	}
	return silence, slices.Max(worst), millis(time.Duration(last - began.UnixNano()))
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
