package async

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestHelloHeartbeatAndCapacity(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	s := q.next()
	first := make(chan uint64, 1)
	go func() { // a wait for the session ends with the first
		session, _ := e.Session(t.Context())
		first <- session
	}()
	if h := s.hello; h.GetName() != "edge-0" || h.GetIncarnation() != e.Incarnation() || h.GetCapacity().GetMaxHeld() != 8 || len(h.GetHeld()) != 0 {
		t.Errorf("hello %v", h)
	}
	s.welcome(41)
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() && h.GetCount() == 0 })
	if session := <-first; session != 41 {
		t.Errorf("the session waited for is %d", session)
	}
	block := make(chan struct{})
	defer close(block)
	e.serve(func(http.ResponseWriter, *http.Request) { <-block })
	g := grantOf(t, 9, post("/"))
	s.grant(g)
	hash := fnv.New64a()
	_, _ = hash.Write(binary.BigEndian.AppendUint64(bytes.Clone(g.GetId()), 9))
	s.beat(func(h *wire.HeldHeartbeat) bool {
		return h.GetCount() == 1 && h.GetHash() == hash.Sum64() && !h.GetListed()
	})
	s.down(&wire.DeliverDown{Down: &wire.DeliverDown_ListHeld{ListHeld: &wire.ListHeld{}}})
	h := s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() })
	if len(h.GetHeld()) != 1 || h.GetHeld()[0].GetFence() != 9 || !bytes.Equal(h.GetHeld()[0].GetId(), g.GetId()) {
		t.Errorf("list %v", h)
	}
	if got := e.State(); got.Session != 41 || got.Held != 1 || got.Bytes != int64(g.GetSize()) || got.Node == "" {
		t.Errorf("state %+v", got)
	}
}

func TestATryCarriesTheCallAndItsNumber(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	type seen struct {
		method, uri, body, host string
		header                  http.Header
	}
	calls := make(chan seen, 1)
	e.serve(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- seen{r.Method, r.RequestURI, string(body), r.Host, r.Header}
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	s := q.next().welcome(1)
	for _, method := range []string{"PUT", "GET", "HEAD", "DELETE"} {
		for try := uint32(1); try <= 3; try++ {
			request := &wire.StoredRequest{Method: method, Path: "/a%2Fb/", Query: "q=%20", Headers: []*wire.Header{{Name: "Accept", Values: []string{"text/x"}}, {Name: "Slimfaas-Last-Try", Values: []string{"forged"}}}}
			if method == "PUT" {
				request.Body = []byte("body")
			}
			g := grantOf(t, uint64(try), request)
			g.TryNumber = try
			s.grant(g)
			got := receive(t, "the call", calls)
			if got.method != method || got.uri != "/a%2Fb/?q=%20" || got.body != string(request.GetBody()) || got.header.Get("Accept") != "text/x" {
				t.Errorf("the function got %+v", got)
			}
			if h := got.header; h.Get("SlimFaas-Element-Id") != idOf(g) || h.Get("SlimFaas-Try-Number") != strconv.Itoa(int(try)) ||
				h.Get("Slimfaas-Last-Try") != strconv.FormatBool(try == 3) || len(h["Slimfaas-Last-Try"]) != 1 {
				t.Errorf("try %d of 3 carried %v", try, h)
			}
			r := s.result()
			if r.GetRetryAfterMs() != 3000 {
				t.Errorf("Retry-After of 3 s became %d ms", r.GetRetryAfterMs())
			}
			r.RetryAfterMs = 0
			wantResult(t, r, g, answered, 503, "")
			s.ack(r, wire.Code_CODE_OK)
		}
	}
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 0 })
}

