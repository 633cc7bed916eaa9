package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestABacklogDoesNotStarveOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("busy", 100, 100, "busy-0")
	w.function("quiet", 100, 100, "quiet-0")
	for range 50 {
		w.accept("busy")
	}
	w.accept("quiet")
	w.accept("quiet")
	e := w.edge("edge-0", 1)
	var order []string
	for range 5 {
		w.propose()
		g := w.sent(e)
		if len(g) != 1 {
			t.Fatalf("%d grants for a capacity of one", len(g))
		}
		order = append(order, g[0].Function)
		w.answer(e, g[0], 200)
	}
	if got := strings.Join(order, " "); got != "busy quiet busy quiet busy" {
		t.Errorf("turns: %s", got)
	}
}

func TestCallsOfAFunctionGoInOrderOfAcceptance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	first, second, third := w.accept("f"), w.accept("f"), w.accept("f")
	e := w.edge("edge-0", 10)
	w.propose()
	g := w.sent(e)[0]
	w.office.finish(g, released("test"), w.now) // keeps its place
	w.propose()
	var order []command.ID
	for range 3 {
		g := w.sent(e)
		order = append(order, g[0].ID)
		w.answer(e, g[0], 200)
		w.propose()
	}
	if !slices.Equal(order, []command.ID{first, second, third}) {
		t.Errorf("order %v", order)
	}
}

func TestTheLeastLoadedReplicaAndEdgeAreChosen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 100, 3, "f-0", "f-1", "f-2")
	a, b, none := w.edge("edge-0", 100), w.edge("edge-1", 2), w.edge("edge-2", 0)
	for range 20 {
		w.accept("f")
	}
	w.propose()
	replicas := map[string]int{}
	for _, r := range w.office.runs {
		replicas[r.Replica]++
	}
	if replicas["f-0"] != 3 || replicas["f-1"] != 3 || replicas["f-2"] != 3 {
		t.Errorf("replicas %v", replicas)
	}
	if a.load != 7 || b.load != 2 || none.load != 0 {
		t.Errorf("edges hold %d, %d, %d", a.load, b.load, none.load)
	}
}

func TestOnlyReadyReplicasOfAConfirmedTableAreGranted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.office.synced = false
	w.function("f", 10, 10, "f-0")
	w.edge("edge-0", 10)
	w.accept("f")
	w.propose()
	if len(w.office.runs) != 0 {
		t.Fatal("granted without a table")
	}
	w.function("f", 10, 10)
	w.office.setSynced(w.now)
	w.propose()
	if len(w.office.runs) != 0 {
		t.Fatal("granted without a replica")
	}
	w.function("f", 10, 10, "f-0")
	w.propose()
	if len(w.office.runs) != 1 {
		t.Fatal("not granted")
	}
}

func TestAReplicaThatIsGoneBeforeSendingBurnsNoTry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	id := w.accept("f")
	e := w.edge("edge-0", 10)
	w.propose()
	w.function("f", 1, 1, "f-1")
	if g := w.sent(e); len(g) != 0 {
		t.Fatalf("sent %v", g)
	}
	w.propose()
	if g := w.sent(e); len(g) != 1 || g[0].Replica != "f-1" || w.state(id).Tries != 1 {
		t.Fatalf("sent %v", g)
	}
}

func TestAResultAndTheNextGrantShareAProposal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	e := w.edge("edge-0", 1)
	w.accept("f")
	w.accept("f")
	w.propose()
	w.answer(e, w.sent(e)[0], 200)
	b := w.office.batch(w.now)
	if len(b.finishes) != 1 || len(b.grants) != 1 {
		t.Fatalf("%d ends and %d grants", len(b.finishes), len(b.grants))
	}
	w.office.committed(b, w.commit(b.commands...), w.now)
	out := e.link.out
	if len(out) != 2 || out[0].down.GetResultAck().GetCode() != wire.Code_CODE_OK || out[1].grant == nil {
		t.Errorf("the edge is sent %v", out)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 10, "f-0")
	e := w.edge("edge-0", 10)
	silent, awaiting := w.accept("f"), w.accept("f")
	w.propose()
	g := w.sent(e)
	w.answer(e, g[1], 202)
	w.propose()
	if w.state(awaiting).State != fsm.Awaiting || e.held[awaiting] != nil || w.office.lanes["f"].slots != 2 {
		t.Fatalf("after the 202: %+v, %d slots", w.state(awaiting), w.office.lanes["f"].slots)
	}
	w.pass(29*time.Second, e)
	if w.state(silent).State != fsm.Running || w.state(awaiting).State != fsm.Awaiting {
		t.Fatal("ended early")
	}
	w.pass(2*time.Second, e)
	if c := w.state(awaiting); c.State != fsm.Waiting || c.LastError != "no callback in time" || c.Tries != 1 {
		t.Fatalf("awaiting: %+v", c)
	}
	if w.state(silent).State != fsm.Running {
		t.Fatal("the edge has not been given its margin")
	}
	w.pass(5*time.Second, e)
	if c := w.state(silent); c.State != fsm.Waiting || c.LastError != "no result within 30s" {
		t.Fatalf("silent: %+v", c)
	}
}

func TestANewLeaderRestartsEveryTimerInFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 10, "f-0")
	e := w.edge("edge-0", 10)
	id := w.accept("f")
	w.propose()
	w.answer(e, w.sent(e)[0], 202)
	w.propose()
	w.pass(3 * time.Second)
	w.takeOffice()
	w.pass(3 * time.Second)
	if w.office.sessions[e.ID] == nil {
		t.Fatal("a session ended before its time at this leader")
	}
	w.pass(2 * time.Second)
	if s, _ := w.machine.Session(e.ID); !s.Vanished {
		t.Fatal("a silent session lives on")
	}
	w.pass(24 * time.Second)
	if c := w.state(id); c.State != fsm.Awaiting {
		t.Fatalf("the callback's time was not restarted: %+v", c)
	}
	w.pass(2 * time.Second)
	if c := w.state(id); c.State != fsm.Waiting {
		t.Fatalf("call %+v", c)
	}
}

func TestALeaderFindsRunsOfSessionsThatAreGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 10, "f-0")
	e := w.edge("edge-0", 10)
	id := w.accept("f")
	w.propose()
	w.index++ // the old leader ended the session, and died before it ended the call
	w.machine.Apply(w.index, command.Batch{NowUnixMs: w.now.UnixMilli(), Commands: []command.Command{command.EndSession{Session: e.ID, Expired: true}}})
	w.takeOffice()
	w.propose()
	if c := w.state(id); c.State != fsm.Waiting || c.LastError != "edge lost" || c.Tries != 1 {
		t.Fatalf("call %+v", c)
	}
}

func TestAClockThatIsSetMovesSchedulesAndEndsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	e := w.edge("edge-0", 10)
	id := w.accept("f")
	w.propose()
	w.answer(e, w.sent(e)[0], 500)
	w.propose()
	if at := w.office.next(); at.After(w.now.Add(10 * time.Second)) {
		t.Fatalf("next look in %s", at.Sub(w.now))
	}
	w.office.recheck(w.now.Add(11 * time.Second)) // as after a jump: only the wall clock is ahead
	w.propose()
	if c := w.state(id); c.State != fsm.Running || c.Tries != 2 {
		t.Fatalf("call %+v", c)
	}
	if w.office.sessions[e.ID] == nil {
		t.Error("the session ended")
	}
}

func TestAFailedProposalLosesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 2, 2, "f-0")
	e := w.edge("edge-0", 10)
	a, b := w.accept("f"), w.accept("f")
	w.office.failed(w.office.batch(w.now)) // grants
	if l := w.office.lanes["f"]; l.slots != 0 || e.load != 0 || len(w.office.pending) != 0 {
		t.Fatalf("left behind: %d slots, load %d", l.slots, e.load)
	}
	w.propose()
	g := w.sent(e)
	if len(g) != 2 || g[0].ID != a {
		t.Fatalf("grants %v", g)
	}
	w.answer(e, g[0], 200)
	w.answer(e, g[1], 200)
	lost := w.office.batch(w.now)
	w.commit(lost.commands...) // committed after all, and the answer was lost
	w.office.failed(lost)
	w.propose()
	if w.state(a).State != fsm.Succeeded || w.state(b).State != fsm.Succeeded {
		t.Error("results are lost")
	}
	if l := w.office.lanes["f"]; l.slots != 0 || e.load != 0 || len(e.held) != 0 || e.hash != 0 {
		t.Errorf("left behind: %d slots, load %d", l.slots, e.load)
	}
}

func TestAResultFromTheFutureIsNotJudged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 10)
	var id command.ID
	if ahead := w.office.result(e, &wire.TryResult{Id: id[:], Fence: w.index + 1}, w.now); !ahead {
		t.Error("a node that is behind called a result stale")
	}
	if ahead := w.office.result(e, &wire.TryResult{Id: id[:], Fence: w.index}, w.now); ahead || len(e.link.out) != 2 {
		t.Errorf("an old result was not acknowledged: %v", e.link.out)
	}
}

func TestHashOfWhatIsHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 10, "f-0")
	e := w.edge("edge-0", 10)
	for range 3 {
		w.accept("f")
	}
	w.propose()
	g := w.sent(e)
	var hash uint64
	for _, r := range g {
		hash += heldHash(r.ID, r.Fence)
	}
	w.office.heartbeat(e, &wire.HeldHeartbeat{Count: 3, Hash: hash}, w.now)
	if len(e.link.out) != 0 {
		t.Errorf("equal, and yet %v", e.link.out)
	}
	w.office.heartbeat(e, &wire.HeldHeartbeat{Count: 3, Hash: hash + 1}, w.now)
	if len(e.link.out) != 1 || e.link.out[0].down.GetListHeld() == nil {
		t.Errorf("different, and %v", e.link.out)
	}
}

