package dispatch

import (
	"encoding/binary"
	"testing"
	"time"

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
