package dispatch

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// world is an office on a real state machine, without log, clock or network: every step is the test's.
type world struct {
	t         testing.TB
	machine   *fsm.Machine
	office    *office
	now       time.Time
	index     uint64
	ids       uint64
	functions map[string]Function
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, machine: fsm.New(), now: time.UnixMilli(1_700_000_000_000), functions: map[string]Function{}}
	w.takeOffice()
	return w
}

// takeOffice is a new leader with the same state and the same table.
func (w *world) takeOffice() {
	w.office = newOffice(w.machine, w.now, func(name string) (Function, bool) {
		f, ok := w.functions[name]
		return f, ok
	}, true, Limits{}.complete())
}

func (w *world) function(name string, limit, perReplica int, replicas ...string) {
	s := specification([]int{10, 20}, 500)
	s.NumberParallelRequest, s.NumberParallelRequestPerPod = limit, perReplica
	w.functions[name] = Function{Name: name, Spec: s, Ready: replicas}
	w.office.setFunction(w.functions[name], true, w.now)
}

// commit applies commands as the log would.
func (w *world) commit(commands ...command.Command) []fsm.Result {
	w.index++
	results, changes, _ := w.machine.Apply(w.index, command.Batch{NowUnixMs: w.now.UnixMilli(), Commands: commands})
	w.office.apply(w.index, changes, w.now)
	return results
}

func (w *world) accept(name string) command.ID {
	w.ids++
	var id command.ID
	binary.BigEndian.PutUint64(id[8:], w.ids)
	w.commit(command.Accept{ID: id, Function: name, Payload: []byte("x")})
	return id
}

func (w *world) acceptWith(name string, o command.AcceptOptions) command.ID {
	w.ids++
	var id command.ID
	binary.BigEndian.PutUint64(id[8:], w.ids)
	w.commit(command.Accept{ID: id, Function: name, Payload: []byte("x"), AcceptOptions: o})
	return id
}

func (w *world) edge(name string, capacity uint32) *session {
	r := w.commit(command.OpenSession{Name: name, Incarnation: "i", Kind: uint8(wire.SessionKind_SESSION_KIND_EDGE)})
	s := w.office.sessions[r[0].Index]
	w.office.attach(s, &wire.Hello{Capacity: &wire.Capacity{MaxHeld: capacity}}, "queue-0", w.now)
	return s
}

// propose until there is nothing more to.
func (w *world) propose() {
	w.t.Helper()
	for range 1000 {
		w.office.tick(w.now)
		b := w.office.batch(w.now)
		if len(b.commands) == 0 {
			return
		}
		w.office.committed(b, w.commit(b.commands...), w.now)
	}
	w.t.Fatal("the office never rests")
}

// sent takes what goes to the edge, and sends it.
func (w *world) sent(s *session) (grants []*run) {
	if s.link == nil {
		return nil
	}
	out := s.link.out
	s.link.out = nil
	for _, x := range out {
		if x.grant != nil && w.office.valid(x.grant, w.now) {
			w.office.wasSent(x.grant, w.now)
			grants = append(grants, x.grant)
		}
	}
	return grants
}

func (w *world) answer(s *session, r *run, status uint32) {
	w.office.result(s, &wire.TryResult{Id: r.ID[:], Fence: r.Fence, Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, Status: status}, w.now)
}

func (w *world) state(id command.ID) fsm.Call {
	c, _ := w.machine.Call(id)
	return c
}

func (w *world) pass(d time.Duration, alive ...*session) {
	w.now = w.now.Add(d)
	for _, s := range alive {
		s.seen = w.now
	}
	w.propose()
}

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

