package dispatch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func (w *world) limited(name string, all, perReplica int) {
	s := specification(nil)
	s.NumberParallelRequestSync, s.NumberParallelRequestPerPodSync = all, perReplica
	w.functions[name] = Function{Name: name, Spec: s}
	w.office.setFunction(w.functions[name], true, w.now)
}

// pool is one as an edge reports it; without a replica that of the function.
func pool(replica string, held, wanted uint32) *wire.Slots {
	p := &wire.Slots{Replica: replica, Held: held, Wanted: wanted}
	if replica != "" {
		p.Instance = "life"
	}
	return p
}

func report(applied uint64, function string, pools ...*wire.Slots) *wire.SlotReport {
	return &wire.SlotReport{Applied: applied, Functions: []*wire.FunctionSlots{{Function: function, Pools: pools}}}
}

// given takes the orders that go to the edge, and its last version.
func (w *world) given(s *session) (text string, version uint64) {
	out := s.link.out
	s.link.out = nil
	for _, x := range out {
		for _, share := range x.down.GetSlots().GetShares() {
			text += fmt.Sprintf("%s/%s:%d ", share.GetFunction(), share.GetReplica(), share.GetGiven())
		}
		version = max(version, x.down.GetSlots().GetVersion())
	}
	return text, version
}

func (w *world) wantGiven(s *session, want string) (version uint64) {
	w.t.Helper()
	got, version := w.given(s)
	if got != want {
		w.t.Fatalf("orders %q, want %q", got, want)
	}
	return version
}

func TestRunSlotsAreTheTablesLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 10)
	w.given(e)
	w.office.hear(e, &wire.DeliverUp{Up: &wire.DeliverUp_Slots{Slots: report(0, "f", pool("", 0, 9), pool("f-0", 0, 9))}}, w.now)
	w.wantGiven(e, "") // an edge knew first
	w.limited("f", 7, 0)
	w.wantGiven(e, "f/:7 ")
	w.limited("f", 0, 3)
	w.wantGiven(e, "f/f-0:3 ")
	delete(w.functions, "f")
	w.office.setFunction(Function{Name: "f"}, false, w.now)
	w.wantGiven(e, "")
}

func TestRunSlotsOfAnEdgeThatGoesAreOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.limited("f", 0, 4)
	a, b := w.edge("edge-0", 10), w.edge("edge-1", 10)
	w.office.hearSlots(a, report(0, "f", pool("f-0", 0, 4)), w.now)
	w.given(b)
	if got, _ := w.given(a); got != "f/f-0:4 " {
		t.Fatalf("the first edge was given %q", got)
	}
	w.office.hearSlots(b, report(0, "f", pool("f-0", 0, 4)), w.now)
	version := w.wantGiven(a, "f/f-0:2 ")
	w.wantGiven(b, "")
	w.office.hearSlots(a, report(version, "f", pool("f-0", 3, 3)), w.now) // one of four calls has ended
	w.wantGiven(b, "f/f-0:1 ")
	w.commit(command.EndSession{Session: a.ID})
	w.wantGiven(b, "f/f-0:4 ")
	version = w.office.slots.version
	w.office.hearSlots(b, report(version, "f"), w.now)
	if len(w.office.slots.functions) != 0 || w.office.slots.pools != 0 {
		t.Errorf("%d pools are kept of which nobody has anything", w.office.slots.pools)
	}
}

// A leader that has just come hears from every edge what it has before it gives anything, or sees its session end.
func TestANewLeaderGivesRunSlotsWhenItKnowsAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.limited("f", 0, 4)
	w.edge("edge-0", 10)
	w.edge("edge-1", 10)
	w.edge("edge-2", 10)
	w.takeOffice()
	ids := make([]uint64, 0, 3)
	for id := range w.office.sessions {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	a, b := w.office.sessions[ids[0]], w.office.sessions[ids[1]]
	w.office.attach(a, &wire.Hello{Slots: report(0, "f", pool("f-0", 0, 4))}, "queue-1", w.now)
	w.given(a)
	w.office.hearSlots(a, report(0, "f", pool("f-0", 0, 4)), w.now)
	w.wantGiven(a, "")
	w.office.attach(b, &wire.Hello{Slots: report(0, "f", pool("f-0", 3, 3))}, "queue-1", w.now)
	if got, _ := w.given(b); got != "" {
		t.Fatalf("while edge-2 has said nothing, edge-1 was given %q", got)
	}
	w.wantGiven(a, "")
	w.pass(wire.EdgeSessionTTL, a, b)
	w.wantGiven(a, "f/f-0:1 ")
}

func TestOneRunSlotGoesRound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.limited("f", 1, 0)
	a, b := w.edge("edge-0", 10), w.edge("edge-1", 10)
	for _, s := range []*session{a, b} {
		w.office.hearSlots(s, report(0, "f", pool("", 0, 1)), w.now)
	}
	first, version := w.given(a)
	has, waits := a, b
	if first == "" {
		first, version = w.given(b)
		has, waits = b, a
	} else {
		w.given(b)
	}
	if first != "f/:1 " {
		t.Fatalf("given %q", first)
	}
	w.office.hearSlots(has, report(version, "f", pool("", 1, 1)), w.now)
	asked := ""
	for range 4 {
		at := w.office.next()
		if at.Sub(w.now) > time.Second {
			t.Fatalf("the office sleeps for %v over it", at.Sub(w.now))
		}
		w.pass(at.Sub(w.now), a, b)
		if asked, version = w.given(has); asked != "" {
			break
		}
	}
	if asked != "f/:0 " {
		t.Fatalf("who has it was told %q", asked)
	}
	w.wantGiven(waits, "")
	w.office.hearSlots(has, report(version, "f", pool("", 0, 1)), w.now)
	w.wantGiven(waits, "f/:1 ")
}
