package queueclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const token = "the-token"

// cluster is a fake queue: nodes with one log between them, of which at most one leads.
type cluster struct {
	nodes []*fakeNode
	tls   *tls.Config // nil: unencrypted

	mu     sync.Mutex // guards the fields below
	leader *fakeNode  // nil: none
	log    map[string]int
	raft   uint64
}

// fakeNode is one node behind a proxy, served over h2c as the real one.
type fakeNode struct {
	wireconnect.UnimplementedQueueServiceHandler
	wireconnect.UnimplementedTableServiceHandler
	name    string
	cluster *cluster
	proxy   *testkit.Proxy
	// submit, when set, comes before the ordinary answer of the leader; done: its answer is the answer.
	submit func(ctx context.Context, r *wire.SubmitRequest) (answer *wire.SubmitResponse, err error, done bool)
	// deliver, when set, is the Deliver stream.
	deliver func(ctx context.Context, s *connect.BidiStream[wire.DeliverUp, wire.DeliverDown]) error
	// redrive, when set, is what the leader answers.
	redrive func() (*wire.RedriveResponse, error)
	// read is what the leader answers to ReadPayload.
	read func(ctx context.Context, r *wire.ReadPayloadRequest, send func([]byte) error) error
	// pages of Pull; nil: not synced.
	pages []*wire.PullResponse

	mu        sync.Mutex // guards the fields below
	says      string     // leader_api it names when it does not lead, instead of the true one
	lies      bool       // use says
	batches   [][]*wire.Op
	forget    bool // do not keep batches
	busy, top int  // submits under way, and the most there were
	asked     int  // submits that found no leader here
}

func newCluster(t testing.TB, size int, change ...func(*cluster)) *cluster {
	c := &cluster{log: map[string]int{}}
	for _, f := range change {
		f(c)
	}
	for i := range size {
		n := &fakeNode{name: fmt.Sprintf("queue-%d", i), cluster: c}
		c.nodes = append(c.nodes, n)
		n.serve(t)
	}
	c.leader = c.nodes[0]
	return c
}

func (n *fakeNode) serve(t testing.TB) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.proxy = testkit.NewProxy(t, l.Addr().String())
	mux := http.NewServeMux()
	mux.Handle(wireconnect.NewQueueServiceHandler(n))
	mux.Handle(wireconnect.NewTableServiceHandler(n))
	var p http.Protocols
	p.SetUnencryptedHTTP2(n.cluster.tls == nil)
	p.SetHTTP2(n.cluster.tls != nil)
	server := &http.Server{Protocols: &p, TLSConfig: n.cluster.tls.Clone(), ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})}
	var serving sync.WaitGroup
	serving.Go(func() {
		if n.cluster.tls != nil {
			_ = server.ServeTLS(l, "", "")
		} else {
			_ = server.Serve(l)
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
}

func (c *cluster) lead(n *fakeNode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = n
}

// hasty is for tests that wait in vain for a leader; all others have patience with a busy machine.
func hasty(o *Options) { o.LeaderWait = 300 * time.Millisecond }

// client of the whole cluster, with times that suit a test.
func (c *cluster) client(t testing.TB, change ...func(*Options)) *Client {
	o := Options{Token: token, LeaderWait: 10 * time.Second, RPCTimeout: 2 * time.Second}
	for _, n := range c.nodes {
		o.Endpoints = append(o.Endpoints, "http://"+n.proxy.Addr())
	}
	for _, f := range change {
		f(&o)
	}
	client := New(o)
	t.Cleanup(client.Close)
	return client
}

func (c *cluster) committed(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log[id] > 0
}

func (n *fakeNode) refuse() error {
	n.cluster.mu.Lock()
	leader := n.cluster.leader
	n.cluster.mu.Unlock()
	detail := &wire.NotLeader{}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	switch {
	case n.lies:
		detail.LeaderApi = n.says
	case leader != nil:
		detail.LeaderName, detail.LeaderApi = leader.name, leader.proxy.Addr()
	}
	err := connect.NewError(connect.CodeUnavailable, errors.New("not the leader"))
	if d, e := connect.NewErrorDetail(detail); e == nil {
		err.AddDetail(d)
	}
	return err
}

func (n *fakeNode) leads() bool {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	return n.cluster.leader == n
}

// name of an operation in the log.
func opID(op *wire.Op) string {
	switch {
	case op.GetAccept() != nil:
		return string(op.GetAccept().Id)
	case op.GetCancel() != nil:
		return string(op.GetCancel().Id)
	}
	return ""
}

// commit is what the state machine does with a batch.
func (n *fakeNode) commit(r *wire.SubmitRequest) *wire.SubmitResponse {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	n.cluster.raft++
	answer := &wire.SubmitResponse{}
	for _, op := range r.Ops {
		result := &wire.OpResult{Code: wire.Code_CODE_OK, Index: n.cluster.raft}
		if id := opID(op); id != "" {
			result.Repeated = n.cluster.log[id] > 0
			n.cluster.log[id]++
		}
		answer.Results = append(answer.Results, result)
	}
	return answer
}

func all(r *wire.SubmitRequest, code wire.Code) *wire.SubmitResponse {
	answer := &wire.SubmitResponse{}
	for range r.Ops {
		answer.Results = append(answer.Results, &wire.OpResult{Code: code, Detail: "as told"})
	}
	return answer
}

func (n *fakeNode) Submit(ctx context.Context, r *connect.Request[wire.SubmitRequest]) (*connect.Response[wire.SubmitResponse], error) {
	n.mu.Lock()
	if !n.forget {
		n.batches = append(n.batches, r.Msg.Ops)
	}
	n.busy++
	n.top = max(n.top, n.busy)
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.busy--
		n.mu.Unlock()
	}()
	if !n.leads() {
		return nil, n.refuse()
	}
	if n.submit != nil {
		if answer, err, done := n.submit(ctx, r.Msg); done {
			return connect.NewResponse(answer), err
		}
	}
	return connect.NewResponse(n.commit(r.Msg)), nil
}

func (n *fakeNode) Cluster(context.Context, *connect.Request[wire.ClusterRequest]) (*connect.Response[wire.ClusterResponse], error) {
	n.cluster.mu.Lock()
	leader := n.cluster.leader
	n.cluster.mu.Unlock()
	answer := &wire.ClusterResponse{Node: n.name}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case leader == n:
		answer.Leader, answer.LeaderApi = n.name, n.proxy.Addr()
	case n.lies && n.says != "":
		answer.Leader, answer.LeaderApi = "somebody", n.says
	case !n.lies && leader != nil:
		answer.Leader, answer.LeaderApi = leader.name, leader.proxy.Addr()
	}
	return connect.NewResponse(answer), nil
}

