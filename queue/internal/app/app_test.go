package app

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nkeys"

	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

// cluster of nodes in this process: real Raft on real disks, real bus, real RPC. The table is what the test says.
type cluster struct {
	t       *testing.T
	nodes   []*running
	tokens  map[string]string
	secrets string
	members []Member
	seq     uint64
}

type running struct {
	*App
	config Config
	stop   context.CancelFunc
	ended  chan error
}

func newCluster(t *testing.T, size int, change ...func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, secrets: t.TempDir(), tokens: map[string]string{}}
	c.writeSecrets()
	for i := range size {
		ports := testkit.FreeAddresses(t, 3)
		c.members = append(c.members, Member{
			Name: "queue-" + string(rune('0'+i)), RaftAddress: ports[0], APIAddress: ports[1], RoutesAddress: ports[2],
		})
	}
	for _, m := range c.members {
		config := Config{
			Name: m.Name, DataDir: t.TempDir(), Members: c.members, SecretsDir: c.secrets,
			RaftAddress: m.RaftAddress, APIAddress: m.APIAddress, RoutesAddress: m.RoutesAddress,
			BusAddress: "127.0.0.1:0", AdminAddress: "127.0.0.1:0", Log: testLog(t),
		}
		for _, f := range change {
			f(&config)
		}
		c.nodes = append(c.nodes, c.start(config))
	}
	return c
}

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("QUEUE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return testkit.Log(t)
}

func (c *cluster) start(config Config) *running {
	c.t.Helper()
	a, err := New(c.t.Context(), config)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{App: a, config: config, stop: stop, ended: make(chan error, 1)}
	go func() { r.ended <- a.Run(ctx) }()
	c.t.Cleanup(func() { r.halt(c.t) })
	return r
}

func (r *running) halt(t *testing.T) {
	r.stop()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Errorf("%s ended with: %v", r.config.Name, err)
		}
		r.ended <- nil
	case <-time.After(30 * time.Second):
		t.Errorf("%s does not stop", r.config.Name)
	}
}

func (c *cluster) writeSecrets() {
	c.t.Helper()
	write := func(name, value string) {
		if err := os.WriteFile(filepath.Join(c.secrets, name), []byte(value), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, role := range []string{"edge", "queue", "scaler"} {
		pair, err := nkeys.CreateUser()
		if err != nil {
			c.t.Fatal(err)
		}
		seed, _ := pair.Seed()
		public, _ := pair.PublicKey()
		write("bus-"+role+".seed", string(seed))
		write("bus-"+role+".pub", public)
		var token [16]byte
		_, _ = rand.Read(token[:])
		c.tokens[role] = hex.EncodeToString(token[:])
		write("token-"+role, c.tokens[role]+"\n")
	}
	write("routes.password", "between nodes")
}

func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	c.t.Fatalf("not in time: %s", what)
}

// leader waits for a node in office that dispatches.
func (c *cluster) leader() *running {
	c.t.Helper()
	var leader *running
	c.eventually("a leader", func() bool {
		for _, r := range c.nodes {
			if r != nil && r.dispatcher.Stats().Leading && r.ready() == nil {
				leader = r
				return true
			}
		}
		return false
	})
	return leader
}

// function puts one into every node's table.
func (c *cluster) function(name string, change func(*function.Specification), replicas ...string) {
	c.t.Helper()
	c.seq++
	spec := function.Default()
	if change != nil {
		change(&spec)
	}
	for _, r := range c.nodes {
		if r == nil {
			continue
		}
		record := &wire.FunctionRecord{
			Name: name, Version: &wire.Version{Epoch: 1, Seq: c.seq}, Specification: function.Encode(spec), Wanted: int32(len(replicas)),
		}
		for _, name := range replicas {
			record.Replicas = append(record.Replicas, &wire.Replica{Name: name, Host: "127.0.0.1", Ports: []uint32{1}, State: wire.ReplicaState_REPLICA_STATE_READY})
		}
		r.table.Apply(record)
		r.table.MarkSynced()
	}
}

// as gives a client of one role.
func (c *cluster) as(role string, r *running) wireconnect.QueueServiceClient {
	address, _ := r.Addr()
	return wireconnect.NewQueueServiceClient(c.http(), "http://"+address.String(), connect.WithInterceptors(bearer(c.tokens[role])))
}

func (c *cluster) http() *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	c.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

type bearer string

func (b bearer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		r.Header().Set("Authorization", "Bearer "+string(b))
		return next(ctx, r)
	}
}

