package app

import (
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	stateSucceeded = wire.CallState_CALL_STATE_SUCCEEDED
	stateDead      = wire.CallState_CALL_STATE_DEAD
)

func retries(seconds ...int) func(*function.Specification) {
	return func(s *function.Specification) {
		s.Configuration.DefaultAsync.TimeoutRetries = seconds
		s.Configuration.DefaultAsync.HttpStatusRetries = []int{500, 503}
	}
}

func TestACallIsAcceptedGrantedAnsweredAndDone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("fibonacci", nil, "fibonacci-0")
	id := c.accepted(client, "fibonacci")
	e := c.attach(leader, "edge-0", "a", 10)
	g := e.grant()
	if string(g.GetId()) != string(id) || g.GetReplica() != "fibonacci-0" || g.GetTryNumber() != 1 || g.GetFence() == 0 ||
		!strings.HasPrefix(string(g.GetPayload()), "payload of ") || g.GetSize() != uint64(len(g.GetPayload())) || g.GetDeadlineMs() == 0 {
		t.Fatalf("grant %v", g)
	}
	if call := c.call(client, id, 0); call.GetState() != wire.CallState_CALL_STATE_RUNNING {
		t.Fatalf("call %v", call)
	}
	e.answer(g, 200)
	e.ack(g, wire.Code_CODE_OK)
	if call := c.ended(client, id, stateSucceeded, 1); call.GetLastStatus() != 200 || call.GetMaxTries() == 0 {
		t.Fatalf("call %v", call)
	}
	e.answer(g, 500) // doubled, and late
	e.ack(g, wire.Code_CODE_STALE)
	if repeat := c.submit(client, accept(id, "fibonacci", "x"))[0]; !repeat.GetRepeated() || repeat.GetCode() != wire.Code_CODE_OK {
		t.Fatalf("repeat %v", repeat)
	}
	text := leader.metrics(t)
	for _, line := range []string{
		`slimfaas_async_accepted_total{function="fibonacci"} 1`, `slimfaas_async_succeeded_total{function="fibonacci"} 1`,
		`slimfaas_async_running{function="fibonacci"} 0`, `slimfaas_function_queue_ready_items{function="fibonacci"} 0`,
		`slimfaas_queue_leader 1`, `slimfaas_queue_applied_index `,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("metrics lack %q", line)
		}
	}
}

func TestARetryComesAfterItsDelayAndTheLastOneIsTheEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(1), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	id := c.accepted(client, "f")
	g := e.grant()
	begin := time.Now()
	e.answer(g, 503)
	e.ack(g, wire.Code_CODE_OK)
	if call := c.call(client, id, 0); call.GetState() != wire.CallState_CALL_STATE_WAITING || call.GetNextTryUnixMs() == 0 {
		t.Fatalf("call %v", call)
	}
	again := e.grant()
	if waited := time.Since(begin); waited < 990*time.Millisecond || waited > 2500*time.Millisecond {
		t.Errorf("the retry came after %s", waited)
	}
	if again.GetTryNumber() != 2 || again.GetMaxTries() != 2 || again.GetFence() == g.GetFence() {
		t.Fatalf("grant %v", again)
	}
	e.result(again, wire.TryOutcome_TRY_OUTCOME_NO_ANSWER, 0)
	e.ack(again, wire.Code_CODE_OK)
	if call := c.ended(client, id, stateDead, 2); call.GetLastError() != "no answer" {
		t.Fatalf("call %v", call)
	}
}

func TestAStatusThatIsNotRetriedIsTheEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(1), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	id := c.accepted(client, "f")
	e.answer(e.grant(), 404)
	if call := c.ended(client, id, stateDead, 1); call.GetLastError() != "status 404 is not retried" || call.GetLastStatus() != 404 {
		t.Fatalf("call %v", call)
	}
}

func TestAReleasedGrantComesAgainAndBurnsNoTry(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	id := c.accepted(client, "f")
	g := e.grant()
	e.result(g, wire.TryOutcome_TRY_OUTCOME_RELEASED, 0)
	e.ack(g, wire.Code_CODE_OK)
	again := e.grant()
	if again.GetTryNumber() != 1 || again.GetFence() == g.GetFence() {
		t.Fatalf("grant %v", again)
	}
	e.answer(again, 200)
	c.ended(client, id, stateSucceeded, 1)
}

