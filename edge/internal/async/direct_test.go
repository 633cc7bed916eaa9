package async

import (
	"io"
	"net/http"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// direct answers every accept that asks for it with the first try.
func direct(q *fakeQueue, asked chan<- *wire.Accept, answer func(*wire.Accept) *wire.Grant) {
	q.submit = func(op *wire.Op) (*wire.OpResult, error) {
		r := &wire.OpResult{Code: wire.Code_CODE_OK, Index: 7}
		if a := op.GetAccept(); a != nil {
			asked <- a
			r.Run = answer(a)
		}
		return r, nil
	}
}

func tryOf(a *wire.Accept) *wire.Grant {
	return &wire.Grant{Id: a.GetId(), Function: a.GetFunction(), Fence: 7, Replica: "r", DeadlineMs: 10_000, TryNumber: 1, MaxTries: 3}
}

func TestATryThatComesWithTheAnswerIsMadeFromMemory(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	asked := make(chan *wire.Accept, 1)
	direct(q, asked, tryOf)
	e := run(t, q)
	calls := make(chan string, 1)
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- r.Method + r.RequestURI + string(body) + r.Header.Get("SlimFaas-Element-Id") + r.Header.Get("SlimFaas-Try-Number")
	})
	s := q.next().welcome(5)
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() })
	for _, body := range []int{4, wire.MaxFrame + 10} { // whole in the accept, and in frames behind it
		request := post("/x")
		request.Body = make([]byte, body)
		id, err := Accepter{Do: q.client().Do, Runs: e.Deliverer}.Accept(t.Context(), "f", request, message.CallOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if a := receive(t, "accept", asked); a.GetRunSession() != 5 {
			t.Errorf("asked for session %d", a.GetRunSession())
		}
		if got, want := receive(t, "call", calls), "POST/x"+string(request.GetBody())+id+"1"; got != want {
			t.Errorf("the function got %d bytes, want %d", len(got), len(want))
		}
		r := s.result()
		parsed, _ := message.ParseID(id)
		wantResult(t, r, &wire.Grant{Id: parsed[:], Fence: 7}, answered, 200, "")
		s.ack(r, wire.Code_CODE_OK)
	}
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 0 })
	if len(e.expected) != 0 {
		t.Errorf("%d calls are still expected", len(e.expected))
	}
}

func TestACallIsListedWhileItsAnswerMayBringATry(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	s := q.next().welcome(5)
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() })
	id, _ := message.NewID()
	if session := e.Expect(id); session != 5 {
		t.Fatalf("session %d", session)
	}
	s.down(&wire.DeliverDown{Down: &wire.DeliverDown_ListHeld{ListHeld: &wire.ListHeld{}}})
	h := s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() })
	if h.GetCount() != 0 || h.GetHash() != 0 || len(h.GetHeld()) != 1 || string(h.GetHeld()[0].GetId()) != string(id[:]) || h.GetHeld()[0].GetFence() != 0 {
		t.Errorf("%v", h)
	}
	s.end()
	again := q.next()
	if list := again.hello.GetHeld(); len(list) != 1 || list[0].GetFence() != 0 {
		t.Errorf("the hello lists %v", list)
	}
	again.welcome(6) // the queue gave up the session: what it granted to it is somebody else's
	again.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() })
	e.Expected(id, 5, &wire.Grant{Id: id[:], Function: "f", Fence: 9, Replica: "r"})
	again.down(&wire.DeliverDown{Down: &wire.DeliverDown_ListHeld{ListHeld: &wire.ListHeld{}}})
	if h := again.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() }); len(h.GetHeld()) != 0 {
		t.Errorf("a try of a lost session is held: %v", h)
	}
}

func TestNoTryIsAskedForWhereItCouldNotBeMade(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	asked := make(chan *wire.Accept, 1)
	direct(q, asked, func(a *wire.Accept) *wire.Grant {
		if a.GetRunSession() != 0 {
			return tryOf(a)
		}
		return nil
	})
	e := run(t, q, func(o *Options) { o.MaxHeld = 1 })
	accept := func(o message.CallOptions) uint64 {
		t.Helper()
		if _, err := (Accepter{Do: q.client().Do, Runs: e.Deliverer}).Accept(t.Context(), "f", post("/"), o); err != nil {
			t.Fatal(err)
		}
		return receive(t, "accept", asked).GetRunSession()
	}
	if got := accept(message.CallOptions{}); got != 0 {
		t.Errorf("without a stream: session %d", got)
	}
	s := q.next().welcome(5)
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() })
	if got := accept(message.CallOptions{Delay: 1e9}); got != 0 {
		t.Errorf("a delayed call: session %d", got)
	}
	block := make(chan struct{})
	defer close(block)
	e.serve(func(http.ResponseWriter, *http.Request) { <-block })
	if got := accept(message.CallOptions{}); got != 5 {
		t.Errorf("session %d, want 5", got)
	}
	if got := accept(message.CallOptions{}); got != 0 {
		t.Errorf("an edge that holds all it may: session %d", got)
	}
}
