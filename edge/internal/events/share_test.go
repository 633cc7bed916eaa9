package events

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// exchange is a bus between the edges of a test. lag, if set, holds a helper's answers up.
type exchange struct {
	mu    sync.Mutex
	edges map[string]*Publisher // by incarnation
	boxes map[string]chan []byte
	lag   func(answer int) // called before the n-th answer of a conversation is handed over, from 0
	next  int
	sent  atomic.Int32 // messages of takers
}

func (x *exchange) Publish(subject string, m proto.Message) error {
	x.tell(subject, m, "")
	return nil
}

func (x *exchange) tell(subject string, m proto.Message, reply string) {
	x.sent.Add(1)
	x.mu.Lock()
	to := x.edges[strings.TrimPrefix(subject, wire.SubjectEventShare+".")]
	x.mu.Unlock()
	if to != nil {
		to.Help(proto.Clone(m).(*wire.EventShare), reply)
	}
}

func (x *exchange) Respond(reply string, m proto.Message) error {
	raw, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	x.mu.Lock()
	box := x.boxes[reply]
	x.mu.Unlock()
	box <- raw
	return nil
}

func (x *exchange) Converse(subject string, m proto.Message, handle func([]byte, error)) (func(), error) {
	x.mu.Lock()
	x.next++
	reply := fmt.Sprint(x.next)
	box, over := make(chan []byte, 1000), make(chan struct{})
	x.boxes[reply] = box
	x.mu.Unlock()
	go func() {
		for n := 0; ; n++ {
			select {
			case raw := <-box:
				if x.lag != nil {
					x.lag(n)
				}
				handle(raw, nil)
			case <-over:
				return
			}
		}
	}()
	x.tell(subject, m, reply)
	return func() { close(over) }, nil
}

// crowd is edges that know of one function with replicas which count their calls.
type crowd struct {
	*exchange
	edges  []*bundle
	counts []atomic.Int32
}

func setupCrowd(t *testing.T, edges, replicas int) *crowd {
	x := &exchange{edges: map[string]*Publisher{}, boxes: map[string]chan []byte{}}
	c := &crowd{exchange: x, counts: make([]atomic.Int32, replicas)}
	var records []*wire.Replica
	for i := range replicas {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if c.counts[i].Add(1) == 1 && i%7 == 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
		t.Cleanup(server.Close)
		records = append(records, replicaOf(fmt.Sprintf("fn-f-%d", i), server.Listener.Addr(), wire.ReplicaState_REPLICA_STATE_READY))
	}
	spec := subscribed(once, public("e"))
	rosters := make([]*Roster, edges)
	for i := range edges {
		rosters[i] = &Roster{Edge: fmt.Sprintf("edge-%d", i), Incarnation: fmt.Sprintf("i%d", i)}
	}
	for i := range edges {
		for _, r := range rosters {
			rosters[i].Heard(&wire.EdgeHello{Edge: r.Edge, Incarnation: r.Incarnation})
		}
		set := replica.NewSet(load.NewTracker())
		set.Apply(&wire.FunctionRecord{Name: "f", Version: &wire.Version{Epoch: 1, Seq: 1}, Wanted: int32(replicas), Replicas: records}, &spec)
		b := &bundle{t: t, set: set, publisher: NewPublisher(Options{
			Functions: set, Concurrency: 16, Drain: 5 * time.Second, Log: slog.New(slog.DiscardHandler), Bus: x, Roster: rosters[i],
		})}
		t.Cleanup(b.publisher.Close)
		c.edges = append(c.edges, b)
		x.edges[rosters[i].Incarnation] = b.publisher
	}
	return c
}