func (n *fakeNode) GetCall(_ context.Context, r *connect.Request[wire.GetCallRequest]) (*connect.Response[wire.GetCallResponse], error) {
	if !n.leads() {
		return nil, n.refuse()
	}
	if !n.cluster.committed(string(r.Msg.Id)) {
		return connect.NewResponse(&wire.GetCallResponse{}), nil
	}
	return connect.NewResponse(&wire.GetCallResponse{Call: &wire.Call{Id: r.Msg.Id}}), nil
}

func (n *fakeNode) Redrive(context.Context, *connect.Request[wire.RedriveRequest]) (*connect.Response[wire.RedriveResponse], error) {
	if !n.leads() {
		return nil, n.refuse()
	}
	answer, err := n.redrive()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

func (n *fakeNode) Deliver(ctx context.Context, s *connect.BidiStream[wire.DeliverUp, wire.DeliverDown]) error {
	if n.deliver != nil {
		return n.deliver(ctx, s)
	}
	up, err := s.Receive()
	if err != nil || up.GetHello() == nil {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("no hello: %w", err))
	}
	if !n.leads() {
		return n.refuse()
	}
	if err := s.Send(&wire.DeliverDown{Down: &wire.DeliverDown_Welcome{Welcome: &wire.Welcome{Session: 7, Node: n.name}}}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (n *fakeNode) Pull(_ context.Context, _ *connect.Request[wire.PullRequest], s *connect.ServerStream[wire.PullResponse]) error {
	if n.pages == nil {
		return connect.NewError(connect.CodeUnavailable, errors.New("not synced"))
	}
	for _, p := range n.pages {
		if err := s.Send(p); err != nil {
			return err
		}
	}
	return nil
}

func accept(id string) *wire.Op {
	return &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{Id: []byte(id), Function: "f", Payload: []byte("x"), Size: 1}}}
}

func cancel(id string) *wire.Op {
	return &wire.Op{Op: &wire.Op_Cancel{Cancel: &wire.Cancel{Id: []byte(id)}}}
}

// within bounds a caller's patience.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), d)
	t.Cleanup(stop)
	return ctx
}

// TestMain looks for goroutines of this package that nobody has ended.
func TestMain(m *testing.M) {
	code := m.Run()
	left := func() []string {
		stacks := make([]byte, 4<<20)
		found := map[string]int{}
		for g := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(g, "shared/queueclient.") && !strings.Contains(g, "TestMain") || strings.Contains(g, "http2ClientConn).readLoop") {
				found[g]++
			}
		}
		return slices.Sorted(maps.Keys(found))
	}
	for deadline := time.Now().Add(5 * time.Second); code == 0 && len(left()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			fmt.Printf("goroutines are left:\n%s\n", strings.Join(left(), "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// holdBatches until release is closed; they are carried out then.
func (n *fakeNode) holdBatches(release <-chan struct{}) {
	n.submit = func(context.Context, *wire.SubmitRequest) (*wire.SubmitResponse, error, bool) {
		<-release
		return nil, nil, false
	}
}
