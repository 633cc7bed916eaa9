package dispatch

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// acceptDirect hands a call over by an edge that would deliver it. reserved: its grant was in the same entry.
func (w *world) acceptDirect(name string, s *session) (id command.ID, reserved *pending, granted *fsm.Result) {
	w.ids++
	binary.BigEndian.PutUint64(id[8:], w.ids)
	commands := []command.Command{command.Accept{ID: id, Function: name, Payload: []byte("x")}}
	if reserved = w.office.reserve(id, name, s.ID, w.now); reserved != nil {
		commands = append(commands, (&Reservation{w.office, reserved}).Grant())
	}
	if results := w.commit(commands...); reserved != nil {
		granted = &results[1]
	}
	return id, reserved, granted
}

// settle as Dispatcher.Settle does.
func (w *world) settle(p *pending, granted *fsm.Result) *wire.Grant {
	if granted == nil || granted.Code != fsm.OK {
		w.office.takeBack(p, p.seq != 0)
		return nil
	}
	return w.office.told(p.id, granted.Index, w.now)
}

// acceptSomehow as acceptDirect, with every way in which it can be answered. It returns the try that the edge is told of.
func (w *world) acceptSomehow(name string, s *session, way int) *run {
	w.ids++
	id := command.ID{15: byte(w.ids), 14: byte(w.ids >> 8)}
	p := w.office.reserve(id, name, s.ID, w.now)
	commands := []command.Command{command.Accept{ID: id, Function: name, Payload: []byte("x")}}
	if p == nil {
		w.commit(commands...)
		return nil
	}
	grant := (&Reservation{w.office, p}).Grant()
	switch way {
	case 0: // nobody knows, and it comes late
		w.settle(p, nil)
		w.commit(commands[0], grant)
	case 1: // it is carried out, and nobody knows
		w.commit(commands[0], grant)
		w.settle(p, nil)
	case 2: // the accept alone gets through
		w.commit(commands...)
		w.settle(p, nil)
	default:
		if results := w.commit(commands[0], grant); w.settle(p, &results[1]) != nil {
			return w.office.runs[id]
		}
	}
	return nil
}

func TestACallThatWaitsForNothingIsGrantedWithItsAccept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 2, 2, "f-0")
	e := w.edge("edge-0", 10)
	id, p, granted := w.acceptDirect("f", e)
	if p == nil {
		t.Fatal("no slot was kept")
	}
	g := w.settle(p, granted)
	if g.GetFence() != w.index || g.GetReplica() != "f-0" || g.GetTryNumber() != 1 || g.GetMaxTries() != 3 || g.GetDeadlineMs() == 0 {
		t.Fatalf("try %v", g)
	}
	w.propose()
	if s := w.state(id); s.State != fsm.Running || len(w.sent(e)) != 0 {
		t.Errorf("%v, or the stream carried it too", s.State)
	}
	w.answer(e, w.office.runs[id], 200)
	w.propose()
	if s := w.state(id); s.State != fsm.Succeeded {
		t.Errorf("%v", s.State)
	}
	if l := w.office.lanes["f"]; l.slots != 0 || l.due.Len() != 0 || e.load != 0 || len(w.office.pending) != 0 {
		t.Errorf("left: %d slots, %d due, load %d, %d pending", l.slots, l.due.Len(), e.load, len(w.office.pending))
	}
}

func TestACallThatWouldWaitTakesItsTurn(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(w *world, e *session){
		"no table": func(w *world, _ *session) { w.office.synced = false },
		"no such function": func(w *world, _ *session) {
			delete(w.functions, "f")
			w.office.setFunction(Function{Name: "f"}, false, w.now)
		},
		"no ready replica":       func(w *world, _ *session) { w.function("f", 1, 1) },
		"no slot":                func(w *world, _ *session) { w.accept("f"); w.propose() },
		"others before it":       func(w *world, _ *session) { w.accept("f") },
		"the edge is full":       func(w *world, e *session) { e.capacity = 0 },
		"the edge has no stream": func(w *world, e *session) { w.office.unlink(e) },
		"others want the edge":   func(w *world, _ *session) { w.function("g", 1, 1, "g-0"); w.accept("g") },
		"the session ends":       func(_ *world, e *session) { e.ending = true },
	} {
		w := newWorld(t)
		w.function("f", 1, 1, "f-0")
		e := w.edge("edge-0", 1)
		prepare(w, e)
		id, p, _ := w.acceptDirect("f", e)
		if p != nil || w.state(id).State != fsm.Queued {
			t.Errorf("%s: granted with its accept, %v", name, w.state(id).State)
		}
	}
}

