package app

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

// halt one node; the others elect, or were handed the leadership.
func (c *cluster) halt(r *running) {
	c.t.Helper()
	for i, x := range c.nodes {
		if x == r {
			c.nodes[i] = nil
		}
	}
	r.halt(c.t)
}

func TestANewLeaderKeepsSessionsAndSortsOutWhatIsHeld(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.function("f", func(s *function.Specification) { s.NumberParallelRequest = 4 }, "f-0")
	first, e := c.attachLeader("edge-0", "a", 10)
	client := c.as("edge", first)
	ids := [][]byte{c.accepted(client, "f"), c.accepted(client, "f"), c.accepted(client, "f")}
	kept, lost, awaiting := e.grant(), e.grant(), e.grant()
	e.answer(awaiting, 202)
	e.ack(awaiting, wire.Code_CODE_OK)

	c.halt(first) // hands the leadership over
	for {
		if down, ok := <-e.down; !ok {
			t.Fatal("the stream ended without a word")
		} else if down.GetNotLeader() != nil {
			break
		}
	}
	second, e2 := c.attachLeader("edge-0", "a", 10, &wire.Held{Id: kept.GetId(), Fence: kept.GetFence()})
	client = c.as("edge", second)
	if e2.welcome.GetSession() != e.welcome.GetSession() {
		t.Fatalf("session %d, was %d", e2.welcome.GetSession(), e.welcome.GetSession())
	}
	e2.answer(kept, 200) // resent
	e2.ack(kept, wire.Code_CODE_OK)
	c.ended(client, kept.GetId(), stateSucceeded, 1)
	e2.heartbeat() // the second list without it
	again := e2.grant()
	if string(again.GetId()) != string(lost.GetId()) || again.GetTryNumber() != 1 {
		t.Fatalf("grant %v", again)
	}
	e2.answer(lost, 200) // of the old fence
	e2.ack(lost, wire.Code_CODE_STALE)
	e2.answer(again, 200)
	c.ended(client, lost.GetId(), stateSucceeded, 1)
	if r := c.submit(client, callback(awaiting.GetId(), "f", true))[0]; r.GetCode() != wire.Code_CODE_OK {
		t.Fatalf("callback at the new leader: %v", r)
	}
	for _, id := range ids {
		c.ended(client, id, stateSucceeded, 1)
	}
}

func TestASessionThatDoesNotComeBackToTheNewLeaderEndsThere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.function("f", retries(0), "f-0")
	first, e := c.attachLeader("edge-0", "a", 10)
	id := c.accepted(c.as("edge", first), "f")
	e.grant()
	handed := time.Now()
	c.halt(first)
	second, other := c.attachLeader("edge-1", "b", 10)
	g := other.grant()
	if string(g.GetId()) != string(id) || g.GetTryNumber() != 2 {
		t.Fatalf("grant %v", g)
	}
	if age := time.Since(handed); age < wire.EdgeSessionTTL {
		t.Errorf("the timer was not restarted in full: the session ended after %s", age)
	}
	facts, err := c.as("scaler", second).Facts(t.Context(), connect.NewRequest(&wire.FactsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	vanished := map[string]bool{}
	for _, s := range facts.Msg.GetSessions() {
		vanished[s.GetName()] = s.GetVanished()
	}
	if !vanished["edge-0"] || vanished["edge-1"] {
		t.Errorf("sessions %v", facts.Msg.GetSessions())
	}
}

func TestAFollowerNamesTheLeaderAndHandsNothingOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	leader := c.leader()
	leaderAPI, _ := leader.Addr()
	for _, r := range c.nodes {
		if r == leader {
			continue
		}
		c.eventually("follower knows the leader", func() bool { return r.ready() == nil })
		client := c.as("edge", r)
		_, submitErr := client.Submit(t.Context(), connect.NewRequest(&wire.SubmitRequest{Ops: []*wire.Op{accept(newID(), "f", "x")}}))
		_, readErr := client.GetCall(t.Context(), connect.NewRequest(&wire.GetCallRequest{Id: newID()}))
		_, demandErr := client.Demand(t.Context(), connect.NewRequest(&wire.DemandRequest{}))
		for what, err := range map[string]error{"submit": submitErr, "read": readErr, "demand": demandErr} {
			var e *connect.Error
			if !errors.As(err, &e) || e.Code() != connect.CodeUnavailable || len(e.Details()) != 1 {
				t.Fatalf("%s: %v", what, err)
			}
			detail, err := e.Details()[0].Value()
			hint, ok := detail.(*wire.NotLeader)
			if err != nil || !ok || hint.GetLeaderName() != leader.config.Name || hint.GetLeaderApi() != leaderAPI.String() {
				t.Errorf("%s: detail %v, %v", what, detail, err)
			}
		}
		stream := client.Deliver(t.Context())
		if err := stream.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Hello{Hello: &wire.Hello{Name: "edge-0", Incarnation: "a"}}}); err != nil {
			t.Fatal(err)
		}
		down, err := stream.Receive()
		if err != nil || down.GetNotLeader().GetLeaderName() != leader.config.Name {
			t.Errorf("stream: %v, %v", down, err)
		}
		_ = stream.CloseRequest()
		_ = stream.CloseResponse()
		described, err := client.Cluster(t.Context(), connect.NewRequest(&wire.ClusterRequest{}))
		if err != nil || described.Msg.GetLeader() != leader.config.Name || len(described.Msg.GetMembers()) != 3 {
			t.Errorf("cluster: %v, %v", described, err)
		}
	}
	c.eventually("an installation id on every node", func() bool {
		seen := map[string]bool{}
		for _, r := range c.nodes {
			r.node.View(func(m *fsm.Machine) { seen[m.Installation()] = true })
		}
		return len(seen) == 1 && !seen[""]
	})
}

