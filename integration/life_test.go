package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
)

// lifeStatus is the object of /async-calls and of the list of dead letters.
type lifeStatus struct {
	ID         string `json:"Id"`
	Function   string
	State      string
	Tries      int
	MaxTries   int
	LastStatus *int
	LastError  *string
}

// life sends calls with headers and a query for the recorder to a function of its own.
type life struct {
	t   *testing.T
	c   *cluster.Cluster
	rec records
	fn  string // of this part of the test
}

func (l life) send(function, key, query string, header map[string]string) (status int, id string, p problem) {
	l.t.Helper()
	h := http.Header{}
	for k, v := range header {
		h.Set(k, v)
	}
	status, answer, body, err := l.c.Send(0, http.MethodPost, "/async-function/"+function+"/work?key="+key+query, h, []byte(key))
	if err != nil {
		l.t.Fatalf("call %s: %v", key, err)
	}
	_ = json.Unmarshal(body, &p)
	return status, answer.Get("SlimFaas-Element-Id"), p
}

func (l life) accepted(function, key, query string, header map[string]string) (id string) {
	l.t.Helper()
	status, id, p := l.send(function, key, query, header)
	if status != http.StatusAccepted || id == "" {
		l.t.Fatalf("call %s: %d %+v", key, status, p)
	}
	return id
}

func (l life) get(path string, into any) int {
	l.t.Helper()
	status, body, err := l.c.Get(0, path)
	if err != nil {
		l.t.Fatalf("GET %s: %v", path, err)
	}
	if status == http.StatusOK && into != nil {
		if err := json.Unmarshal(body, into); err != nil {
			l.t.Fatalf("GET %s: %s: %v", path, body, err)
		}
	}
	return status
}

func (l life) status(id string) (s lifeStatus) {
	l.t.Helper()
	if status := l.get("/async-calls/"+id, &s); status != http.StatusOK {
		l.t.Fatalf("status of %s: %d", id, status)
	}
	return s
}

// ended waits for the end of a call by long-poll.
func (l life) ended(id, state string) (s lifeStatus) {
	l.t.Helper()
	if status := l.get("/async-calls/"+id+"?wait=30s", &s); status != http.StatusOK || s.State != state {
		l.t.Fatalf("call %s: %d %+v, want %s", id, status, s, state)
	}
	return s
}

func (l life) operator(method, path string) (count map[string]int) {
	l.t.Helper()
	status, body, err := l.c.Do(0, method, path, nil, nil)
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &count) != nil {
		l.t.Fatalf("%s %s: %d %s %v", method, path, status, body, err)
	}
	return count
}

func (l life) runs(function, key string) (n int) {
	for _, x := range l.rec.started(l.t, function) {
		if keyOf(x) == key {
			n++
		}
	}
	return n
}

// TestCalls: the cases of the contract, and what else can become of a call than to be delivered at once. Every part has functions
// of its own on one cluster.
func TestCalls(t *testing.T) {
	rec := newRecords(t)
	functions := caseFunctions()
	for _, name := range []string{"delayed", "dead", "later", "keyed", "kept"} {
		functions = append(functions, fn{name: name, annotations: map[string]string{
			"ReplicasMin": "1", "NumberParallelRequest": "4", "NumberParallelRequestPerPod": "4",
			"Configuration": `{"DefaultAsync":{"TimeoutRetries":[1],"HttpStatusRetries":[500]}}`,
		}})
	}
	c := cluster.Start(t, cluster.Options{Env: []string{"QUEUE_MAX_IDEMPOTENCY_KEYS=2"}, Functions: rec.yaml(functions...)})
	part := func(name string, test func(*testing.T, life)) func(*testing.T) {
		return func(t *testing.T) { test(t, life{t, c.With(t), rec, name}) }
	}
	t.Run("in peace", func(t *testing.T) {
		t.Run("contract", func(t *testing.T) {
			t.Parallel()
			contractCases(t, c.With(t), rec, len(functions))
		})
		for name, test := range map[string]func(*testing.T, life){
			"delayed": lifeOfADelayedAndCancelledCall, "dead": lifeOfDeadLetters, "later": lifeOfACallWhoseFunctionSaysLater,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // they wait most of the time
				part(name, test)(t)
			})
		}
	})
	t.Run("keyed", part("keyed", lifeUnderAnIdempotencyKey)) // these two kill the leader
	t.Run("kept", part("kept", lifeOfAKeptResult))
}

// conserved checks every node, and what it counts.
func (l life) conserved(function string, want history.Counts) {
	l.t.Helper()
	l.c.Eventually(10*time.Second, "the books of every node", func() error {
		nodes, err := l.c.Counters()
		if err != nil {
			return err
		}
		for _, node := range nodes {
			if got := node.Functions[function]; !got.Holds() || got != want {
				return fmt.Errorf("%s: %+v, want %+v", node.Node, got, want)
			}
		}
		return nil
	})
}