func (b bearer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, s connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, s)
		conn.RequestHeader().Set("Authorization", "Bearer "+string(b))
		return conn
	}
}

func (bearer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func newID() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	return id
}

func (c *cluster) submit(client wireconnect.QueueServiceClient, ops ...*wire.Op) []*wire.OpResult {
	c.t.Helper()
	answer, err := client.Submit(c.t.Context(), connect.NewRequest(&wire.SubmitRequest{Ops: ops}))
	if err != nil {
		c.t.Fatal(err)
	}
	return answer.Msg.GetResults()
}

func accept(id []byte, function, payload string) *wire.Op {
	return &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{Id: id, Function: function, Payload: []byte(payload), Size: uint64(len(payload))}}}
}

func callback(id []byte, function string, success bool) *wire.Op {
	return &wire.Op{Op: &wire.Op_Callback{Callback: &wire.Callback{Id: id, Function: function, Success: success}}}
}

func (c *cluster) accepted(client wireconnect.QueueServiceClient, function string) []byte {
	c.t.Helper()
	id := newID()
	if r := c.submit(client, accept(id, function, "payload of "+hex.EncodeToString(id)))[0]; r.GetCode() != wire.Code_CODE_OK || r.GetIndex() == 0 {
		c.t.Fatalf("accept: %v", r)
	}
	return id
}

func (c *cluster) call(client wireconnect.QueueServiceClient, id []byte, wait time.Duration) *wire.Call {
	c.t.Helper()
	answer, err := client.GetCall(c.t.Context(), connect.NewRequest(&wire.GetCallRequest{Id: id, WaitMs: uint64(wait.Milliseconds())}))
	if err != nil {
		c.t.Fatal(err)
	}
	return answer.Msg.GetCall()
}

// ended waits for the end of a call and compares it.
func (c *cluster) ended(client wireconnect.QueueServiceClient, id []byte, state wire.CallState, tries uint32) *wire.Call {
	c.t.Helper()
	call := c.call(client, id, 20*time.Second)
	if call.GetState() != state || call.GetTries() != tries {
		c.t.Fatalf("call ended as %s after %d tries, want %s after %d: %v", call.GetState(), call.GetTries(), state, tries, call)
	}
	return call
}

// edge is a delivery stream by hand.
type edge struct {
	c       *cluster
	sending sync.Mutex
	stream  *connect.BidiStreamForClient[wire.DeliverUp, wire.DeliverDown]
	down    chan *wire.DeliverDown
	welcome *wire.Welcome
	cancel  context.CancelFunc
}

// attach opens the stream and keeps its session with heartbeats until the test ends or the edge is cancelled: a busy machine
// takes longer over a test than a silent edge lives.
func (c *cluster) attach(r *running, name, incarnation string, capacity uint32, held ...*wire.Held) *edge {
	c.t.Helper()
	e := c.tryAttach(r, name, incarnation, capacity, held...)
	if e == nil {
		c.t.Fatalf("%s does not lead", r.config.Name)
	}
	return e
}

// tryAttach returns nil when r does not lead.
func (c *cluster) tryAttach(r *running, name, incarnation string, capacity uint32, held ...*wire.Held) *edge {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := &edge{c: c, stream: c.as("edge", r).Deliver(ctx), down: make(chan *wire.DeliverDown, 4096), cancel: cancel}
	c.t.Cleanup(cancel)
	e.send(&wire.DeliverUp{Up: &wire.DeliverUp_Hello{Hello: &wire.Hello{
		Name: name, Incarnation: incarnation, Capacity: &wire.Capacity{MaxHeld: capacity}, Held: held,
	}}})
	go func() {
		defer close(e.down)
		for {
			down, err := e.stream.Receive()
			if err != nil {
				return
			}
			e.down <- down
		}
	}()
	first := e.next("welcome")
	if e.welcome = first.GetWelcome(); e.welcome == nil {
		if first.GetNotLeader() == nil {
			c.t.Fatalf("first is %v", first)
		}
		cancel()
		return nil
	}
	e.beat(ctx)
	return e
}