// wantOnce: a report of every replica in order, and every one called once.
func (c *crowd) wantOnce(t *testing.T, results []*wire.EventResult) {
	t.Helper()
	if len(results) != len(c.counts) {
		t.Fatalf("%d results", len(results))
	}
	for i, r := range results {
		want := uint32(200)
		if i%7 == 3 {
			want = 503
		}
		if r.Replica != fmt.Sprintf("fn-f-%d", i) || r.Tries != 1 || r.Status != want || (want == 200) != (r.Error == "") {
			t.Errorf("line %d: %v", i, r)
		}
		if n := c.counts[i].Load(); n != 1 {
			t.Errorf("replica %d was called %d times", i, n)
		}
	}
}

func TestALargeEventIsShared(t *testing.T) {
	t.Parallel()
	c := setupCrowd(t, 3, 100)
	report, _ := c.edges[0].publish("e", false)
	c.wantOnce(t, <-report)
	if helped, notTaken, silent := c.edges[0].publisher.Shares(); helped != 2 || notTaken != 0 || silent != 0 {
		t.Errorf("helped %d, not taken %d, silent %d", helped, notTaken, silent)
	}
	if n := c.sent.Load(); n != 4 { // two shares, two beginnings
		t.Errorf("%d messages", n)
	}
}

func TestASmallEventIsNotShared(t *testing.T) {
	t.Parallel()
	c := setupCrowd(t, 3, 31)
	report, _ := c.edges[0].publish("e", false)
	c.wantOnce(t, <-report)
	if n := c.sent.Load(); n != 0 {
		t.Errorf("%d messages", n)
	}
}

func TestAHelperThatIsOfNoUseCostsNothing(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(c *crowd){
		"stopping":               func(c *crowd) { c.edges[1].publisher.Close() },
		"gone":                   func(c *crowd) { delete(c.exchange.edges, "i1") },
		"acknowledges too late":  func(c *crowd) { c.lag = func(int) { time.Sleep(wire.EventAckWithin + 100*time.Millisecond) } },
		"busy":                   func(c *crowd) { c.edges[1].publisher.helping = mostHelped },
		"knows not the function": func(c *crowd) { *c.edges[1].set = *replica.NewSet(load.NewTracker()) },
		"sees it asleep": func(c *crowd) {
			spec := subscribed(once, public("e"))
			c.edges[1].set.Apply(&wire.FunctionRecord{Name: "f", Version: &wire.Version{Epoch: 1, Seq: 2}}, &spec)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := setupCrowd(t, 2, 40)
			spoil(c)
			report, _ := c.edges[0].publish("e", false)
			c.wantOnce(t, <-report)
		})
	}
}

// One that dies in the middle has called an unknown part of its share.
func TestTheShareOfASilentHelperIsCalledAgainAndNoMore(t *testing.T) {
	t.Parallel()
	c := setupCrowd(t, 2, 60)
	dead := make(chan struct{})
	t.Cleanup(func() { close(dead) })
	c.lag = func(n int) {
		if n == 2 { // the acknowledgement and some results have come
			<-dead
		}
	}
	report, _ := c.edges[0].publish("e", false)
	for i, r := range <-report {
		if r.GetTries() == 0 {
			t.Errorf("replica %d was not called: %v", i, r)
		}
		n := c.counts[i].Load()
		if n < 1 || n > 2 || n == 2 && i < 30 { // the first half is the taker's own
			t.Errorf("replica %d was called %d times", i, n)
		}
	}
	if _, _, silent := c.edges[0].publisher.Shares(); silent != 1 {
		t.Errorf("silent %d", silent)
	}
}