func TestLimitsOfAFunctionAndOfAReplicaHold(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", func(s *function.Specification) { s.NumberParallelRequest, s.NumberParallelRequestPerPod = 3, 2 }, "f-0", "f-1")
	e := c.attach(leader, "edge-0", "a", 100)
	for range 5 {
		c.accepted(client, "f")
	}
	per := map[string]int{}
	var first *wire.Grant
	for range 3 {
		g := e.grant()
		per[g.GetReplica()]++
		first = g
	}
	if per["f-0"]+per["f-1"] != 3 || per["f-0"] > 2 || per["f-1"] > 2 {
		t.Fatalf("slots %v", per)
	}
	e.none("a fourth grant", 100*time.Millisecond)
	e.answer(first, 200)
	if g := e.grant(); g.GetReplica() != first.GetReplica() {
		t.Errorf("the free slot is at %s, the grant for %s", first.GetReplica(), g.GetReplica())
	}
}

func TestCallbackAfterA202(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", func(s *function.Specification) { s.NumberParallelRequest = 1 }, "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	id, next := c.accepted(client, "f"), c.accepted(client, "f")
	g := e.grant()
	e.answer(g, 202)
	e.ack(g, wire.Code_CODE_OK)
	if call := c.call(client, id, 0); call.GetState() != wire.CallState_CALL_STATE_AWAITING {
		t.Fatalf("call %v", call)
	}
	e.none("a grant while the slot is kept", 100*time.Millisecond)
	if r := c.submit(client, callback(id, "other", true), callback(newID(), "f", true)); r[0].GetCode() != wire.Code_CODE_NOT_FOUND || r[1].GetCode() != wire.Code_CODE_NOT_FOUND {
		t.Fatalf("results %v", r)
	}
	if r := c.submit(client, callback(id, "f", true))[0]; r.GetCode() != wire.Code_CODE_OK {
		t.Fatalf("result %v", r)
	}
	c.ended(client, id, stateSucceeded, 1)
	if g := e.grant(); string(g.GetId()) != string(next) {
		t.Fatalf("grant %v", g)
	}
	if r := c.submit(client, callback(id, "f", true))[0]; r.GetCode() != wire.Code_CODE_NOT_FOUND {
		t.Fatalf("second callback: %v", r)
	}
}

func TestCallbackBeforeThe202MakesTheResultStale(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	id := c.accepted(client, "f")
	g := e.grant()
	if r := c.submit(client, callback(id, "f", false))[0]; r.GetCode() != wire.Code_CODE_OK {
		t.Fatalf("result %v", r)
	}
	if w := e.next("withdraw").GetWithdraw(); w.GetFence() != g.GetFence() {
		t.Fatalf("withdraw %v", w)
	}
	e.answer(g, 202)
	e.ack(g, wire.Code_CODE_STALE)
	c.ended(client, id, stateDead, 1) // 500, and there is no second try
}

func TestCallsOfALostEdgeGoToAnother(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(0, 0), "f-0")
	lost := c.attach(leader, "edge-0", "a", 10)
	id := c.accepted(client, "f")
	lost.grant()
	begin := time.Now()
	lost.cancel()
	e := c.attach(leader, "edge-1", "b", 10)
	g := e.grant()
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("redelivered after %s", took)
	}
	if string(g.GetId()) != string(id) || g.GetTryNumber() != 2 {
		t.Fatalf("grant %v", g)
	}
	e.answer(g, 200)
	c.ended(client, id, stateSucceeded, 2)
}

func TestANewIncarnationEndsTheOldSessionAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(0), "f-0")
	old := c.attach(leader, "edge-0", "a", 10)
	c.accepted(client, "f")
	old.grant()
	begin := time.Now()
	e := c.attach(leader, "edge-0", "b", 10)
	if g := e.grant(); g.GetTryNumber() != 2 || time.Since(begin) > 2*time.Second {
		t.Fatalf("grant %v after %s", g, time.Since(begin))
	}
	if e.welcome.GetSession() == old.welcome.GetSession() {
		t.Error("same session")
	}
}

func TestAGrantThatTheEdgeDoesNotHoldIsReleased(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", func(s *function.Specification) { s.NumberParallelRequest = 2 }, "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	c.accepted(client, "f")
	c.accepted(client, "f")
	kept, dropped := e.grant(), e.grant()
	held := &wire.Held{Id: kept.GetId(), Fence: kept.GetFence()}
	// A list that overtakes the end of the grant's own sending does not count, so the edge answers for as long as it is asked.
	e.heartbeat(held)
	e.heartbeat(held)
	var again *wire.Grant
	for again == nil {
		down := e.next("the dropped call's next grant")
		if down.GetListHeld() != nil {
			e.heartbeat(held)
		}
		again = down.GetGrant()
	}
	if string(again.GetId()) != string(dropped.GetId()) || again.GetTryNumber() != 1 {
		t.Fatalf("grant %v", again)
	}
	e.send(&wire.DeliverUp{Up: &wire.DeliverUp_Heartbeat{Heartbeat: &wire.HeldHeartbeat{Count: 7, Hash: 7}}})
	for e.next("a request for the list").GetListHeld() == nil {
	}
}