// counts of a function on one node, zero while they cannot be read.
func (l life) counts(function string) history.Counts {
	nodes, err := l.c.Counters()
	if err != nil || len(nodes) == 0 {
		return history.Counts{}
	}
	return nodes[0].Functions[function]
}

func lifeOfADelayedAndCancelledCall(t *testing.T, l life) {
	began := time.Now()
	delayed := l.accepted(l.fn, "delayed", "", map[string]string{"SlimFaas-Delay": "3s"})
	cancelled := l.accepted(l.fn, "cancelled", "", map[string]string{"SlimFaas-Delay": "1h"})
	if s := l.status(delayed); s.State != "Waiting" || s.Tries != 0 {
		t.Errorf("delayed: %+v", s)
	}
	for i, want := range []int{204, 409} {
		if status, body, err := l.c.Do(0, http.MethodDelete, "/async-calls/"+cancelled, nil, nil); status != want || err != nil {
			t.Errorf("cancel %d: %d %s %v, want %d", i, status, body, err, want)
		}
	}
	if s := l.status(cancelled); s.State != "Cancelled" {
		t.Errorf("cancelled: %+v", s)
	}
	l.ended(delayed, "Succeeded")
	first := l.rec.started(t, l.fn)[0]
	if took := time.UnixMilli(first.AtMs).Sub(began); took < 2900*time.Millisecond || took > 8*time.Second {
		t.Errorf("the delayed call ran after %v, want 3 s", took)
	}
	running := l.accepted(l.fn, "running", "&ms=3000", nil)
	l.c.Eventually(10*time.Second, "it runs", func() error {
		if l.status(running).State != "Running" {
			return errNotYet
		}
		return nil
	})
	for path, status := range map[string]int{running: 409, "01990000-0000-7000-8000-00000000abcd": 404, "17": 404} {
		wantProblem(t, l.c, http.MethodDelete, "/async-calls/"+path, nil, nil, status)
	}
	l.ended(running, "Succeeded")
	if n := l.runs(l.fn, "cancelled"); n != 0 {
		t.Errorf("the cancelled call ran %d times", n)
	}
	l.conserved(l.fn, history.Counts{Accepted: 3, Succeeded: 2, Cancelled: 1})
}

func lifeUnderAnIdempotencyKey(t *testing.T, l life) {
	key := map[string]string{"Idempotency-Key": "order 17"}
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids { // at the same moment
		wg.Go(func() { _, ids[i], _ = l.send(l.fn, "same", "", key) })
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("one request under one key got ids %q", ids)
		}
	}
	l.ended(ids[0], "Succeeded")
	if status, id, _ := l.send(l.fn, "same", "", key); status != 202 || id != ids[0] {
		t.Errorf("a repeat after the end: %d %s", status, id)
	}
	if status, _, p := l.send(l.fn, "other", "", key); status != 422 || p.Outcome != "none" {
		t.Errorf("another request: %d %+v", status, p)
	}
	// The key outlives the leader that saw it first.
	leader := l.c.QueueLeader(0)
	l.c.Kill(leader)
	l.c.Eventually(15*time.Second, "a repeat is recognised by the next leader", func() error {
		if status, id, p := l.send(l.fn, "same", "", key); status != 202 || id != ids[0] {
			return fmt.Errorf("%d %s %+v", status, id, p)
		}
		return nil
	})
	l.accepted(l.fn, "second", "", map[string]string{"Idempotency-Key": "b"})
	if status, _, p := l.send(l.fn, "third", "", map[string]string{"Idempotency-Key": "c"}); status != 429 || p.Outcome != "none" {
		t.Errorf("a key too many: %d %+v", status, p)
	}
	l.ended(l.accepted(l.fn, "unkeyed", "", nil), "Succeeded")
	if n := l.runs(l.fn, "same"); n != 1 {
		t.Errorf("the call ran %d times", n)
	}
	l.c.Eventually(15*time.Second, "all ended", func() error {
		if v := l.counts(l.fn); v.Succeeded != 3 {
			return fmt.Errorf("%+v", v)
		}
		return nil
	})
	l.conserved(l.fn, history.Counts{Accepted: 3, Succeeded: 3})
}

