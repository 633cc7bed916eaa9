package demand_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// TestAbsurdNumbersAreWork (S3): numbers on the bus have no sign and are no fractions, so the worst is one that is far too large. It is
// work, never none, and no time leaves the range of a clock.
func TestAbsurdNumbersAreWork(t *testing.T) {
	t.Parallel()
	loads := demand.NewLoads()
	const edges = 5
	for i := range edges {
		loads.Apply(start, &wire.LoadReport{Edge: fmt.Sprintf("edge-%d", i), Incarnation: "one", Sequence: math.MaxUint64, Full: true, Functions: []*wire.FunctionLoad{
			{Function: "f", InFlight: math.MaxUint32, Streams: math.MaxUint32, Parked: math.MaxUint32, Deliveries: math.MaxUint32},
			{Function: "old", ActiveBefore: true, AgeMs: math.MaxUint64},
		}})
	}
	all := loads.Functions()
	if got := all["f"]; !got.Open() || got.InFlight != edges*math.MaxUint32 || !got.Last.Equal(start) {
		t.Errorf("f: %+v", got)
	}
	if got := all["old"]; got.Open() || got.Last.After(start) || got.Last.Before(start.AddDate(-2, 0, 0)) {
		t.Errorf("old: %+v", got)
	}

	queue := demand.NewQueue()
	queue.Apply(start, &wire.DemandReport{Term: math.MaxUint64, Sequence: 1, Full: true, Functions: []*wire.FunctionDemand{
		{Function: "f", Queued: 1e18, Running: math.MaxUint64, Awaiting: math.MaxUint64, Waiting: math.MaxUint64, HasNextTry: true, NextTryInMs: math.MaxUint64},
	}})
	if got := queue.Functions()["f"]; got.Queued != 1e18 || got.NextTry.Before(start) || got.NextTry.After(start.AddDate(2, 0, 0)) {
		t.Errorf("f of the queue: %+v", got)
	}

	// Beside a bad report the good ones count: nothing goes to zero because one edge speaks of nothing.
	loads.Apply(start.Add(time.Second), &wire.LoadReport{Edge: "edge-0", Incarnation: "two", Sequence: 1, Full: true})
	if got := loads.Functions()["f"]; !got.Open() {
		t.Errorf("f: %+v", got)
	}
}