func TestRolesMayDoWhatTheyNeedAndNothingElse(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	heartbeat := connect.NewRequest(&wire.HeartbeatRequest{Session: 1})
	if _, err := c.as("edge", leader).Heartbeat(t.Context(), heartbeat); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("edge sends a scaler's heartbeat: %v", err)
	}
	stream := c.as("scaler", leader).Deliver(t.Context())
	_ = stream.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Hello{Hello: &wire.Hello{Name: "x", Incarnation: "y"}}})
	if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("scaler opens a delivery stream: %v", err)
	}
	_ = stream.CloseResponse()
	c.tokens["nobody"] = "guessed"
	if _, err := c.as("nobody", leader).Facts(t.Context(), connect.NewRequest(&wire.FactsRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a stranger reads the facts: %v", err)
	}
}

func TestScalersHoldTheLockAndHandItOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("scaler", leader)
	open := func(name string) uint64 {
		return c.submit(client, &wire.Op{Op: &wire.Op_OpenSession{OpenSession: &wire.OpenSession{
			Name: name, Incarnation: "i", Kind: wire.SessionKind_SESSION_KIND_SCALER,
		}}})[0].GetIndex()
	}
	acquire := func(session uint64) *wire.OpResult {
		return c.submit(client, &wire.Op{Op: &wire.Op_AcquireLock{AcquireLock: &wire.AcquireLock{Lock: wire.ScalerLock, Session: session}}})[0]
	}
	a, b := open("scaler-0"), open("scaler-1")
	beat := func(session uint64) wire.Code {
		answer, err := client.Heartbeat(t.Context(), connect.NewRequest(&wire.HeartbeatRequest{Session: session, Incarnation: "i"}))
		if err != nil {
			t.Fatal(err)
		}
		return answer.Msg.GetCode()
	}
	if beat(a) != wire.Code_CODE_OK || beat(b+1000) != wire.Code_CODE_STALE {
		t.Fatal("heartbeats")
	}
	token := acquire(a)
	if token.GetCode() != wire.Code_CODE_OK || token.GetIndex() == 0 {
		t.Fatalf("lock: %v", token)
	}
	if r := acquire(b); r.GetCode() != wire.Code_CODE_CONFLICT {
		t.Fatalf("lock of two: %v", r)
	}
	if r := c.submit(client, &wire.Op{Op: &wire.Op_CloseSession{CloseSession: &wire.CloseSession{Session: a}}})[0]; r.GetCode() != wire.Code_CODE_OK {
		t.Fatalf("close: %v", r)
	}
	if r := acquire(b); r.GetCode() != wire.Code_CODE_OK || r.GetIndex() <= token.GetIndex() {
		t.Fatalf("lock after its holder left: %v", r)
	}
	if beat(a) != wire.Code_CODE_STALE {
		t.Fatal("a closed session lives")
	}
}