func TestABeginningThatComesLateOrTwiceCallsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		set := replica.NewSet(load.NewTracker())
		x := &exchange{edges: map[string]*Publisher{}, boxes: map[string]chan []byte{"box": make(chan []byte, 100)}}
		p := NewPublisher(Options{Functions: set, Concurrency: 1, Drain: time.Second, Log: slog.New(slog.DiscardHandler), Bus: x, Roster: &Roster{}})
		defer p.Close()
		offer := &wire.EventShare{Id: []byte("1"), Targets: []*wire.EventTarget{{Function: "f", Replicas: []string{"a"}}}}
		begin := &wire.EventShare{Id: []byte("1"), Begin: true}
		answers := func(want int) {
			t.Helper()
			synctest.Wait()
			if got := len(x.boxes["box"]); got != want {
				t.Errorf("%d answers, want %d", got, want)
			}
		}
		p.Help(offer, "box")
		time.Sleep(startWithin + time.Millisecond)
		p.Help(begin, "")
		answers(1)
		p.Help(offer, "box")
		p.Help(begin, "")
		answers(3) // and a result
		p.Help(begin, "")
		answers(3)
		for range mostOffers + 1 {
			offer.Id = append(offer.Id, 'x')
			p.Help(proto.Clone(offer).(*wire.EventShare), "box")
		}
		answers(3 + mostOffers + 1)
		if len(p.offers) != mostOffers {
			t.Errorf("%d offers are kept", len(p.offers))
		}
	})
}

func TestPlansCoverEveryCallOnceWithinTheMessage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ calls, helpers, body, header, wantShares int }{
		{31, 9, 0, 0, 0}, {32, 0, 0, 0, 0}, {32, 9, 0, 0, 2}, {100, 2, 0, 0, 2}, {1000, 2, 1 << 10, 0, 2}, {1000, 40, 0, 0, 15},
		{100, 2, maxSharedBody + 1, 0, 0}, {100, 2, maxSharedBody, 0, 2}, {100, 2, maxSharedBody, maxSharedRequest - maxSharedBody + 1, 0},
		{4000, 2, maxSharedBody, 0, 4},
	} {
		var all []*delivery
		for i := range c.calls {
			all = append(all, &delivery{function: fmt.Sprintf("function-%d", i/50), replica: fmt.Sprintf("function-%d-replica-%d", i/50, i%50)})
		}
		helpers := make([]string, c.helpers)
		for i := range helpers {
			helpers[i] = fmt.Sprint(i)
		}
		request := &wire.StoredRequest{Body: make([]byte, c.body), Headers: []*wire.Header{{Name: "X", Values: []string{strings.Repeat("x", c.header)}}}}
		mine, shares := plan(all, helpers, "e", "edge-0", request)
		seen := map[*delivery]int{}
		for _, d := range mine {
			seen[d]++
		}
		for _, s := range shares {
			if size := proto.Size(s.message); size > maxShare {
				t.Errorf("%v: a message of %d bytes", c, size)
			}
			replicas := 0
			for _, target := range s.message.Targets {
				replicas += len(target.Replicas)
			}
			if replicas != len(s.calls) {
				t.Errorf("%v: %d replicas for %d calls", c, replicas, len(s.calls))
			}
			for _, d := range s.calls {
				seen[d]++
			}
		}
		if len(shares) != c.wantShares || len(seen) != len(all) {
			t.Errorf("%v: %d shares, %d of %d calls", c, len(shares), len(seen), len(all))
		}
		for d, n := range seen {
			if n != 1 {
				t.Errorf("%v: %s is in %d parts", c, d.replica, n)
			}
		}
	}
}

func TestTheRosterForgetsAndTakesLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &Roster{Edge: "edge-0", Incarnation: "a"}
		for _, i := range []string{"a", "b", "c", ""} {
			r.Heard(&wire.EdgeHello{Incarnation: i})
		}
		if n := len(r.Peers()); n != 2 {
			t.Errorf("%d peers", n)
		}
		time.Sleep(wire.EdgeForgotten)
		r.Heard(&wire.EdgeHello{Incarnation: "c"})
		time.Sleep(time.Second)
		if p := r.Peers(); len(p) != 1 || p[0] != "c" {
			t.Errorf("peers %v", p)
		}
		r.Heard(&wire.EdgeHello{Incarnation: "c", Leaving: true})
		for i := range maxPeers + 5 {
			r.Heard(&wire.EdgeHello{Incarnation: fmt.Sprint(i)})
		}
		if n := len(r.Peers()); n != maxPeers {
			t.Errorf("%d peers", n)
		}
	})
}
