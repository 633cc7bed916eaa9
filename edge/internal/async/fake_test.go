package async

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// fakeQueue is a queue leader whose part the test plays.
type fakeQueue struct {
	wireconnect.UnimplementedQueueServiceHandler
	t       *testing.T
	url     string
	server  *httptest.Server
	streams chan *fakeStream
	submit  func(*wire.Op) (*wire.OpResult, error) // an error answers the whole call
	read    func(*wire.ReadPayloadRequest, func([]byte) error) error
}

// fakeStream is one Deliver stream, seen from the leader.
type fakeStream struct {
	t     *testing.T
	hello *wire.Hello
	up    chan *wire.DeliverUp
	mu    sync.Mutex // one Send at a time, none after the handler's end
	over  bool
	conn  *connect.BidiStream[wire.DeliverUp, wire.DeliverDown]
	cut   chan struct{}
	once  sync.Once
	gone  chan struct{}
}

func newQueue(t *testing.T) *fakeQueue {
	q := &fakeQueue{t: t, streams: make(chan *fakeStream, 8)}
	q.submit = func(*wire.Op) (*wire.OpResult, error) { return &wire.OpResult{Code: wire.Code_CODE_OK, Index: 1}, nil }
	mux := http.NewServeMux()
	mux.Handle(wireconnect.NewQueueServiceHandler(q))
	q.server = httptest.NewUnstartedServer(mux)
	q.server.Config.Protocols = &http.Protocols{}
	q.server.Config.Protocols.SetUnencryptedHTTP2(true)
	q.server.Start()
	q.url = q.server.URL
	t.Cleanup(func() {
		q.server.CloseClientConnections()
		q.server.Close()
	})
	return q
}

func (q *fakeQueue) client() *queueclient.Client {
	c := queueclient.New(queueclient.Options{Endpoints: []string{q.url}, Token: "t", Name: "edge-0", Log: quiet()})
	q.t.Cleanup(c.Close)
	return c
}

func (q *fakeQueue) Cluster(context.Context, *connect.Request[wire.ClusterRequest]) (*connect.Response[wire.ClusterResponse], error) {
	return connect.NewResponse(&wire.ClusterResponse{Node: "queue-0", Leader: "queue-0", LeaderApi: q.server.Listener.Addr().String()}), nil
}

func (q *fakeQueue) Submit(_ context.Context, r *connect.Request[wire.SubmitRequest]) (*connect.Response[wire.SubmitResponse], error) {
	answer := &wire.SubmitResponse{}
	for _, op := range r.Msg.GetOps() {
		result, err := q.submit(op)
		if err != nil {
			return nil, err
		}
		answer.Results = append(answer.Results, result)
	}
	return connect.NewResponse(answer), nil
}

func (q *fakeQueue) ReadPayload(_ context.Context, r *connect.Request[wire.ReadPayloadRequest], s *connect.ServerStream[wire.ReadPayloadResponse]) error {
	return q.read(r.Msg, func(data []byte) error { return s.Send(&wire.ReadPayloadResponse{Data: data}) })
}

func (q *fakeQueue) Deliver(ctx context.Context, conn *connect.BidiStream[wire.DeliverUp, wire.DeliverDown]) error {
	first, err := conn.Receive()
	if err != nil {
		return err
	}
	s := &fakeStream{t: q.t, hello: first.GetHello(), up: make(chan *wire.DeliverUp, 64), conn: conn, cut: make(chan struct{}), gone: make(chan struct{})}
	q.streams <- s
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(s.gone)
		for {
			up, err := conn.Receive()
			if err != nil {
				return
			}
			select {
			case s.up <- up:
			case <-ctx.Done():
				return
			}
		}
	})
	select {
	case <-s.cut:
	case <-ctx.Done():
	case <-s.gone:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return connect.NewError(connect.CodeUnavailable, errors.New("cut by the test"))
}

// next is the next stream an edge opens.
func (q *fakeQueue) next() *fakeStream {
	q.t.Helper()
	select {
	case s := <-q.streams:
		q.t.Cleanup(s.end)
		return s
	case <-time.After(patience):
		q.t.Fatal("the edge opened no stream")
		return nil
	}
}

// welcome answers the hello.
func (s *fakeStream) welcome(session uint64) *fakeStream {
	s.down(&wire.DeliverDown{Down: &wire.DeliverDown_Welcome{Welcome: &wire.Welcome{Session: session, TtlMs: 4000, Node: "queue-0"}}})
	return s
}

func (s *fakeStream) down(m *wire.DeliverDown) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return // the edge has hung up
	}
	if err := s.conn.Send(m); err != nil {
		s.t.Errorf("sending down: %v", err)
	}
}

func (s *fakeStream) end() { s.once.Do(func() { close(s.cut) }) }

func (s *fakeStream) ack(r *wire.TryResult, code wire.Code) {
	s.down(&wire.DeliverDown{Down: &wire.DeliverDown_ResultAck{ResultAck: &wire.ResultAck{Id: r.GetId(), Fence: r.GetFence(), Code: code}}})
}