func TestAnswersAsTheyAre(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	e.serve(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/cut":
			panic(http.ErrAbortHandler)
		case "/hang":
			<-r.Context().Done()
		case "/broken-body": // the headers decide
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			status, _ := strconv.Atoi(r.URL.Path[1:])
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
		}
	})
	s := q.next().welcome(1)
	for i, c := range []struct {
		path    string
		outcome wire.TryOutcome
		status  uint32
		reason  string
	}{
		{"/200", answered, 200, ""}, {"/202", answered, 202, ""}, {"/302", answered, 302, ""}, {"/404", answered, 404, ""}, {"/500", answered, 500, ""},
		{"/broken-body", answered, 200, ""},
		{"/cut", silent, 0, "the function closed the connection without an answer"},
		{"/hang", silent, 0, "no answer within 300ms"},
	} {
		g := grantOf(t, uint64(i+1), post(c.path))
		if c.path == "/hang" {
			g.DeadlineMs = 300
		}
		s.grant(g)
		r := s.result()
		wantResult(t, r, g, c.outcome, c.status, c.reason)
		s.ack(r, wire.Code_CODE_OK)
	}
}

func TestARefusedConnectionBurnsATry(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	e.apply(listener.Addr().String(), wire.ReplicaState_REPLICA_STATE_READY)
	s := q.next().welcome(1)
	g := grantOf(t, 1, post("/"))
	s.grant(g)
	wantResult(t, s.result(), g, silent, 0, "connection refused")
}

func TestATryThatCannotBeSentIsGivenBack(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	e.apply("127.0.0.1:9", wire.ReplicaState_REPLICA_STATE_DRAINING)
	s := q.next().welcome(1)
	const unseen = "the replica takes no calls as this edge sees it"

	draining := grantOf(t, 1, post("/"))
	s.grant(draining)
	wantResult(t, s.result(), draining, given, 0, unseen)

	stranger := grantOf(t, 2, post("/"))
	stranger.Replica = "nobody"
	s.grant(stranger)
	wantResult(t, s.result(), stranger, given, 0, unseen)

	gone := grantOf(t, 3, post("/"))
	gone.Function = "nothing"
	s.grant(gone)
	wantResult(t, s.result(), gone, given, 0, unseen)

	large := grantOf(t, 4, post("/"))
	large.Size = wire.MaxPayload + 1
	s.grant(large)
	wantResult(t, s.result(), large, silent, 0, "the stored request is larger than an edge takes")

	garbage := grantOf(t, 5, post("/"))
	garbage.Payload, garbage.Size = []byte{0xff}, 1
	e.apply("127.0.0.1:9", wire.ReplicaState_REPLICA_STATE_READY)
	s.grant(garbage)
	wantResult(t, s.result(), garbage, silent, 0, "the stored request cannot be read")
}

func TestAGrantAheadOfTheTableWaitsForIt(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	s := q.next().welcome(1)
	g := grantOf(t, 1, post("/"))
	s.grant(g)
	testkit.Eventually(t, patience, "the try waits for its function", func() bool { return e.waits("f") })
	e.serve(func(http.ResponseWriter, *http.Request) {})
	wantResult(t, s.result(), g, answered, 200, "")
}

func (e *edge) waits(function string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.listeners[function]) > 0
}