func lifeOfAKeptResult(t *testing.T, l life) {
	keep := map[string]string{"SlimFaas-Keep-Result": "1h"}
	id := l.accepted(l.fn, "kept", "&status=203", keep)
	large := l.accepted(l.fn, "large", "&bytes=1048576", keep)
	larger := l.accepted(l.fn, "larger", "&bytes=1048577", keep)
	bad := l.accepted(l.fn, "bad", "&status=404", keep)
	slow := l.accepted(l.fn, "slow", "&ms=2000", keep)
	plain := l.accepted(l.fn, "plain", "", nil)
	wantProblem(t, l.c, http.MethodGet, "/async-calls/"+slow+"/result", nil, nil, 409)
	l.ended(id, "Succeeded")
	result := func(id string) (int, http.Header, []byte) {
		status, header, body, err := l.c.Send(0, http.MethodGet, "/async-calls/"+id+"/result", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return status, header, body
	}
	if status, header, body := result(id); status != 203 || header.Get("X-Replica") != "0" || !strings.HasPrefix(string(body), "0 ") {
		t.Errorf("result: %d %v %q", status, header, body)
	}
	l.ended(large, "Succeeded")
	if status, header, body := result(large); status != 200 || len(body) != 1<<20 || header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("result of 1 MiB: %d %v, %d bytes", status, header, len(body))
	}
	l.ended(larger, "Succeeded")
	if p := wantProblem(t, l.c, http.MethodGet, "/async-calls/"+larger+"/result", nil, nil, 404); !strings.Contains(p.Detail, "1 MiB") {
		t.Errorf("one byte more: %+v", p)
	}
	l.ended(bad, "Dead")
	if status, _, _ := result(bad); status != 404 || l.status(bad).State != "Dead" {
		t.Errorf("result of a dead call: %d", status)
	}
	l.ended(plain, "Succeeded")
	wantProblem(t, l.c, http.MethodGet, "/async-calls/"+plain+"/result", nil, nil, 404)
	l.c.Kill(l.c.QueueLeader(0))
	l.c.Eventually(15*time.Second, "the next leader has the result", func() error {
		if status, _, body := result(large); status != 200 || len(body) != 1<<20 {
			return fmt.Errorf("%d, %d bytes", status, len(body))
		}
		return nil
	})
}

func lifeOfDeadLetters(t *testing.T, l life) {
	// Of three calls that die, one is over its maximum age before its time, one is refused, one fails twice.
	aged := l.accepted(l.fn, "aged", "", map[string]string{"SlimFaas-Max-Age": "1s", "SlimFaas-Delay": "30s"})
	if s := l.ended(aged, "Dead"); s.Tries != 0 || s.LastError == nil || !strings.Contains(*s.LastError, "expired") {
		t.Errorf("over its age: %+v", s)
	}
	refused := l.accepted(l.fn, "refused", "&first=400", nil)
	l.ended(refused, "Dead")
	failing := l.accepted(l.fn, "failing", "&status=500", nil)
	if s := l.ended(failing, "Dead"); s.Tries != 2 {
		t.Errorf("failing: %+v", s)
	}
	var list []lifeStatus
	l.get("/dead-letters/"+l.fn, &list)
	if len(list) != 3 || list[0].ID != failing || list[1].ID != refused || list[2].ID != aged || list[0].LastError == nil || *list[0].LastError != "status 500" {
		t.Fatalf("dead letters, newest first: %+v", list)
	}
	var page []lifeStatus
	l.get("/dead-letters/"+l.fn+"?limit=1&after="+failing, &page)
	if len(page) != 1 || page[0].ID != refused {
		t.Errorf("second page of one: %+v", page)
	}
	if n := l.operator(http.MethodPost, "/dead-letters/"+l.fn+"/redrive?id="+refused)["Redriven"]; n != 1 {
		t.Errorf("redriven %d", n)
	}
	if s := l.ended(refused, "Succeeded"); s.Tries != 1 {
		t.Errorf("redriven: %+v", s)
	}
	if n := l.operator(http.MethodPost, "/dead-letters/"+l.fn+"/redrive")["Redriven"]; n != 2 {
		t.Errorf("redriven %d", n)
	}
	l.ended(aged, "Succeeded") // an operator who redrives it wants it to run
	if s := l.ended(failing, "Dead"); s.Tries != 2 {
		t.Errorf("redriven and dead again: %+v", s)
	}
	if n := l.operator(http.MethodDelete, "/dead-letters/"+l.fn)["Purged"]; n != 1 {
		t.Errorf("purged %d", n)
	}
	if status := l.get("/async-calls/"+failing, nil); status != 404 {
		t.Errorf("a purged call: %d", status)
	}
	l.get("/dead-letters/"+l.fn, &list)
	if len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
	l.conserved(l.fn, history.Counts{Accepted: 3, Redriven: 3, Succeeded: 2, Dead: 4})
}

func lifeOfACallWhoseFunctionSaysLater(t *testing.T, l life) {
	for _, status := range []string{"429", "503"} {
		id := l.accepted(l.fn, status, "&after=3&first="+status, nil)
		s := l.ended(id, "Succeeded")
		if s.Tries != 1 {
			t.Errorf("%s with Retry-After burnt a try: %+v", status, s)
		}
		var at []int64
		for _, x := range l.rec.started(t, l.fn) {
			if keyOf(x) == status {
				at = append(at, x.AtMs)
			}
		}
		if len(at) != 2 || at[1]-at[0] < 2900 || at[1]-at[0] > 8000 {
			t.Errorf("%s: ran at %v, want 3 s apart", status, at)
		}
	}
	l.conserved(l.fn, history.Counts{Accepted: 2, Succeeded: 2})
}