func TestAReservationThatComesToNothingIsGivenBack(t *testing.T) {
	t.Parallel()
	t.Run("never proposed", func(t *testing.T) {
		w := newWorld(t)
		w.function("f", 1, 1, "f-0")
		e := w.edge("edge-0", 1)
		p := w.office.reserve(command.ID{1}, "f", e.ID, w.now)
		w.settle(p, nil)
		if w.office.lanes["f"].slots != 0 || e.load != 0 {
			t.Error("the slot is lost")
		}
	})
	t.Run("the session ended in between", func(t *testing.T) {
		w := newWorld(t)
		w.function("f", 1, 1, "f-0")
		e := w.edge("edge-0", 1)
		id := command.ID{1}
		p := w.office.reserve(id, "f", e.ID, w.now)
		grant := (&Reservation{w.office, p}).Grant()
		w.commit(command.EndSession{Session: e.ID})
		results := w.commit(command.Accept{ID: id, Function: "f"}, grant)
		if w.settle(p, &results[1]) != nil || results[1].Code != fsm.Stale {
			t.Fatalf("%+v", results)
		}
		other := w.edge("edge-1", 1)
		w.propose()
		if g := w.sent(other); len(g) != 1 || g[0].ID != id {
			t.Errorf("another edge got %v", g)
		}
	})
	t.Run("the stream ended in between", func(t *testing.T) {
		w := newWorld(t)
		w.function("f", 1, 1, "f-0")
		e, other := w.edge("edge-0", 1), w.edge("edge-1", 1)
		id := command.ID{1}
		p := w.office.reserve(id, "f", e.ID, w.now)
		w.office.unlink(e)
		results := w.commit(command.Accept{ID: id, Function: "f"}, (&Reservation{w.office, p}).Grant())
		if g := w.settle(p, &results[1]); g != nil {
			t.Errorf("the edge is told of a try that is given back: %v", g)
		}
		w.propose()
		if g := w.sent(other); len(g) != 1 || g[0].ID != id || w.state(id).Tries != 1 {
			t.Errorf("another edge got %v, tries %d", g, w.state(id).Tries)
		}
	})
	t.Run("committed though nobody knew", func(t *testing.T) {
		w := newWorld(t)
		w.function("f", 1, 1, "f-0")
		e := w.edge("edge-0", 1)
		id := command.ID{1}
		p := w.office.reserve(id, "f", e.ID, w.now)
		grant := (&Reservation{w.office, p}).Grant()
		w.settle(p, nil)
		w.commit(command.Accept{ID: id, Function: "f"}, grant)
		w.propose()
		if g := w.sent(e); len(g) != 1 || g[0].ID != id {
			t.Fatalf("the stream carried %v", g)
		}
		w.answer(e, w.office.runs[id], 200)
		w.propose()
		if l := w.office.lanes["f"]; w.state(id).State != fsm.Succeeded || l.slots != 0 || l.due.Len() != 0 || e.load != 0 {
			t.Errorf("%v, %d slots, %d due, load %d", w.state(id).State, l.slots, l.due.Len(), e.load)
		}
	})
}

// An answer that is on its way is not lost: the edge says that it waits for it. One that was lost is missed in two lists.
func TestAnAnswerThatCarriedATryAndDidNotCome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 1, 1, "f-0")
	e := w.edge("edge-0", 1)
	id, p, granted := w.acceptDirect("f", e)
	if w.settle(p, granted) == nil {
		t.Fatal("no try")
	}
	waits := []*wire.Held{{Id: id[:]}}
	for range 5 {
		w.office.heartbeat(e, &wire.HeldHeartbeat{Listed: true, Held: waits}, w.now)
		w.pass(time.Second, e)
	}
	if s := w.state(id); s.State != fsm.Running || s.Tries != 1 {
		t.Fatalf("while the edge waits for its answer: %v", s.State)
	}
	w.sent(e)
	for range 2 {
		w.office.heartbeat(e, &wire.HeldHeartbeat{Listed: true}, w.now)
	}
	w.propose()
	if g := w.sent(e); len(g) != 1 || g[0].ID != id || w.state(id).Tries != 1 {
		t.Errorf("then it goes by the stream, and no try is burnt: %v, tries %d", g, w.state(id).Tries)
	}
}

func TestACallHandedOverTwiceIsGrantedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.function("f", 2, 2, "f-0")
	e := w.edge("edge-0", 10)
	id := w.accept("f") // without a grant, and again with one
	w.office.runnable = nil
	w.office.lanes["f"].runnable = false
	w.office.lanes["f"].due.Pop()
	p := w.office.reserve(id, "f", e.ID, w.now)
	w.office.lanes["f"].due.Push(place{w.state(id).Seq, id})
	results := w.commit(command.Accept{ID: id, Function: "f"}, (&Reservation{w.office, p}).Grant())
	if !results[0].Repeated || w.settle(p, &results[1]) == nil {
		t.Fatalf("%+v", results)
	}
	w.office.look(w.office.lanes["f"])
	w.propose()
	w.answer(e, w.office.runs[id], 200)
	w.propose()
	if l := w.office.lanes["f"]; len(w.sent(e)) != 0 || w.state(id).State != fsm.Succeeded || l.slots != 0 || e.load != 0 {
		t.Errorf("%v, %d slots, load %d", w.state(id).State, l.slots, e.load)
	}
}
