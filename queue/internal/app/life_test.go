package app

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const (
	waiting   = wire.CallState_CALL_STATE_WAITING
	cancelled = wire.CallState_CALL_STATE_CANCELLED
)

// acceptedWith is accepted for a call with options; the id is the call's as the queue says it.
func (c *cluster) acceptedWith(client wireconnect.QueueServiceClient, function string, options func(*wire.Accept)) []byte {
	c.t.Helper()
	id := newID()
	op := accept(id, function, "x")
	options(op.GetAccept())
	if r := c.submit(client, op)[0]; r.GetCode() != wire.Code_CODE_OK || r.GetRepeated() {
		c.t.Fatalf("accept: %v", r)
	}
	return id
}

func keyed(key string, hash byte) func(*wire.Accept) {
	return func(a *wire.Accept) {
		a.IdempotencyKey, a.RequestHash = key, bytes.Repeat([]byte{hash}, wire.RequestHashSize)
	}
}

func TestAKeyMakesARepeatOfTheSameRequestAndRefusesAnother(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) { config.MaxKeys, config.MaxUnfinished = 2, 3 })
	client := c.as("edge", c.leader())
	first := c.acceptedWith(client, "f", keyed("k", 1))
	c.acceptedWith(client, "g", keyed("k", 1))
	c.accepted(client, "f") // now the queue is full, too
	same, other, fresh := accept(newID(), "f", "x"), accept(newID(), "f", "y"), accept(newID(), "f", "x")
	keyed("k", 1)(same.GetAccept())
	keyed("k", 2)(other.GetAccept())
	keyed("new", 1)(fresh.GetAccept())
	r := c.submit(client, same, other)
	if r[0].GetCode() != wire.Code_CODE_OK || !r[0].GetRepeated() || !bytes.Equal(r[0].GetId(), first) {
		t.Errorf("the same request: %v", r[0])
	}
	if r[1].GetCode() != wire.Code_CODE_CONFLICT {
		t.Errorf("another request: %v", r[1])
	}
	c.submit(client, &wire.Op{Op: &wire.Op_Cancel{Cancel: &wire.Cancel{Id: first}}})
	if r := c.submit(client, fresh)[0]; r.GetCode() != wire.Code_CODE_FULL || !strings.Contains(r.GetDetail(), "keys") {
		t.Errorf("a key too many: %v", r)
	}
	c.accepted(client, "f") // without a key there is room
	if text := c.leader().metrics(t); !strings.Contains(text, `slimfaas_async_accepted_total{function="f"} 3`) ||
		!strings.Contains(text, "slimfaas_queue_idempotency_keys 2") {
		t.Error("repeats and refusals were counted, or keys were not")
	}
}

func TestADelayedCallIsCancelledBeforeItsTime(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	id := c.acceptedWith(client, "f", func(a *wire.Accept) { a.DelayMs = 60_000 })
	begin := time.Now()
	soon := c.acceptedWith(client, "f", func(a *wire.Accept) { a.DelayMs = 300 })
	if g := e.grant(); !bytes.Equal(g.GetId(), soon) || time.Since(begin) < 290*time.Millisecond || time.Since(begin) > 5*time.Second {
		t.Errorf("granted after %v: %v", time.Since(begin), g)
	}
	if call := c.call(client, id, 0); call.GetState() != waiting || call.GetNextTryUnixMs() == 0 {
		t.Fatalf("call %v", call)
	}
	cancel := &wire.Op{Op: &wire.Op_Cancel{Cancel: &wire.Cancel{Id: id}}}
	if r := c.submit(client, cancel, cancel); r[0].GetCode() != wire.Code_CODE_OK || r[1].GetCode() != wire.Code_CODE_CONFLICT {
		t.Fatalf("results %v", r)
	}
	c.ended(client, id, cancelled, 0)
}