func TestABigPayloadComesInFrames(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", nil, "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	payload := strings.Repeat("0123456789abcdef", 900<<10/16)
	id := newID()
	ops := []*wire.Op{{Op: &wire.Op_Accept{Accept: &wire.Accept{Id: id, Function: "f", Payload: []byte(payload[:wire.MaxFrame]), Size: uint64(len(payload))}}}}
	for at := wire.MaxFrame; at < len(payload); at += wire.MaxFrame {
		ops = append(ops, &wire.Op{Op: &wire.Op_AcceptFrame{AcceptFrame: &wire.AcceptFrame{
			Id: id, Offset: uint64(at), Data: []byte(payload[at:min(at+wire.MaxFrame, len(payload))]),
		}}})
	}
	for _, r := range c.submit(client, ops...) {
		if r.GetCode() != wire.Code_CODE_OK {
			t.Fatalf("result %v", r)
		}
	}
	g := e.grant()
	got := string(g.GetPayload())
	for len(got) < len(payload) {
		f := e.next("frame").GetGrantFrame()
		if f.GetOffset() != uint64(len(got)) || f.GetFence() != g.GetFence() {
			t.Fatalf("frame at %d, have %d", f.GetOffset(), len(got))
		}
		got += string(f.GetData())
	}
	if got != payload || g.GetSize() != uint64(len(payload)) {
		t.Error("the payload has changed on its way")
	}
}

func TestAFullQueueRefusesWhatIsNewAndRecognisesWhatIsNot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) { config.MaxUnfinished = 2 })
	client := c.as("edge", c.leader())
	first := c.accepted(client, "f")
	r := c.submit(client, accept(newID(), "f", "x"), accept(newID(), "f", "x"), accept(first, "f", "x"), callback(newID(), "f", true))
	for i, want := range []wire.Code{wire.Code_CODE_OK, wire.Code_CODE_FULL, wire.Code_CODE_OK, wire.Code_CODE_NOT_FOUND} {
		if r[i].GetCode() != want {
			t.Errorf("operation %d: %v, want %s", i, r[i], want)
		}
	}
	if !r[2].GetRepeated() {
		t.Error("the repeat is not recognised")
	}
}

func TestMalformedOperationsAreRefusedOneByOne(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	client := c.as("edge", c.leader())
	good := newID()
	late := accept(newID(), "f", "x")
	late.GetAccept().DelayMs = uint64(wire.MaxDelay.Milliseconds()) + 1
	unhashed := accept(newID(), "f", "x")
	unhashed.GetAccept().IdempotencyKey = "k"
	long := accept(newID(), "f", "x")
	long.GetAccept().IdempotencyKey, long.GetAccept().RequestHash = strings.Repeat("k", 201), make([]byte, 16)
	big := accept(newID(), "f", "x")
	big.GetAccept().Size = wire.MaxPayload + 1
	ops := []*wire.Op{
		accept([]byte("short"), "f", "x"), accept(newID(), "", "x"), accept(newID(), strings.Repeat("f", 254), "x"), late, big, unhashed, long,
		{}, {Op: &wire.Op_AcceptFrame{AcceptFrame: &wire.AcceptFrame{Id: newID()}}}, accept(good, "f", "x"),
	}
	want := []wire.Code{
		wire.Code_CODE_INVALID, wire.Code_CODE_INVALID, wire.Code_CODE_INVALID, wire.Code_CODE_INVALID, wire.Code_CODE_TOO_LARGE,
		wire.Code_CODE_INVALID, wire.Code_CODE_INVALID,
		wire.Code_CODE_INVALID, wire.Code_CODE_INVALID, wire.Code_CODE_OK,
	}
	results := c.submit(client, ops...)
	for i, r := range results {
		if r.GetCode() != want[i] {
			t.Errorf("operation %d: %v, want %s", i, r, want[i])
		}
	}
	if !strings.Contains(results[3].GetDetail(), "720h") {
		t.Errorf("detail %q", results[3].GetDetail())
	}
	if call := c.call(client, good, 0); call.GetState() != wire.CallState_CALL_STATE_QUEUED {
		t.Errorf("call %v", call)
	}
}
