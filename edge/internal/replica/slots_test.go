package replica

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// limited is a set with one function of one replica, and how often it has something to say.
type limited struct {
	*testing.T
	*Set
	said atomic.Int32
	spec function.Specification
	seq  uint64
}

func newLimited(t *testing.T, all, perReplica int) *limited {
	l := &limited{T: t, Set: NewSet(load.NewTracker())}
	l.Said = func() { l.said.Add(1) }
	l.spec = function.Specification{NumberParallelRequestSync: all, NumberParallelRequestPerPodSync: perReplica}
	l.replica(wire.ReplicaState_REPLICA_STATE_READY)
	return l
}

func (l *limited) replica(state wire.ReplicaState) {
	l.seq++
	l.Apply(&wire.FunctionRecord{Name: "f", Version: &wire.Version{Epoch: 1, Seq: l.seq}, Replicas: []*wire.Replica{
		{Name: "f-0", Instance: "life", Host: "127.0.0.1", Ports: []uint32{80}, State: state},
	}}, &l.spec)
}

func (l *limited) function() *Function {
	f, _ := l.Get("f")
	return f
}

func (l *limited) obey(function, replica string, given uint32) {
	share := &wire.SlotShare{Function: function, Replica: replica, Given: given}
	if replica != "" {
		share.Instance = "life"
	}
	l.ObeySlots(&wire.SlotOrder{Version: 1, Shares: []*wire.SlotShare{share}})
}

// report is what is new, or all, as held/wanted of each pool.
func (l *limited) report(whole bool) string {
	var text []string
	for _, f := range l.SlotReport(whole) {
		text = append(text, f.GetFunction())
		for _, p := range f.GetPools() {
			text = append(text, fmt.Sprintf("%s=%d/%d", p.GetReplica(), p.GetHeld(), p.GetWanted()))
		}
	}
	return strings.Join(text, " ")
}

func (l *limited) wantReport(whole bool, want string) {
	l.Helper()
	if got := l.report(whole); got != want {
		l.Fatalf("report %q, want %q", got, want)
	}
}

func TestACallNeedsItsRunSlots(t *testing.T) {
	t.Parallel()
	l := newLimited(t, 3, 2)
	f := l.function()
	choose := func(want bool) *Lease {
		t.Helper()
		lease, ok := f.Choose(load.Sync, nil)
		if ok != want {
			t.Fatalf("a call may begin: %v, want %v", ok, want)
		}
		return lease
	}
	choose(false)
	park := f.Load().Park()
	f.Hungry()
	l.wantReport(false, "f =0/1 f-0=0/1")
	l.obey("f", "", 3)
	choose(false)
	l.obey("f", "f-0", 1)
	park()
	first := choose(true)
	choose(false)
	l.wantReport(false, "f =3/1 f-0=1/1")
	l.wantReport(false, "")
	l.wantReport(true, "f =3/1 f-0=1/1")
	if delivery, ok := f.Reserve("f-0", load.Delivery); !ok {
		t.Error("a delivery needs a run slot of sync calls")
	} else {
		delivery.End()
	}
	first.End()
	choose(true).End()

	spec := l.spec
	l.spec.NumberParallelRequestSync, l.spec.NumberParallelRequestPerPodSync = 0, 0
	l.replica(wire.ReplicaState_REPLICA_STATE_READY)
	for range 5 {
		choose(true)
	}
	l.wantReport(true, "f")
	l.wantReport(true, "")
	l.spec = spec
	l.replica(wire.ReplicaState_REPLICA_STATE_READY)
	choose(false) // what it had is given back
}

func TestARunSlotThatIsAskedBackIsGivenBackWhenItsCallIsOver(t *testing.T) {
	t.Parallel()
	l := newLimited(t, 0, 5)
	l.obey("f", "f-0", 2)
	lease, ok := l.function().Choose(load.Sync, nil)
	if !ok {
		t.Fatal("no slot")
	}
	l.wantReport(false, "f f-0=2/1")
	l.obey("f", "f-0", 0)
	l.wantReport(false, "f f-0=1/1")
	if _, ok := l.function().Choose(load.Sync, nil); ok {
		t.Fatal("another call began")
	}
	before := l.said.Load()
	lease.End()
	if l.said.Load() == before {
		t.Fatal("nothing is said")
	}
	l.wantReport(false, "f")
	lease.End() // once more: nothing happens
	l.wantReport(true, "")
}

func TestRunSlotsOfAReplicaOnItsWayOutGoBack(t *testing.T) {
	t.Parallel()
	l := newLimited(t, 0, 5)
	l.obey("f", "f-0", 4)
	lease, _ := l.function().Choose(load.Sync, nil)
	l.wantReport(false, "f f-0=4/1")
	l.replica(wire.ReplicaState_REPLICA_STATE_DRAINING)
	l.wantReport(false, "f f-0=1/1")
	lease.End()
	l.wantReport(false, "f")
}

func TestRunSlotsOfWhatIsNotHereGoBack(t *testing.T) {
	t.Parallel()
	l := newLimited(t, 0, 5)
	l.obey("f", "f-9", 4)
	l.obey("another", "", 4)
	l.wantReport(true, "")
	l.obey("f", "f-0", 4)
	l.wantReport(false, "f f-0=4/0")
	l.Apply(&wire.FunctionRecord{Name: "f", Version: &wire.Version{Epoch: 1, Seq: 99}, Deleted: true}, nil)
	l.wantReport(true, "f")
}

// What was read of a gauge after less was given stays true: no call begins beyond it.
func TestNoCallBeginsBeyondWhatIsHeld(t *testing.T) {
	t.Parallel()
	var g gauge
	var running, bound atomic.Int64
	g.given.Store(8)
	bound.Store(8)
	stop := make(chan struct{})
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if ok, _ := g.take(); ok {
					if now := running.Add(1); now > bound.Load() {
						t.Errorf("%d calls, %d are held", now, bound.Load())
					}
					running.Add(-1)
					g.free()
				}
			}
		})
	}
	for i := range 20_000 {
		next := int64(i*7%8 + 1)
		if next > g.given.Load() {
			bound.Store(next)
			g.given.Store(next)
		} else {
			g.given.Store(next)
			bound.Store(g.held())
		}
	}
	close(stop)
	calls.Wait()
	if g.used.Load() != 0 {
		t.Errorf("%d slots are in use at the end", g.used.Load())
	}
}