// Whatever happens, in whatever order: no limit is exceeded, every slot belongs to a try, every call that waits has exactly one
// place, and at the end everything ends.
func TestNothingIsLostInAnyOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		names := []string{"a", "b", "c"}
		for _, n := range names {
			w.function(n, 1+r.IntN(4), 1+r.IntN(2), n+"-0", n+"-1")
		}
		edges := []*session{w.edge("edge-0", 3), w.edge("edge-1", 5)}
		var granted []*run
		var unknown []batch
		for range 400 {
			e := edges[r.IntN(len(edges))]
			if w.office.sessions[e.ID] != e {
				i := slices.Index(edges, e)
				edges[i] = w.edge(e.Name, uint32(1+r.IntN(5)))
				continue
			}
			switch r.IntN(18) {
			case 16, 17:
				if told := w.acceptSomehow(names[r.IntN(3)], e, r.IntN(4)); told != nil {
					granted = append(granted, told)
				}
			case 0, 1:
				w.accept(names[r.IntN(3)])
			case 2:
				o := command.AcceptOptions{KeepResultMs: uint64(r.IntN(2))}
				if r.IntN(2) == 0 {
					o.NotBeforeUnixMs = w.now.UnixMilli() + int64(r.IntN(5000))
				}
				if r.IntN(2) == 0 {
					o.ExpireUnixMs = w.now.UnixMilli() + int64(r.IntN(5000))
				}
				w.acceptWith(names[r.IntN(3)], o)
			case 14:
				w.commit(command.Redrive{DeadCalls: command.DeadCalls{Function: names[r.IntN(3)], UpTo: 1 << 60, Limit: uint32(r.IntN(4))}})
			case 15:
				w.commit(command.Purge{DeadCalls: command.DeadCalls{Function: names[r.IntN(3)], UpTo: 1 << 60, Limit: 1}})
			case 3, 4:
				granted = append(granted, w.sent(e)...)
			case 5, 6:
				if len(granted) > 0 {
					g := granted[r.IntN(len(granted))]
					if g.session != nil {
						w.office.result(g.session, &wire.TryResult{
							Id: g.ID[:], Fence: g.Fence, Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED,
							Status: []uint32{200, 202, 500, 404, 429}[r.IntN(5)], RetryAfterMs: uint64(r.IntN(3000)), Answer: []byte("answer"),
						}, w.now)
					}
				}
			case 7:
				w.commit(command.Cancel{ID: command.ID{15: byte(1 + r.IntN(int(w.ids)+1))}})
			case 8:
				if len(granted) > 0 {
					g := granted[r.IntN(len(granted))]
					if f, ok := w.office.callback(g.ID, g.Function, r.IntN(2) == 0, w.now); ok {
						w.commit(f)
					}
				}
			case 9:
				b := w.office.batch(w.now)
				switch r.IntN(3) {
				case 0:
					w.office.failed(b)
				case 1:
					w.commit(b.commands...)
					w.office.failed(b)
				default:
					unknown = append(unknown, b)
				}
			case 10:
				w.pass(time.Duration(r.IntN(3000))*time.Millisecond, edges[r.IntN(2)])
			case 11:
				w.office.heartbeat(e, &wire.HeldHeartbeat{Listed: true}, w.now)
			case 12:
				w.function(names[r.IntN(3)], 1+r.IntN(4), 1+r.IntN(2), "x-0", "x-1")
			default:
				w.propose()
			}
			for len(unknown) > 0 && r.IntN(2) == 0 { // answered late, in order
				b := unknown[0]
				unknown = unknown[1:]
				w.office.committed(b, w.commit(b.commands...), w.now)
			}
			w.check(seed)
		}
		for _, b := range unknown {
			w.office.failed(b)
		}
		for _, n := range names {
			w.function(n, 5, 5, "z-0")
		}
		last := w.edge("edge-9", 100)
		for range 300 {
			w.pass(time.Second, last)
			for _, g := range w.sent(last) {
				w.answer(last, g, 200)
			}
		}
		w.propose()
		if unfinished, _, _ := w.machine.Sizes(); unfinished != 0 {
			t.Fatalf("seed %d: %d calls never end", seed, unfinished)
		}
		for name, l := range w.office.lanes {
			if l.slots != 0 || len(l.onReplica) != 0 || l.counts != (counts{}) {
				t.Fatalf("seed %d: %s keeps %d slots %v, counts %+v", seed, name, l.slots, l.onReplica, l.counts)
			}
		}
		if len(w.office.aging) != 0 {
			t.Fatalf("seed %d: %d ended calls still age", seed, len(w.office.aging))
		}
	}
}

// check the laws that hold at every moment.
func (w *world) check(seed uint64) {
	w.t.Helper()
	slots := map[*lane]int{}
	load := map[*session]int{}
	for _, r := range w.office.runs {
		if r.slot {
			slots[r.lane]++
		}
		if r.load {
			load[r.session]++
		}
	}
	places := map[command.ID]int{}
	for _, p := range w.office.pending {
		slots[p.lane]++
		load[p.session]++
		places[p.id]++
	}
	for name, l := range w.office.lanes {
		if l.slots != slots[l] {
			w.t.Fatalf("seed %d: %s counts %d slots and has %d", seed, name, l.slots, slots[l])
		}
		onReplicas := 0
		for _, n := range l.onReplica {
			onReplicas += n
		}
		if onReplicas != l.slots {
			w.t.Fatalf("seed %d: %s has %d slots and %d on replicas", seed, name, l.slots, onReplicas)
		}
		marked := maps.Clone(l.cancelled)
		count := func(p place) {
			if _, ok := marked[p.seq]; ok {
				delete(marked, p.seq)
			} else {
				places[p.id]++
			}
		}
		for _, p := range l.due.Items() {
			count(p)
		}
		for _, p := range l.waiting.Items() {
			count(p.place)
		}
		if n := w.machine.CountersOf(name); n.Queued != l.counts.queued || n.Running != l.counts.running || n.Awaiting != l.counts.awaiting || n.Waiting != l.counts.waiting {
			w.t.Fatalf("seed %d: %s counts %+v, the state %+v", seed, name, l.counts, n)
		}
	}
	for _, s := range w.office.sessions {
		if s.load != load[s] {
			w.t.Fatalf("seed %d: %s counts a load of %d and has %d", seed, s.Name, s.load, load[s])
		}
		var hash uint64
		for _, r := range s.held {
			hash += heldHash(r.ID, r.Fence)
		}
		if hash != s.hash {
			w.t.Fatalf("seed %d: hash of %s", seed, s.Name)
		}
	}
	for c := range w.machine.Unfinished() {
		switch c.State {
		case fsm.Queued, fsm.Waiting:
			if places[c.ID] == 0 {
				w.t.Fatalf("seed %d: %s waits nowhere", seed, c.ID)
			}
		default:
			if w.office.runs[c.ID] == nil {
				w.t.Fatalf("seed %d: %s runs nowhere", seed, c.ID)
			}
		}
	}
}