func (s *fakeStream) grant(g *wire.Grant) {
	s.down(&wire.DeliverDown{Down: &wire.DeliverDown_Grant{Grant: g}})
}

// until reads what the edge says until pick takes one; everything else is dropped.
func until[T any](s *fakeStream, what string, pick func(*wire.DeliverUp) (T, bool)) T {
	s.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case up := <-s.up:
			if got, ok := pick(up); ok {
				return got
			}
		case <-limit:
			s.t.Fatalf("the edge sent no %s", what)
		}
	}
}

func (s *fakeStream) result() *wire.TryResult {
	s.t.Helper()
	return until(s, "result", func(up *wire.DeliverUp) (*wire.TryResult, bool) { return up.GetResult(), up.GetResult() != nil })
}

func (s *fakeStream) beat(ok func(*wire.HeldHeartbeat) bool) *wire.HeldHeartbeat {
	s.t.Helper()
	return until(s, "heartbeat as expected", func(up *wire.DeliverUp) (*wire.HeldHeartbeat, bool) {
		return up.GetHeartbeat(), up.GetHeartbeat() != nil && ok(up.GetHeartbeat())
	})
}

func (s *fakeStream) capacity() uint32 {
	s.t.Helper()
	return until(s, "capacity", func(up *wire.DeliverUp) (uint32, bool) { return up.GetCapacity().GetMaxHeld(), up.GetCapacity() != nil })
}

// edge is a Deliverer that runs against a fakeQueue.
type edge struct {
	*Deliverer
	q    *fakeQueue
	set  *replica.Set
	stop context.CancelFunc
	done chan struct{}
	seq  uint64
}

func run(t *testing.T, q *fakeQueue, change ...func(*Options)) *edge {
	client := q.client()
	set := replica.NewSet(load.NewTracker())
	o := Options{
		Name: "edge-0", Address: "127.0.0.1:1", MaxHeld: 8, MaxBytes: 64 << 20, Drain: patience, Replicas: set, Log: quiet(),
		Open: func(ctx context.Context) (Stream, string, error) { return client.Deliver(ctx) },
		Do:   func(ctx context.Context, op *wire.Op) (*wire.OpResult, error) { return client.Do(ctx, op) },
		ReadBody: func(ctx context.Context, id []byte, fence, size uint64) Pieces {
			return client.ReadBody(ctx, id, fence, size)
		},
	}
	for _, f := range change {
		f(&o)
	}
	e := &edge{Deliverer: New(o), q: q, set: set, done: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	e.stop = stop
	go func() {
		defer close(e.done)
		if err := e.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	t.Cleanup(func() {
		stop()
		select {
		case <-e.done:
		case <-time.After(3 * patience):
			t.Error("the deliverer did not stop")
		}
	})
	return e
}

// serve makes handler the only replica, "r", of function "f".
func (e *edge) serve(handler http.HandlerFunc) {
	server := httptest.NewServer(handler)
	e.q.t.Cleanup(server.Close)
	e.apply(server.Listener.Addr().String(), wire.ReplicaState_REPLICA_STATE_READY)
}

func (e *edge) apply(address string, state wire.ReplicaState) {
	e.seq++
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.Atoi(port)
	e.set.Apply(&wire.FunctionRecord{
		Name: "f", Version: &wire.Version{Epoch: 1, Seq: e.seq}, Wanted: 1,
		Replicas: []*wire.Replica{{Name: "r", Instance: "1", Host: host, Ports: []uint32{uint32(number)}, State: state}},
	}, &function.Specification{})
	e.Changed("f")
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// grantOf is a first of three tries of a call, with what its function shall get.
func grantOf(t *testing.T, fence uint64, request *wire.StoredRequest) *wire.Grant {
	t.Helper()
	id, err := message.NewID()
	if err != nil {
		t.Fatal(err)
	}
	payload, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return &wire.Grant{
		Id: id[:], Function: "f", Fence: fence, Replica: "r", DeadlineMs: 10_000, TryNumber: 1, MaxTries: 3,
		Payload: payload, Size: uint64(len(payload)),
	}
}

func post(path string) *wire.StoredRequest {
	return &wire.StoredRequest{Method: "POST", Path: path, Body: []byte("body")}
}

func idOf(g *wire.Grant) string { return message.ID(g.GetId()).String() }

func wantResult(t *testing.T, got *wire.TryResult, g *wire.Grant, outcome wire.TryOutcome, status uint32, reason string) {
	t.Helper()
	want := &wire.TryResult{Id: g.GetId(), Fence: g.GetFence(), Outcome: outcome, Status: status, Error: reason}
	if !proto.Equal(got, want) {
		t.Errorf("result %v\n  want %v", got, want)
	}
}

const (
	answered = wire.TryOutcome_TRY_OUTCOME_ANSWERED
	silent   = wire.TryOutcome_TRY_OUTCOME_NO_ANSWER
	given    = wire.TryOutcome_TRY_OUTCOME_RELEASED
)

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

var errFake = fmt.Errorf("made up")