// attachLeader attaches to whoever leads: on a busy machine that changes for no reason of the test.
func (c *cluster) attachLeader(name, incarnation string, capacity uint32, held ...*wire.Held) (*running, *edge) {
	c.t.Helper()
	var leader *running
	var e *edge
	c.eventually("attached to the leader", func() bool {
		leader = c.leader()
		e = c.tryAttach(leader, name, incarnation, capacity, held...)
		return e != nil
	})
	return leader, e
}

func (e *edge) send(up *wire.DeliverUp) {
	e.c.t.Helper()
	e.sending.Lock()
	defer e.sending.Unlock()
	if err := e.stream.Send(up); err != nil {
		e.c.t.Fatal(err)
	}
}

func (e *edge) next(what string) *wire.DeliverDown {
	e.c.t.Helper()
	select {
	case down, ok := <-e.down:
		if !ok {
			e.c.t.Fatalf("stream ended instead of: %s", what)
		}
		return down
	case <-time.After(15 * time.Second):
		e.c.t.Fatalf("not in time: %s", what)
	}
	return nil
}

// grant skips what else comes.
func (e *edge) grant() *wire.Grant {
	e.c.t.Helper()
	for {
		if g := e.next("grant").GetGrant(); g != nil {
			return g
		}
	}
}

func (e *edge) none(what string, during time.Duration) {
	e.c.t.Helper()
	for timer := time.After(during); ; {
		select {
		case down := <-e.down:
			if down.GetGrant() != nil {
				e.c.t.Fatalf("%s: got %v", what, down)
			}
		case <-timer:
			return
		}
	}
}

func (e *edge) result(g *wire.Grant, outcome wire.TryOutcome, status uint32) {
	e.c.t.Helper()
	e.send(&wire.DeliverUp{Up: &wire.DeliverUp_Result{Result: &wire.TryResult{Id: g.GetId(), Fence: g.GetFence(), Outcome: outcome, Status: status}}})
}

func (e *edge) answer(g *wire.Grant, status uint32) {
	e.c.t.Helper()
	e.result(g, wire.TryOutcome_TRY_OUTCOME_ANSWERED, status)
}

func (e *edge) ack(g *wire.Grant, code wire.Code) {
	e.c.t.Helper()
	for {
		a := e.next("acknowledgement").GetResultAck()
		if a == nil || !bytes.Equal(a.GetId(), g.GetId()) || a.GetFence() != g.GetFence() {
			continue
		}
		if a.GetCode() != code {
			e.c.t.Fatalf("acknowledged with %s, want %s", a.GetCode(), code)
		}
		return
	}
}

// heartbeat with the whole list.
func (e *edge) heartbeat(held ...*wire.Held) {
	e.c.t.Helper()
	e.send(&wire.DeliverUp{Up: &wire.DeliverUp_Heartbeat{Heartbeat: &wire.HeldHeartbeat{Count: uint32(len(held)), Listed: true, Held: held}}})
}

// beat sends an empty heartbeat every second until ctx ends, which the end of the test sees to.
func (e *edge) beat(ctx context.Context) {
	var beating sync.WaitGroup
	e.c.t.Cleanup(func() { e.cancel(); beating.Wait() })
	beating.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				e.sending.Lock()
				_ = e.stream.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Heartbeat{Heartbeat: &wire.HeldHeartbeat{}}})
				e.sending.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
}

func (r *running) metrics(t *testing.T) string {
	t.Helper()
	_, admin := r.Addr()
	answer, err := testkit.Client.Get("http://" + admin.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