func TestAResultIsSentUntilItIsAcknowledged(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	var calls atomic.Int32
	block := make(chan struct{})
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.URL.Path == "/slow" {
			<-block
		}
	})
	first := q.next().welcome(1)
	done, slow := grantOf(t, 1, post("/")), grantOf(t, 2, post("/slow"))
	first.grant(slow)
	first.grant(done)
	wantResult(t, first.result(), done, answered, 200, "")
	first.end() // before its ack

	second := q.next()
	if len(second.hello.GetHeld()) != 2 || second.hello.GetIncarnation() != first.hello.GetIncarnation() {
		t.Errorf("second hello %v", second.hello)
	}
	second.welcome(1)
	wantResult(t, second.result(), done, answered, 200, "")
	second.grant(done) // told twice: the result comes again, the function is not called again
	wantResult(t, second.result(), done, answered, 200, "")
	second.ack(&wire.TryResult{Id: done.GetId(), Fence: 1}, wire.Code_CODE_UNKNOWN) // not recorded: once more
	wantResult(t, second.result(), done, answered, 200, "")
	second.ack(&wire.TryResult{Id: done.GetId(), Fence: 1}, wire.Code_CODE_OK)
	second.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 1 })
	close(block) // the try that ran through it all
	r := second.result()
	wantResult(t, r, slow, answered, 200, "")
	second.ack(r, wire.Code_CODE_STALE) // or no longer wanted
	second.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 0 })
	if calls.Load() != 2 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestALostSessionDropsWhatIsHeld(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	running, cancelled := make(chan struct{}, 1), make(chan struct{}, 1)
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		running <- struct{}{}
		<-r.Context().Done()
		cancelled <- struct{}{}
	})
	s := q.next().welcome(1)
	s.grant(grantOf(t, 1, post("/")))
	receive(t, "the call", running)
	s.end()
	s = q.next().welcome(2)
	receive(t, "the end of the call", cancelled)
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 0 && h.GetListed() })
	if got := e.State(); got.Session != 2 || got.Bytes != 0 {
		t.Errorf("state %+v", got)
	}
}

func TestWithdrawCancelsWithoutAResult(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	running, cancelled := make(chan struct{}, 1), make(chan struct{}, 1)
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/next" {
			return
		}
		running <- struct{}{}
		<-r.Context().Done()
		cancelled <- struct{}{}
	})
	s := q.next().welcome(1)
	g := grantOf(t, 1, post("/"))
	s.grant(g)
	receive(t, "the call", running)
	withdraw := func(fence uint64) {
		s.down(&wire.DeliverDown{Down: &wire.DeliverDown_Withdraw{Withdraw: &wire.Withdraw{Id: g.GetId(), Fence: fence, Reason: "callback came"}}})
	}
	withdraw(99) // another try's
	withdraw(1)
	receive(t, "the end of the call", cancelled)
	next := grantOf(t, 2, post("/next"))
	s.grant(next)
	wantResult(t, s.result(), next, answered, 200, "") // and nothing of the first
}

func TestLargePayloadsComeInFrames(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	bodies := make(chan []byte, 1)
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- body
	})
	s := q.next().welcome(1)
	request := post("/")
	request.Body = bytes.Repeat([]byte("0123456789"), 100<<10)
	whole := grantOf(t, 1, request)
	payload := whole.GetPayload()
	begin := func(fence uint64) *wire.Grant {
		g := proto.CloneOf(whole)
		g.Fence, g.Payload = fence, payload[:wire.MaxFrame]
		s.grant(g)
		return g
	}
	frame := func(fence uint64, from, to int) {
		s.down(&wire.DeliverDown{Down: &wire.DeliverDown_GrantFrame{GrantFrame: &wire.GrantFrame{Id: whole.GetId(), Fence: fence, Offset: uint64(from), Data: payload[from:to]}}})
	}
	g := begin(1)
	for from := wire.MaxFrame; from < len(payload); from += wire.MaxFrame {
		frame(1, from, min(from+wire.MaxFrame, len(payload)))
	}
	if got := receive(t, "the call", bodies); !bytes.Equal(got, request.GetBody()) {
		t.Errorf("%d bytes arrived of %d", len(got), len(request.GetBody()))
	}
	r := s.result()
	wantResult(t, r, g, answered, 200, "")
	s.ack(r, wire.Code_CODE_OK)

	g = begin(2)
	frame(2, wire.MaxFrame+1, wire.MaxFrame+10)
	wantResult(t, s.result(), g, given, 0, "the pieces of the request do not fit together")

	g = begin(3)
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 3-1 }) // what is being assembled is held
	s.end()
	s = q.next().welcome(1)
	for {
		if r := s.result(); r.GetFence() == 3 {
			wantResult(t, r, g, given, 0, "the stream broke while the request came")
			break
		}
	}
	if got := e.State(); got.Bytes != 0 {
		t.Errorf("%d bytes still counted", got.Bytes)
	}
}

