package events

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// bundle is a Publisher over functions served by this test.
type bundle struct {
	t         *testing.T
	set       *replica.Set
	publisher *Publisher
	seq       uint64
	ended     atomic.Int32
}

func setup(t *testing.T, concurrency int) *bundle {
	set := replica.NewSet(load.NewTracker())
	b := &bundle{t: t, set: set, publisher: NewPublisher(Options{
		Functions: set, Concurrency: concurrency, Drain: 5 * time.Second, Log: slog.New(slog.DiscardHandler),
	})}
	t.Cleanup(b.publisher.Close)
	return b
}

// function adds a function with one replica per handler; nil is a replica that is starting.
func (b *bundle) function(name string, spec function.Specification, replicas ...http.HandlerFunc) {
	b.seq++
	record := &wire.FunctionRecord{Name: name, Version: &wire.Version{Epoch: 1, Seq: b.seq}, Wanted: int32(len(replicas))}
	for i, handler := range replicas {
		state := wire.ReplicaState_REPLICA_STATE_READY
		if handler == nil {
			state = wire.ReplicaState_REPLICA_STATE_STARTING
			handler = func(http.ResponseWriter, *http.Request) {
				b.t.Errorf("%s: a replica that is not ready was called", name)
			}
		}
		server := httptest.NewServer(handler)
		b.t.Cleanup(server.Close)
		record.Replicas = append(record.Replicas, replicaOf(fmt.Sprintf("fn-%s-%d", name, i), server.Listener.Addr(), state))
	}
	b.set.Apply(record, &spec)
}

func replicaOf(name string, address net.Addr, state wire.ReplicaState) *wire.Replica {
	host, port, _ := net.SplitHostPort(address.String())
	number, _ := strconv.Atoi(port)
	return &wire.Replica{Name: name, Host: host, Ports: []uint32{uint32(number)}, State: state, Instance: "1"}
}

func (b *bundle) publish(event string, internal bool) (<-chan []*wire.EventResult, bool) {
	b.t.Helper()
	report, permitted, err := b.publisher.Publish(b.t.Context(), event, internal,
		&wire.StoredRequest{Method: "POST", Path: "/hello", Query: "x=1", Body: []byte("body")}, func() { b.ended.Add(1) })
	if err != nil {
		b.t.Fatal(err)
	}
	return report, permitted
}

func subscribed(retry function.RetryConfiguration, subscriptions ...function.Subscription) function.Specification {
	var spec function.Specification
	spec.SubscribeEvents = subscriptions
	spec.Configuration.DefaultPublish = retry
	return spec
}

var once = function.RetryConfiguration{HttpTimeout: 5}

func public(name string) function.Subscription {
	return function.Subscription{Name: name, Visibility: function.Public}
}

func private(name string) function.Subscription {
	return function.Subscription{Name: name, Visibility: function.Private}
}

func TestEachReadyReplicaOfEachSubscriberIsCalledOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, 64)
	var mu sync.Mutex
	calls := map[string]int{}
	count := func(name string) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			calls[name+" "+r.Method+" "+r.RequestURI+" "+string(body)]++
		}
	}
	b.function("one", subscribed(once, public("reload")), count("one-0"), count("one-1"), nil)
	b.function("two", subscribed(once, public("other"), public("reload")), count("two-0"))
	b.function("deaf", subscribed(once, public("Reload")), count("deaf-0"))
	b.function("asleep", subscribed(once, public("reload")))
	report, permitted := b.publish("reload", false)
	if !permitted {
		t.Fatal("no subscriber")
	}
	results := <-report
	if len(results) != 3 || results[0].Function != "one" || results[0].Replica != "fn-one-0" || results[2].Function != "two" {
		t.Errorf("report %v", results)
	}
	for _, r := range results {
		if r.Status != 200 || r.Tries != 1 || r.Error != "" {
			t.Errorf("line %v", r)
		}
	}
	for _, name := range []string{"one-0", "one-1", "two-0"} {
		if calls[name+" POST /hello?x=1 body"] != 1 {
			t.Errorf("%s was not called once: %v", name, calls)
		}
	}
	if len(calls) != 3 || b.ended.Load() != 1 {
		t.Errorf("calls %v, ended %d", calls, b.ended.Load())
	}
}

func TestTheFirstSubscriptionOfANameDecides(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	b.function("private-first", subscribed(once, private("a"), public("a"), private("b")), func(http.ResponseWriter, *http.Request) {})
	b.function("public-first", subscribed(once, public("c"), private("c")), func(http.ResponseWriter, *http.Request) {})
	for _, c := range []struct {
		event    string
		internal bool
		want     bool
	}{
		{"a", false, false}, {"a", true, true}, {"b", false, false}, {"b", true, true}, {"c", false, true}, {"c", true, true}, {"d", true, false},
	} {
		report, permitted := b.publish(c.event, c.internal)
		if permitted != c.want {
			t.Errorf("event %s, internal %v: permitted %v", c.event, c.internal, permitted)
		}
		if permitted {
			if got := len(<-report); got != 1 {
				t.Errorf("event %s: %d results", c.event, got)
			}
		}
	}
	if b.ended.Load() != 7 {
		t.Errorf("ended %d times", b.ended.Load())
	}
}

