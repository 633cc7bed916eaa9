package dispatch

import (
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func (w *world) later(s *session, r *run, status uint32, after time.Duration) {
	w.office.result(s, &wire.TryResult{
		Id: r.ID[:], Fence: r.Fence, Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, Status: status, RetryAfterMs: uint64(after.Milliseconds()),
	}, w.now)
	w.propose()
}

func (w *world) in(d time.Duration) int64 { return w.now.Add(d).UnixMilli() }

func TestADelayedCallIsGrantedWhenItIsDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 10, "f-0")
	e := w.edge("edge-0", 10)
	delayed := w.acceptWith("f", command.AcceptOptions{NotBeforeUnixMs: w.in(90 * time.Second)})
	now := w.accept("f")
	w.propose()
	if g := w.sent(e); len(g) != 1 || g[0].ID != now {
		t.Fatalf("granted at once: %d calls", len(g))
	}
	w.pass(89*time.Second, e)
	if g := w.sent(e); len(g) != 0 {
		t.Fatal("granted before its time")
	}
	if at := w.office.next(); at.After(w.now.Add(time.Second)) {
		t.Fatalf("the office sleeps for %v over it", at.Sub(w.now))
	}
	w.pass(time.Second, e)
	if g := w.sent(e); len(g) != 1 || g[0].ID != delayed {
		t.Fatal("not granted when due")
	}
}

func TestACallOverItsMaximumAgeDies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	e := w.edge("edge-0", 10)
	age := command.AcceptOptions{ExpireUnixMs: w.in(5 * time.Second)}
	running, queued := w.acceptWith("f", age), w.acceptWith("f", age)
	delayed := w.acceptWith("f", command.AcceptOptions{ExpireUnixMs: age.ExpireUnixMs, NotBeforeUnixMs: w.in(time.Minute)})
	w.propose()
	g := w.sent(e)
	w.pass(5*time.Second, e)
	if s := w.state(queued).State; s != fsm.Queued {
		t.Fatalf("at its last moment: %v", s)
	}
	if at := w.office.next(); at.After(w.now.Add(2 * time.Millisecond)) {
		t.Fatalf("the office sleeps for %v over it", at.Sub(w.now))
	}
	w.pass(time.Millisecond, e)
	for _, id := range []command.ID{queued, delayed} {
		if c := w.state(id); c.State != fsm.Dead || !strings.Contains(c.LastError, "expired") || c.Tries != 0 {
			t.Fatalf("over its age: %+v", c)
		}
	}
	// A try under way is let finish; only a further one would be too late.
	if c := w.state(running); c.State != fsm.Running {
		t.Fatalf("the running one: %+v", c)
	}
	w.answer(e, g[0], 500)
	w.propose()
	if c := w.state(running); c.State != fsm.Dead || !strings.Contains(c.LastError, "expired") || c.LastStatus != 500 {
		t.Fatalf("after its try: %+v", c)
	}
	if len(w.office.aging) != 0 {
		t.Fatal("dead calls still age")
	}
}

func TestACallGivenBackOverItsMaximumAgeDies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	e := w.edge("edge-0", 10)
	id := w.acceptWith("f", command.AcceptOptions{ExpireUnixMs: w.in(time.Second)})
	w.propose()
	g := w.sent(e)
	w.takeOffice() // the new leader finds it running
	w.office.attach(w.office.sessions[e.ID], &wire.Hello{
		Capacity: &wire.Capacity{MaxHeld: 1}, Held: []*wire.Held{{Id: id[:], Fence: g[0].Fence}},
	}, "queue-1", w.now)
	e = w.office.sessions[e.ID]
	w.pass(2*time.Second, e)
	w.office.result(e, &wire.TryResult{Id: id[:], Fence: g[0].Fence, Outcome: wire.TryOutcome_TRY_OUTCOME_RELEASED}, w.now)
	w.propose()
	if c := w.state(id); c.State != fsm.Dead || !strings.Contains(c.LastError, "expired") {
		t.Fatalf("%+v", c)
	}
}

func TestAgesOfEndedCallsTakeNoMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 5000 {
		w.commit(command.Cancel{ID: w.acceptWith("f", command.AcceptOptions{ExpireUnixMs: w.in(time.Hour)})})
	}
	if n := w.office.ages.Len(); n > 2048 {
		t.Fatalf("%d ages of calls that have ended", n)
	}
}

func TestAReplicaThatSaysLaterIsLeftAloneAndNoTryIsBurnt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 1, "f-0", "f-1")
	e := w.edge("edge-0", 10)
	first := w.accept("f")
	w.propose()
	g := w.sent(e)
	paused := g[0].Replica
	w.later(e, g[0], 429, 30*time.Second)
	if c := w.state(first); c.State != fsm.Waiting || c.Tries != 0 || c.LastStatus != 429 || c.NextTryUnixMs != w.in(30*time.Second) {
		t.Fatalf("the call: %+v", c)
	}
	// Others go to the other replica only, one at a time.
	w.accept("f")
	w.accept("f")
	w.propose()
	g = w.sent(e)
	if len(g) != 1 || g[0].Replica == paused {
		t.Fatalf("%d grants, the first for %s", len(g), g[0].Replica)
	}
	w.later(e, g[0], 503, 40*time.Second)
	w.pass(29*time.Second, e)
	if g := w.sent(e); len(g) != 0 {
		t.Fatal("granted while all replicas asked for a pause")
	}
	w.function("f", 10, 1, "f-0", "f-1") // the table says the same again: the pause stays
	w.propose()
	if at := w.office.next(); len(w.sent(e)) != 0 || at.After(w.now.Add(time.Second)) {
		t.Fatalf("next look in %v", at.Sub(w.now))
	}
	w.pass(time.Second, e)
	if g := w.sent(e); len(g) != 1 || g[0].ID != first || g[0].Replica != paused || g[0].Tries != 1 {
		t.Fatalf("after the pause: %+v", g)
	}
}

func TestAReplicaThatLeftIsNotPausedWhenItsNameComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 1, "f-0")
	e := w.edge("edge-0", 10)
	w.accept("f")
	w.propose()
	w.later(e, w.sent(e)[0], 503, 5*time.Minute)
	next := w.accept("f")
	w.function("f", 10, 1)
	w.function("f", 10, 1, "f-0")
	w.propose()
	if g := w.sent(e); len(g) != 1 || g[0].ID != next {
		t.Fatalf("%d grants", len(g))
	}
}

func TestARedrivenCallIsGrantedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	// It died while it waited for a time far away, so its old place is still there, marked.
	id := w.acceptWith("f", command.AcceptOptions{ExpireUnixMs: w.in(time.Second), NotBeforeUnixMs: w.in(time.Hour)})
	e := w.edge("edge-0", 10)
	w.pass(2*time.Second, e)
	if s := w.state(id).State; s != fsm.Dead {
		t.Fatalf("%v", s)
	}
	w.commit(command.Redrive{DeadCalls: command.DeadCalls{Function: "f", ID: id}})
	w.propose()
	g := w.sent(e)
	if len(g) != 1 || g[0].ID != id || g[0].Tries != 1 {
		t.Fatalf("%d grants", len(g))
	}
	w.answer(e, g[0], 200)
	w.pass(2*time.Hour, e)
	if n := w.machine.CountersOf("f"); n.Redriven != 1 || n.Succeeded != 1 || !n.Conserved() {
		t.Fatalf("%+v", n)
	}
}
