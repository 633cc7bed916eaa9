package load

import (
	"fmt"
	"testing"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// Not parallel: allocations are counted.
func TestOfTenThousandFunctionsThatRestNothingIsMeasured(t *testing.T) {
	tracker := NewTracker()
	for i := range 10_000 {
		tracker.Function(fmt.Sprint("f-", i))
	}
	var reports []*wire.LoadReport
	r := &Reporter{
		Tracker: tracker, Epoch: func() uint64 { return 1 }, Draining: func(string) []*wire.DrainReport { return nil },
		Publish: func(m *wire.LoadReport) error { reports = append(reports, m); return nil },
		sent:    map[string]*wire.FunctionLoad{}, ended: map[string]int64{}, again: map[string]int{},
	}
	r.full()
	called := tracker.Function("f-77")
	call, _ := called.Begin(&Replica{}, Sync)
	reports = nil
	if allocated := testing.AllocsPerRun(1, func() { r.changed(true) }); allocated > 50 {
		t.Errorf("a report of one function allocates %.0f times", allocated)
	}
	if len(reports) != 1 || len(reports[0].GetFunctions()) != 1 || reports[0].GetFunctions()[0].GetFunction() != "f-77" {
		t.Fatalf("reported: %v", reports)
	}
	call.End()
	for range 2 + repeats {
		r.changed(false)
	}
	reports = nil
	if allocated := testing.AllocsPerRun(3, func() { r.changed(false) }); allocated > 50 || len(reports) > 0 {
		t.Errorf("a second in which nothing changed: %.0f allocations, %v", allocated, reports)
	}
}