func TestRetriesFollowDefaultPublish(t *testing.T) {
	t.Parallel()
	b := setup(t, 64)
	retry := function.RetryConfiguration{HttpTimeout: 1, TimeoutRetries: []int{0, 0}, HttpStatusRetries: []int{503}}
	answers := func(statuses ...int) http.HandlerFunc {
		var n atomic.Int32
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(statuses[min(int(n.Add(1)), len(statuses))-1])
		}
	}
	cut := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	hang := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the caller is gone
		<-r.Context().Done()
	}
	b.function("f", subscribed(retry, public("e")), answers(503, 200), answers(503), answers(404), cut, hang, answers(200))
	report, _ := b.publish("e", false)
	got := <-report
	for i, want := range []struct {
		status, tries uint32
		reason        string
	}{
		{200, 2, ""}, {503, 3, "the function answered an error"}, {404, 1, "the function answered an error"},
		{0, 3, "the function closed the connection without an answer"}, {0, 1, "no answer within 1s"}, {200, 1, ""},
	} {
		if r := got[i]; r.Status != want.status || r.Tries != want.tries || r.Error != want.reason {
			t.Errorf("replica %d: %v, want %v", i, r, want)
		}
	}
}

func TestAHangingReplicaHoldsUpNobodyAndACallerThatGoesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, 2)
	release := make(chan struct{})
	served := make(chan string, 8)
	quick := func(name string) http.HandlerFunc {
		return func(http.ResponseWriter, *http.Request) { served <- name }
	}
	b.function("f", subscribed(function.RetryConfiguration{HttpTimeout: 30}, public("e")),
		func(http.ResponseWriter, *http.Request) { <-release }, quick("1"), quick("2"), quick("3"))
	report, _ := b.publish("e", false)
	for range 3 {
		<-served // while the first still hangs
	}
	select {
	case got := <-report:
		t.Fatalf("report before the end: %v", got)
	default:
	}
	close(release)
	if got := <-report; len(got) != 4 || got[0].Status != 200 {
		t.Errorf("report %v", got)
	}
}

func TestAReplicaThatDrainsMeanwhileIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	var calls atomic.Int32
	spec := subscribed(function.RetryConfiguration{HttpTimeout: 5, TimeoutRetries: []int{0, 0}, HttpStatusRetries: []int{503}}, public("e"))
	b.function("f", spec, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		f, _ := b.set.Get("f")
		old := f.Record().GetReplicas()[0]
		b.set.Apply(&wire.FunctionRecord{Name: "f", Version: &wire.Version{Epoch: 1, Seq: 100}, Replicas: []*wire.Replica{{
			Name: old.GetName(), Instance: old.GetInstance(), Host: old.GetHost(), Ports: old.GetPorts(), State: wire.ReplicaState_REPLICA_STATE_DRAINING,
		}}}, &spec)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	report, _ := b.publish("e", false)
	got := (<-report)[0]
	if calls.Load() != 1 || got.Tries != 1 || got.Status != 503 || got.Error != "the replica is not ready any more" {
		t.Errorf("%d calls, %v", calls.Load(), got)
	}
	f, _ := b.set.Get("f")
	if open := f.Draining()[0].GetOpen(); open != 0 {
		t.Errorf("%d calls still counted on the draining replica", open)
	}
}

func TestAClosedPublisherTakesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	b.function("f", subscribed(once, public("e")), func(http.ResponseWriter, *http.Request) {})
	b.publisher.Close()
	_, permitted, err := b.publisher.Publish(t.Context(), "e", false, &wire.StoredRequest{Method: "GET"}, func() { b.ended.Add(1) })
	if err == nil || !permitted || b.ended.Load() != 1 {
		t.Errorf("err %v, permitted %v, ended %d", err, permitted, b.ended.Load())
	}
}

func TestASleepingSubscriberIsWokenWhereItAsksForIt(t *testing.T) {
	t.Parallel()
	b := setup(t, 64)
	var called atomic.Int32
	spec := subscribed(once, public("e"))
	wakes := spec
	wakes.EventsWake = true
	b.function("asleep", spec)
	b.function("wakes", wakes)
	b.function("broken", wakes)
	b.publisher.opts.Awake = func(_ context.Context, f *replica.Function, patience time.Duration) error {
		if patience != 5*time.Second {
			t.Errorf("patience is %v", patience)
		}
		if f.Name() == "broken" {
			return replica.ErrBroken
		}
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Add(1) }))
		t.Cleanup(server.Close)
		b.set.Apply(&wire.FunctionRecord{
			Name: "wakes", Version: &wire.Version{Epoch: 1, Seq: 100}, Wanted: 1,
			Replicas: []*wire.Replica{replicaOf("fn-wakes-0", server.Listener.Addr(), wire.ReplicaState_REPLICA_STATE_READY)},
		}, &wakes)
		return nil
	}
	report, permitted := b.publish("e", false)
	if !permitted {
		t.Fatal("not permitted")
	}
	results := <-report
	if len(results) != 2 || results[0].Function != "broken" || results[0].Error != replica.ErrBroken.Error() ||
		results[1].Replica != "fn-wakes-0" || results[1].Status != 200 || called.Load() != 1 {
		t.Errorf("%v, called %d times", results, called.Load())
	}
}