func TestAnUnlistedGrantIsReleasedOnTheSecondListOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 10, 10, "f-0")
	e := w.edge("edge-0", 10)
	id := w.accept("f")
	w.propose()
	empty := &wire.HeldHeartbeat{Listed: true}
	w.office.heartbeat(e, empty, w.now) // still in the queue of the stream: does not count
	w.office.heartbeat(e, empty, w.now)
	r := w.sent(e)[0]
	w.office.heartbeat(e, empty, w.now)
	w.office.heartbeat(e, &wire.HeldHeartbeat{Listed: true, Held: []*wire.Held{{Id: r.ID[:], Fence: r.Fence}}}, w.now)
	w.office.heartbeat(e, empty, w.now)
	if r.finish != nil {
		t.Fatal("released too early")
	}
	w.office.heartbeat(e, empty, w.now)
	w.propose()
	if c := w.state(id); c.State != fsm.Running || c.Fence == r.Fence || c.Tries != 1 {
		t.Fatalf("call %+v", c)
	}
}

func TestCallsOfAFunctionThatIsGoneWaitAndThenDie(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 10)
	old := w.accept("gone")
	w.pass(23*time.Hour, e)
	young := w.accept("gone")
	w.pass(2*time.Hour, e)
	bury := func() {
		w.t.Helper()
		ripe := map[command.ID]bool{}
		for _, p := range w.office.orphans(w.now) {
			c := w.state(p.id)
			if c.EnqueuedUnixMs <= w.now.Add(-24*time.Hour).UnixMilli() {
				ripe[p.id] = true
			}
		}
		w.office.bury(ripe, w.now)
		w.propose()
	}
	bury()
	if c := w.state(old); c.State != fsm.Dead || !strings.Contains(c.LastError, "not been in the table") {
		t.Fatalf("old: %+v", c)
	}
	if c := w.state(young); c.State != fsm.Queued {
		t.Fatalf("young: %+v", c)
	}
	w.function("gone", 1, 1, "gone-0")
	w.pass(25*time.Hour, e)
	bury()
	if c := w.state(young); c.State != fsm.Running {
		t.Fatalf("young: %+v", c)
	}
}

func TestDemandSpeaksOfWhatChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.office.demand(true, w.now)
	w.function("f", 1, 1, "f-0")
	w.accept("f")
	if !w.office.flipped {
		t.Error("0 → 1 is not announced")
	}
	d := w.office.demand(false, w.now)
	if len(d) != 1 || d[0].GetQueued() != 1 || d[0].GetHasNextTry() {
		t.Fatalf("demand %v", d)
	}
	w.accept("f")
	if w.office.flipped {
		t.Error("1 → 2 is announced at once")
	}
	e := w.edge("edge-0", 10)
	w.propose()
	w.answer(e, w.sent(e)[0], 500)
	w.propose()
	d = w.office.demand(false, w.now)
	if len(d) != 1 || d[0].GetWaiting() != 1 || d[0].GetRunning() != 1 || !d[0].GetHasNextTry() || d[0].GetNextTryInMs() != 10_000 {
		t.Fatalf("demand %v", d)
	}
	if d := w.office.demand(false, w.now); len(d) != 0 {
		t.Errorf("nothing changed: %v", d)
	}
	w.pass(11*time.Second, e)
	if d := w.office.demand(true, w.now); len(d) != 1 || d[0].GetNextTryInMs() != 0 || d[0].GetWaiting() != 1 {
		t.Errorf("due, without a slot: %v", d)
	}
}

func TestReportsFitOnTheBus(t *testing.T) {
	t.Parallel()
	var list []*wire.FunctionDemand
	for i := range 3000 {
		list = append(list, &wire.FunctionDemand{Function: fmt.Sprintf("%0253d", i), Queued: 1 << 60, Waiting: 1 << 60, HasNextTry: true, NextTryInMs: 1 << 40})
	}
	reports, n := parts(list, true), 0
	for i, r := range reports {
		r.Node, r.Term, r.Sequence = strings.Repeat("n", 253), 1<<60, 1<<60
		if size := proto.Size(r); size > wire.MaxBusMessage {
			t.Errorf("part %d has %d bytes", i, size)
		}
		if int(r.GetPart()) != i || int(r.GetParts()) != len(reports) {
			t.Errorf("part %d of %d is numbered %d of %d", i, len(reports), r.GetPart(), r.GetParts())
		}
		n += len(r.GetFunctions())
	}
	if n != len(list) || len(reports) < 10 {
		t.Errorf("%d functions in %d parts", n, len(reports))
	}
	if empty := parts(nil, true); len(empty) != 1 || empty[0].GetParts() != 1 {
		t.Errorf("an empty full report: %v", empty)
	}
	if none := parts(nil, false); len(none) != 0 {
		t.Errorf("nothing changed: %v", none)
	}
}

func TestLinksAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 10)
	var id command.ID
	for range maxOutgoing + 1 {
		w.office.result(e, &wire.TryResult{Id: id[:]}, w.now)
	}
	if !e.link.closed {
		t.Error("an edge that reads nothing is kept")
	}
}
