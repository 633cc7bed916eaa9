//go:build bench

package bench

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	// steadyRate of the function beside the flood, calls a second; steadyAlone is how long it is alone before, and again after.
	steadyRate, steadyAlone = 20, 30 * time.Second
	// floodCalls of a second each, ten at a time: nearly all of them are still there at the end.
	floodCalls = 100_000
)

// TestBenchFairness: one function is flooded at half of what can be accepted until 100,000 calls of a second wait; another is
// called 20 times a second all the while. What it notices is judged by the worst hundredth of its calls.
func TestBenchFairness(t *testing.T) {
	o := startOurs(t)
	for _, name := range []string{"reads", "slow"} {
		o.wake(t, name)
	}
	rate := o.http(t, saturation, warmUp, *length).rate
	steady := func(length time.Duration) (accept, end float64) {
		accepts := o.pace(t, "reads", steadyRate, int(steadyRate*length.Seconds()))
		ends := tooks(o.drained(t, "reads", len(accepts)))
		slices.Sort(accepts)
		slices.Sort(ends)
		return quantile(accepts, 0.99), quantile(ends, 0.99)
	}
	accept, end := steady(steadyAlone)
	t.Logf("alone: accept p99 %.2f ms, read by the function p99 %.2f ms", accept, end)

	began := time.Now()
	var flood sync.WaitGroup
	flood.Go(func() { o.pace(t, "slow", rate/2, floodCalls) })
	acceptFlood, endFlood := steady(time.Duration(floodCalls / (rate / 2) * float64(time.Second)))
	flood.Wait()
	t.Logf("beside a flood of %.0f/s (half of %.0f/s) for %.1f s: accept p99 %.2f ms, read p99 %.2f ms", rate/2, rate, time.Since(began).Seconds(), acceptFlood, endFlood)
	acceptBacklog, endBacklog := steady(steadyAlone)
	t.Logf("beside %d calls that wait: accept p99 %.2f ms, read p99 %.2f ms", floodCalls, acceptBacklog, endBacklog)

	fmt.Printf("\nFairness: %d/s beside %d calls of 1 s offered at %.0f/s; p99 in ms\n", steadyRate, floodCalls, rate/2)
	table([][]string{
		{"", "accept", "read by the function"},
		{"alone", fmt.Sprintf("%.2f", accept), fmt.Sprintf("%.2f", end)},
		{"while they come", fmt.Sprintf("%.2f", acceptFlood), fmt.Sprintf("%.2f", endFlood)},
		{"while they wait", fmt.Sprintf("%.2f", acceptBacklog), fmt.Sprintf("%.2f", endBacklog)},
	})
	for _, f := range []struct {
		name        string
		beside, own float64
	}{
		{"fairness_accept_p99_ms_flood", acceptFlood, accept},
		{"fairness_read_p99_ms_flood", endFlood, end},
		{"fairness_accept_p99_ms_backlog", acceptBacklog, accept},
		{"fairness_read_p99_ms_backlog", endBacklog, end},
	} {
		atMost(f.name, "alone", f.beside, f.own, max(2, (f.own+20)/f.own))
	}
}