func TestFullOfBytesAsksForNoMore(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q, func(o *Options) { o.MaxBytes = 1000 })
	block := make(chan struct{})
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-block
	})
	s := q.next().welcome(1)
	request := post("/")
	request.Body = make([]byte, 800)
	s.grant(grantOf(t, 1, request))
	if got := s.capacity(); got != 1 {
		t.Errorf("capacity %d, want the one that is held", got)
	}
	close(block)
	if got := s.capacity(); got != 8 {
		t.Errorf("capacity %d afterwards", got)
	}
}

func TestAnEdgeThatDeliversNothingHasItsSession(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	run(t, q, func(o *Options) { o.MaxHeld = 0 })
	s := q.next()
	if s.hello.GetCapacity().GetMaxHeld() != 0 {
		t.Errorf("hello %v", s.hello)
	}
	s.welcome(1)
	g := grantOf(t, 1, post("/"))
	s.grant(g)
	wantResult(t, s.result(), g, given, 0, "the edge takes no more calls")
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 0 && !h.GetListed() })
}

func TestNotLeaderIsLeftAtOnce(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	run(t, q)
	s := q.next()
	s.down(&wire.DeliverDown{Down: &wire.DeliverDown_NotLeader{NotLeader: &wire.NotLeader{LeaderName: "queue-0", LeaderApi: q.server.Listener.Addr().String()}}})
	s = q.next().welcome(1)
	s.down(&wire.DeliverDown{Down: &wire.DeliverDown_NotLeader{NotLeader: &wire.NotLeader{}}})
	s = q.next().welcome(1)
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetListed() })
}

func TestTheDrainFinishesWhatRunsAndClosesTheSession(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	closed := make(chan uint64, 1)
	q.submit = func(op *wire.Op) (*wire.OpResult, error) {
		if c := op.GetCloseSession(); c != nil {
			closed <- c.GetSession()
		}
		return &wire.OpResult{Code: wire.Code_CODE_OK}, nil
	}
	e := run(t, q)
	running, block := make(chan struct{}, 1), make(chan struct{})
	e.serve(func(http.ResponseWriter, *http.Request) {
		running <- struct{}{}
		<-block
	})
	s := q.next().welcome(77)
	g := grantOf(t, 1, post("/"))
	s.grant(g)
	receive(t, "the call", running)
	e.stop()
	if got := s.capacity(); got != 0 {
		t.Errorf("capacity %d while draining", got)
	}
	late := grantOf(t, 2, post("/"))
	s.grant(late)
	wantResult(t, s.result(), late, given, 0, "the edge takes no more calls")
	close(block)
	r := s.result()
	wantResult(t, r, g, answered, 200, "")
	select {
	case <-closed:
		t.Error("the session was closed before the result was acknowledged")
	case <-e.done:
		t.Error("the edge stopped before the result was acknowledged")
	default:
	}
	s.ack(r, wire.Code_CODE_OK)
	if got := receive(t, "the end of the session", closed); got != 77 {
		t.Errorf("session %d was closed", got)
	}
	receive(t, "the end of the stream", s.gone)
	receive(t, "the end", e.done)
	if len(q.streams) != 0 {
		t.Error("another stream was opened, and with it the session")
	}
}

func TestTheDrainCutsWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q, func(o *Options) { o.Drain = 50 * time.Millisecond })
	running := make(chan struct{}, 1)
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		running <- struct{}{}
		<-r.Context().Done()
	})
	s := q.next().welcome(1)
	g := grantOf(t, 1, post("/"))
	s.grant(g)
	receive(t, "the call", running)
	e.stop()
	r := s.result()
	wantResult(t, r, g, silent, 0, "the edge was stopped")
	s.ack(r, wire.Code_CODE_OK)
	receive(t, "the end", e.done)
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "soon": 0, "1.5": 0, "99999999999": 0, "86400": time.Hour,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}