func TestDemandAndFactsReachTheBus(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	seed, err := os.ReadFile(filepath.Join(c.secrets, "bus-scaler.seed"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	public, _ := key.PublicKey()
	bus, err := nats.Connect(leader.bus.URL(), nats.Nkey(public, key.Sign), nats.CustomInboxPrefix("_INBOX.scaler"))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	reports := make(chan *wire.DemandReport, 256)
	facts := make(chan *wire.FactsChanged, 16)
	_, err1 := bus.Subscribe(wire.SubjectDemand, func(m *nats.Msg) {
		var r wire.DemandReport
		if proto.Unmarshal(m.Data, &r) == nil {
			reports <- &r
		}
	})
	_, err2 := bus.Subscribe(wire.SubjectFacts, func(m *nats.Msg) {
		var f wire.FactsChanged
		if proto.Unmarshal(m.Data, &f) == nil {
			facts <- &f
		}
	})
	if err := errors.Join(err1, err2, bus.Flush()); err != nil {
		t.Fatal(err)
	}
	client := c.as("scaler", leader)
	begin := time.Now()
	c.accepted(client, "nobody-knows-it")
	for r := range reports {
		if len(r.GetFunctions()) > 0 {
			if f := r.GetFunctions()[0]; f.GetFunction() != "nobody-knows-it" || f.GetQueued() != 1 {
				t.Fatalf("report %v", r)
			}
			break
		}
	}
	if took := time.Since(begin); took > 700*time.Millisecond {
		t.Errorf("the first queued call was reported after %s", took)
	}
	if r := c.submit(client, &wire.Op{Op: &wire.Op_SetScale{SetScale: &wire.SetScale{Function: "f", Replicas: 3, ForMs: 60_000}}})[0]; r.GetCode() != wire.Code_CODE_OK {
		t.Fatalf("scale: %v", r)
	}
	select {
	case <-facts:
	case <-time.After(5 * time.Second):
		t.Error("no hint of the changed override")
	}
	c.submit(client, &wire.Op{Op: &wire.Op_RecordActivity{RecordActivity: &wire.RecordActivity{Activities: []*wire.Activity{{Function: "f", AgeMs: 5000}}}}})
	answer, err := client.Facts(t.Context(), connect.NewRequest(&wire.FactsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	m := answer.Msg
	if len(m.GetOverrides()) != 1 || m.GetOverrides()[0].GetReplicas() != 3 || len(m.GetHistory()) != 1 {
		t.Fatalf("facts %v", m)
	}
	if age := m.GetNowUnixMs() - m.GetHistory()[0].GetAtUnixMs(); age < 5000 || age > 8000 {
		t.Errorf("activity is %d ms old", age)
	}
	demand, err := client.Demand(t.Context(), connect.NewRequest(&wire.DemandRequest{}))
	if err != nil || !demand.Msg.GetFull() || len(demand.Msg.GetFunctions()) != 1 {
		t.Errorf("demand %v, %v", demand, err)
	}
}

func TestNoTableNoGrants(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	e := c.attach(leader, "edge-0", "a", 10)
	client := c.as("edge", leader)
	c.accepted(client, "f")
	e.none("a grant without a table", 150*time.Millisecond)
	c.function("f", nil) // asleep
	e.none("a grant without a replica", 150*time.Millisecond)
	c.function("f", nil, "f-0")
	e.answer(e.grant(), 200)
}

func TestNodesPullTheTableFromOneAnother(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.leader()
	spec := function.Default()
	one := c.nodes[1]
	one.table.Apply(&wire.FunctionRecord{Name: "f", Version: &wire.Version{Epoch: 7, Seq: 1}, Specification: function.Encode(spec)})
	one.table.MarkSynced()
	c.eventually("the table on every node", func() bool {
		for _, r := range c.nodes {
			if _, ok := r.table.Get("f"); !ok || !r.table.Synced() {
				return false
			}
		}
		return true
	})
	address, _ := c.nodes[0].Addr()
	tables := wireconnect.NewTableServiceClient(c.http(), "http://"+address.String(), connect.WithInterceptors(bearer(c.tokens["edge"])))
	stream, err := tables.Pull(t.Context(), connect.NewRequest(&wire.PullRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	if !stream.Receive() || stream.Msg().GetDigest().GetSender() != "queue-0" || len(stream.Msg().GetRecords()) != 1 {
		t.Fatalf("page %v, %v", stream.Msg(), stream.Err())
	}
}

// Under load, with the leader handed on twice: every accepted call is delivered and ends, and the books balance.
func TestBooksBalanceUnderLoadAndNewLeaders(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.leader()
	c.function("f", func(s *function.Specification) {
		s.NumberParallelRequest, s.NumberParallelRequestPerPod = 64, 32
		s.Configuration.DefaultAsync.TimeoutRetries = []int{0, 0, 0, 0, 0, 0}
	}, "f-0", "f-1")
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	var running sync.WaitGroup
	delivered := sync.Map{}
	for _, name := range []string{"edge-0", "edge-1"} {
		running.Go(func() { c.deliverAll(ctx, name, &delivered) })
	}
	const callers, each = 16, 15
	var accepted sync.Map
	var writers sync.WaitGroup
	var done atomic.Int64
	for range callers {
		writers.Go(func() {
			for range each {
				id := newID()
				for ctx.Err() == nil && !c.tryAccept(ctx, id) {
					time.Sleep(5 * time.Millisecond) // black box: another node may lead by now
				}
				accepted.Store(string(id), true)
				done.Add(1)
			}
		})
	}
	for round := range 2 {
		c.eventually("progress", func() bool { return done.Load() > int64((round+1)*callers*each/3) })
		transfer, stop := context.WithTimeout(t.Context(), 3*time.Second)
		if err := c.leader().node.Transfer(transfer); err != nil {
			t.Logf("hand-over %d: %v", round, err)
		}
		stop()
	}
	writers.Wait()
	leader := c.leader()
	c.eventually("an empty queue", func() bool {
		empty := false
		leader.node.View(func(m *fsm.Machine) {
			n := m.CountersOf("f")
			empty = n.Unfinished() == 0 && n.Accepted == callers*each
		})
		return empty
	})
	cancel()
	running.Wait()
	accepted.Range(func(id, _ any) bool {
		if _, ok := delivered.Load(id); !ok {
			t.Errorf("accepted and never delivered: %x", id)
		}
		return true
	})
	leader.node.View(func(m *fsm.Machine) {
		if n := m.CountersOf("f"); !n.Conserved() || n.Succeeded != callers*each {
			t.Errorf("counters %+v", n)
		}
	})
}

func (c *cluster) tryAccept(ctx context.Context, id []byte) bool {
	for _, r := range c.nodes {
		answer, err := c.as("edge", r).Submit(ctx, connect.NewRequest(&wire.SubmitRequest{Ops: []*wire.Op{accept(id, "f", string(id))}}))
		if err == nil && answer.Msg.GetResults()[0].GetCode() == wire.Code_CODE_OK {
			return true
		}
	}
	return false
}

// deliverAll is an edge that answers everything with 200 at once and goes where the leader is.
func (c *cluster) deliverAll(ctx context.Context, name string, delivered *sync.Map) {
	for n := 0; ctx.Err() == nil; n++ {
		stream := c.as("edge", c.nodes[n%len(c.nodes)]).Deliver(ctx)
		_ = stream.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Hello{Hello: &wire.Hello{Name: name, Incarnation: "a", Capacity: &wire.Capacity{MaxHeld: 100}}}})
		var sending sync.Mutex
		over := make(chan struct{})
		var beating sync.WaitGroup
		beating.Go(func() {
			tick := time.NewTicker(300 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					sending.Lock()
					_ = stream.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Heartbeat{Heartbeat: &wire.HeldHeartbeat{}}})
					sending.Unlock()
				case <-over:
					return
				}
			}
		})
		for {
			down, err := stream.Receive()
			if err != nil || down.GetNotLeader() != nil {
				break
			}
			switch g := down.GetGrant(); {
			case g != nil:
				delivered.Store(string(g.GetId()), true)
				sending.Lock()
				_ = stream.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Result{Result: &wire.TryResult{
					Id: g.GetId(), Fence: g.GetFence(), Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, Status: http.StatusOK,
				}}})
				sending.Unlock()
			case down.GetListHeld() != nil:
				sending.Lock()
				_ = stream.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Heartbeat{Heartbeat: &wire.HeldHeartbeat{Listed: true}}})
				sending.Unlock()
			}
		}
		close(over)
		beating.Wait()
		_ = stream.CloseRequest()
		_ = stream.CloseResponse()
		time.Sleep(5 * time.Millisecond)
	}
}
