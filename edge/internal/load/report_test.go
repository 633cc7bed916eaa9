package load_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// bus collects what is published.
type bus struct {
	mu  sync.Mutex
	all []*wire.LoadReport
}

func (b *bus) publish(m *wire.LoadReport) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, m)
	return nil
}

// take returns and forgets the reports.
func (b *bus) take() []*wire.LoadReport {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.all
	b.all = nil
	return all
}

type state struct {
	tracker  *load.Tracker
	bus      *bus
	epoch    uint64
	draining map[string][]*wire.DrainReport
}

// run starts a reporter in the bubble and takes its first, full report.
func run(t *testing.T) *state {
	s := &state{tracker: load.NewTracker(), bus: &bus{}, epoch: 7, draining: map[string][]*wire.DrainReport{}}
	r := &load.Reporter{
		Tracker: s.tracker, Edge: "edge-0", Incarnation: "i", Epoch: func() uint64 { return s.epoch },
		Draining: func(f string) []*wire.DrainReport { return s.draining[f] }, Publish: s.bus.publish,
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	first := s.bus.take()
	if len(first) != 1 || !first[0].Full || first[0].Parts != 1 || first[0].Epoch != 7 || first[0].Sequence != 1 {
		t.Fatalf("first report %v", first)
	}
	return s
}

func TestReports(t *testing.T) {
	t.Parallel()
	t.Run("crossing zero is told at once, more calls are not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			f, r := s.tracker.Function("fib"), &load.Replica{}
			a, _ := f.Begin(r, load.Sync)
			got := s.bus.take()
			if len(got) != 1 || got[0].Full || got[0].Functions[0].InFlight != 1 || got[0].Functions[0].ActiveBefore {
				t.Fatalf("after the first call: %v", got)
			}
			time.Sleep(100 * time.Millisecond)
			b, open := f.Begin(r, load.Sync)
			if open != 2 {
				t.Errorf("open %d", open)
			}
			if got := s.bus.take(); len(got) != 0 {
				t.Fatalf("the second call is no crossing: %v", got)
			}
			b.Stream()
			a.End()
			a.End()
			time.Sleep(time.Second)
			got = s.bus.take()
			if len(got) != 1 || got[0].Functions[0].InFlight != 1 || got[0].Functions[0].Streams != 1 {
				t.Fatalf("the second's report: %v", got)
			}
			b.End()
			time.Sleep(20 * time.Millisecond)
			got = s.bus.take()
			if len(got) != 1 || got[0].Functions[0].InFlight != 0 || !got[0].Functions[0].ActiveBefore || got[0].Functions[0].AgeMs > 20 {
				t.Fatalf("after the last end: %v", got)
			}
			if s.tracker.Open() != 0 || r.Open() != 0 {
				t.Error("something is left open")
			}
		})
	})
	t.Run("an idle edge repeats everything every five seconds, with a growing age", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			s.tracker.Function("never")
			c, _ := s.tracker.Function("fib").Begin(&load.Replica{}, load.Delivery)
			c.End()
			time.Sleep(1500 * time.Millisecond)
			s.bus.take()
			time.Sleep(time.Second)
			if got := s.bus.take(); len(got) != 1 || got[0].Full || len(got[0].Functions) != 1 {
				t.Fatalf("the change is not repeated, should its report be lost: %v", got)
			}
			time.Sleep(2 * time.Second)
			if got := s.bus.take(); len(got) != 0 {
				t.Fatalf("nothing changed, yet: %v", got)
			}
			time.Sleep(time.Second)
			got := s.bus.take()
			if len(got) != 1 || !got[0].Full || len(got[0].Functions) != 1 || got[0].Functions[0].AgeMs < 4900 {
				t.Fatalf("the full report: %v", got)
			}
		})
	})
	t.Run("short calls between two reports are activity", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			f, r := s.tracker.Function("fib"), &load.Replica{}
			hold, _ := f.Begin(r, load.Sync)
			time.Sleep(1100 * time.Millisecond)
			s.bus.take()
			c, _ := f.Begin(r, load.Sync)
			c.End()
			time.Sleep(time.Second)
			if got := s.bus.take(); len(got) != 1 || !got[0].Functions[0].ActiveBefore {
				t.Fatalf("a call that came and went is not told: %v", got)
			}
			hold.End()
		})
	})
	t.Run("the last call of a draining replica is told at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			f, r, other := s.tracker.Function("fib"), &load.Replica{}, &load.Replica{}
			keep, _ := f.Begin(other, load.Sync)
			c, _ := f.Begin(r, load.Sync)
			time.Sleep(1100 * time.Millisecond)
			s.bus.take()
			r.SetDraining(true)
			s.draining["fib"] = []*wire.DrainReport{{Replica: "a", Version: &wire.Version{Epoch: 7, Seq: 9}, Open: 1}}
			f.Changed()
			if got := s.bus.take(); len(got) != 1 || got[0].Functions[0].Draining[0].Version.Seq != 9 {
				t.Fatalf("the drain is not acknowledged: %v", got)
			}
			time.Sleep(50 * time.Millisecond)
			s.draining["fib"] = []*wire.DrainReport{{Replica: "a", Version: &wire.Version{Epoch: 7, Seq: 9}}}
			c.End()
			if got := s.bus.take(); len(got) != 1 || got[0].Functions[0].Draining[0].Open != 0 || got[0].Functions[0].InFlight != 1 {
				t.Fatalf("zero is not told: %v", got)
			}
			for range 8 { // the scaler waits for it: every second, whatever the bus loses
				time.Sleep(time.Second)
				if got := s.bus.take(); len(got) == 0 || len(got[0].Functions) != 1 || len(got[0].Functions[0].Draining) != 1 {
					t.Fatalf("a second later the drain is not told again: %v", got)
				}
			}
			keep.End()
		})
	})
	t.Run("a new epoch gets everything at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			s.epoch = 8
			s.tracker.Now()
			if got := s.bus.take(); len(got) != 1 || !got[0].Full || got[0].Epoch != 8 {
				t.Fatalf("after the epoch changed: %v", got)
			}
		})
	})
	t.Run("parked requests count, and a wake is activity", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			f := s.tracker.Function("fib")
			end := f.Park()
			if got := s.bus.take(); len(got) != 1 || got[0].Functions[0].Parked != 1 || s.tracker.Open() != 1 {
				t.Fatalf("parked: %v", got)
			}
			end()
			s.tracker.Function("woken").Touch()
			time.Sleep(time.Second)
			got := s.bus.take()
			last := got[len(got)-1].Functions
			if last[len(last)-1].Function != "woken" || !last[len(last)-1].ActiveBefore {
				t.Fatalf("a wake is not told: %v", got)
			}
		})
	})
	t.Run("flapping is told at most every ten milliseconds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			f, r := s.tracker.Function("fib"), &load.Replica{}
			for range 1000 {
				c, _ := f.Begin(r, load.Sync)
				time.Sleep(100 * time.Microsecond)
				c.End()
			}
			if got := s.bus.take(); len(got) > 12 {
				t.Fatalf("%d reports in 100 ms", len(got))
			}
		})
	})
	t.Run("a full report is split below the bus limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := run(t)
			for i := range 2000 {
				s.tracker.Function(fmt.Sprint(strings.Repeat("f", 100), i)).Touch()
			}
			s.tracker.Now()
			got := s.bus.take()
			seen := 0
			for i, m := range got {
				if proto.Size(m) > wire.MaxBusMessage || int(m.Part) != i || int(m.Parts) != len(got) || m.Sequence != uint64(i+2) {
					t.Errorf("part %d of %d: %d bytes, sequence %d", m.Part, m.Parts, proto.Size(m), m.Sequence)
				}
				seen += len(m.Functions)
			}
			if seen != 2000 || len(got) < 4 {
				t.Errorf("%d functions in %d parts", seen, len(got))
			}
			s.tracker.Forget("x")
		})
	})
}