func TestACallOverItsMaximumAgeIsADeadLetterThatCanBeRedrivenAndPurged(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	aged := func(a *wire.Accept) { a.MaxAgeMs = 200 }
	first, second := c.acceptedWith(client, "f", aged), c.acceptedWith(client, "f", aged)
	for _, id := range [][]byte{first, second} {
		if call := c.ended(client, id, stateDead, 0); !strings.Contains(call.GetLastError(), "expired") {
			t.Fatalf("call %v", call)
		}
	}
	page := func(after []byte, limit uint32) *wire.ListDeadResponse {
		r, err := client.ListDead(t.Context(), connect.NewRequest(&wire.ListDeadRequest{Function: "f", Limit: limit, After: after}))
		if err != nil {
			t.Fatal(err)
		}
		return r.Msg
	}
	newest := page(nil, 1)
	if len(newest.GetCalls()) != 1 || !strings.Contains(newest.GetCalls()[0].GetLastError(), "expired") {
		t.Fatalf("first page %v", newest)
	}
	oldest := page(newest.GetCalls()[0].GetId(), 0)
	if len(oldest.GetCalls()) != 1 || bytes.Equal(oldest.GetCalls()[0].GetId(), newest.GetCalls()[0].GetId()) {
		t.Fatalf("second page %v", oldest)
	}
	if beyond := page(oldest.GetCalls()[0].GetId(), 0); beyond.GetCode() != wire.Code_CODE_OK || len(beyond.GetCalls()) != 0 {
		t.Fatalf("third page %v", beyond)
	}
	redriven, err := client.Redrive(t.Context(), connect.NewRequest(&wire.RedriveRequest{Function: "f", Id: first}))
	if err != nil || redriven.Msg.GetCount() != 1 {
		t.Fatalf("redriving one: %v, %v", redriven, err)
	}
	if r := page(first, 0); r.GetCode() != wire.Code_CODE_NOT_FOUND {
		t.Fatalf("behind a call that is not dead: %v", r)
	}
	c.function("f", retries(), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	g := e.grant()
	if !bytes.Equal(g.GetId(), first) || g.GetTryNumber() != 1 {
		t.Fatalf("grant %v", g)
	}
	e.answer(g, 200)
	c.ended(client, first, stateSucceeded, 1)
	purged, err := client.Purge(t.Context(), connect.NewRequest(&wire.PurgeRequest{Function: "f"}))
	if err != nil || purged.Msg.GetCount() != 1 {
		t.Fatalf("purging: %v, %v", purged, err)
	}
	if again, err := client.Redrive(t.Context(), connect.NewRequest(&wire.RedriveRequest{Function: "f"})); err != nil || again.Msg.GetCount() != 0 {
		t.Fatalf("redriving none: %v, %v", again, err)
	}
	text := leader.metrics(t)
	for _, line := range []string{
		`slimfaas_async_accepted_total{function="f"} 2`, `slimfaas_async_redriven_total{function="f"} 1`,
		`slimfaas_async_dead_total{function="f"} 2`, `slimfaas_async_succeeded_total{function="f"} 1`, `slimfaas_async_queued{function="f"} 0`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("metrics lack %q", line)
		}
	}
}

func TestWhatTheFunctionAnsweredIsKeptForTheCallerWhoAsked(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	answer := bytes.Repeat([]byte("answer "), wire.MaxAnswerBody/7) // larger than an entry that gathers
	result := func(id []byte) *wire.GetResultResponse {
		r, err := client.GetResult(t.Context(), connect.NewRequest(&wire.GetResultRequest{Id: id}))
		if err != nil {
			t.Fatal(err)
		}
		return r.Msg
	}
	kept := c.acceptedWith(client, "f", func(a *wire.Accept) { a.KeepResultMs = 60_000 })
	g := e.grant()
	if !g.GetKeepResult() {
		t.Fatalf("grant %v", g)
	}
	if r := result(kept); r.GetCall().GetFinishedUnixMs() != 0 || len(r.GetAnswer()) != 0 {
		t.Fatalf("while it runs: %v", r)
	}
	e.send(&wire.DeliverUp{Up: &wire.DeliverUp_Result{Result: &wire.TryResult{
		Id: g.GetId(), Fence: g.GetFence(), Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, Status: 200, Answer: answer,
	}}})
	e.ack(g, wire.Code_CODE_OK)
	if r := result(kept); r.GetCall().GetState() != stateSucceeded || !bytes.Equal(r.GetAnswer(), answer) {
		t.Fatalf("kept %d bytes of %d: %v", len(r.GetAnswer()), len(answer), r.GetCall())
	}
	short := c.acceptedWith(client, "f", func(a *wire.Accept) { a.KeepResultMs = 1 })
	plain := c.accepted(client, "f")
	for _, g := range []*wire.Grant{e.grant(), e.grant()} {
		e.send(&wire.DeliverUp{Up: &wire.DeliverUp_Result{Result: &wire.TryResult{
			Id: g.GetId(), Fence: g.GetFence(), Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, Status: 200, Answer: []byte("x"),
		}}})
		e.ack(g, wire.Code_CODE_OK)
	}
	c.eventually("the answer is gone when its time is up", func() bool { return len(result(short).GetAnswer()) == 0 })
	if r := result(plain); len(r.GetAnswer()) != 0 || r.GetCall().GetState() != stateSucceeded {
		t.Errorf("not asked for: %v", r)
	}
	if r := result(newID()); r.GetCall() != nil {
		t.Errorf("unknown: %v", r)
	}
}

func TestAFunctionThatSaysLaterIsTriedThenAndBurnsNoTry(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", retries(), "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	id := c.accepted(client, "f")
	g := e.grant()
	begin := time.Now()
	e.send(&wire.DeliverUp{Up: &wire.DeliverUp_Result{Result: &wire.TryResult{
		Id: g.GetId(), Fence: g.GetFence(), Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, Status: 429, RetryAfterMs: 1000,
	}}})
	e.ack(g, wire.Code_CODE_OK)
	next := c.accepted(client, "f") // the lane pauses for it, too
	if call := c.call(client, id, 0); call.GetState() != waiting || call.GetTries() != 0 || call.GetLastStatus() != 429 {
		t.Fatalf("call %v", call)
	}
	for range 2 {
		g := e.grant()
		if waited := time.Since(begin); waited < 990*time.Millisecond || g.GetTryNumber() != 1 {
			t.Fatalf("after %v: %v", waited, g)
		}
		e.answer(g, 200)
	}
	c.ended(client, id, stateSucceeded, 1)
	c.ended(client, next, stateSucceeded, 1)
}
