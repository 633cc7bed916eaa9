package queueclient

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestAFollowerNamesTheLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client(t)
	for i, n := range []*fakeNode{c.nodes[0], c.nodes[2], c.nodes[1]} { // the office moves; the old leader says where
		c.lead(n)
		id := fmt.Sprint("id", i)
		if r, err := client.Do(within(t, 5*time.Second), accept(id)); err != nil || r.GetRepeated() || !c.committed(id) {
			t.Fatalf("%s: %v, %v", id, r, err)
		}
	}
}

func TestALeaderThatLosesItsOfficeCostsNothing(t *testing.T) {
	t.Parallel()
	for _, code := range []wire.Code{wire.Code_CODE_UNAVAILABLE, wire.Code_CODE_UNKNOWN} {
		c := newCluster(t, 3)
		c.nodes[0].submit = func(_ context.Context, r *wire.SubmitRequest) (*wire.SubmitResponse, error, bool) {
			answer := all(r, code)
			if code == wire.Code_CODE_UNKNOWN { // and it was
				c.nodes[0].commit(r)
			}
			c.lead(c.nodes[1])
			return answer, nil, true
		}
		r, err := c.client(t).Do(within(t, 5*time.Second), accept("id"))
		if err != nil || r.GetRepeated() != (code == wire.Code_CODE_UNKNOWN) || !c.committed("id") {
			t.Errorf("%v: %v, %v", code, r, err)
		}
	}
}

func TestAHintToADeadAddressIsNotTheEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client(t, func(o *Options) { o.LeaderWait = 5 * time.Second })
	dead := c.nodes[0]
	dead.proxy.Refuse()
	dead.proxy.Cut()
	for _, n := range c.nodes[1:] { // both still believe in the dead one
		n.mu.Lock()
		n.lies, n.says = true, dead.proxy.Addr()
		n.mu.Unlock()
	}
	done := make(chan error, 1)
	go func() {
		_, err := client.Do(within(t, 10*time.Second), accept("id"))
		done <- err
	}()
	testkit.Eventually(t, 20*time.Second, "the dead one has been tried", func() bool {
		client.leader.mu.Lock()
		defer client.leader.mu.Unlock()
		return len(client.leader.suspects) > 0
	})
	c.lead(c.nodes[2]) // elected; node 1 has not heard of it
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAPausedLeaderIsLeftAndItsOperationsRepeated(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	const attempt = time.Second
	client := c.client(t, func(o *Options) { o.RPCTimeout = attempt })
	if _, err := client.Do(within(t, 5*time.Second), accept("before")); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].proxy.Pause()
	c.lead(c.nodes[1])
	began := time.Now()
	var callers sync.WaitGroup
	for i := range 20 { // most wait behind the two batches that are stuck, longer than LeaderWait
		callers.Go(func() {
			if r, err := client.Do(within(t, 5*time.Second), accept(fmt.Sprint("id", i))); err != nil || r.GetRepeated() {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
	callers.Wait()
	if took := time.Since(began); took > 4*attempt {
		t.Errorf("took %v with attempts of %v", took, attempt)
	}
	c.nodes[0].proxy.Resume() // what was held back arrives late, at a node that leads no more
	if r, err := client.Do(within(t, 5*time.Second), accept("after")); err != nil {
		t.Errorf("%v, %v", r, err)
	}
}

func TestAPausedFollowerCostsNobodyTime(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.lead(c.nodes[2])
	c.nodes[0].proxy.Pause()
	client := c.client(t, func(o *Options) { o.RPCTimeout = 30 * time.Second })
	began := time.Now()
	if _, err := client.Do(within(t, 20*time.Second), accept("id")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

// cut breaks the connection before or after the batch is committed, once.
func cut(n *fakeNode, after bool) {
	var once sync.Once
	n.submit = func(ctx context.Context, r *wire.SubmitRequest) (*wire.SubmitResponse, error, bool) {
		broken := false
		once.Do(func() {
			if after {
				n.commit(r)
			}
			n.proxy.Cut()
			broken = true
		})
		if broken {
			panic(http.ErrAbortHandler)
		}
		return nil, nil, false
	}
}

func TestABrokenConnectionIsRepeatedById(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		c := newCluster(t, 1)
		cut(c.nodes[0], after)
		r, err := c.client(t).Do(within(t, 5*time.Second), accept("id"))
		if err != nil || r.GetRepeated() != after {
			t.Errorf("cut after the commit: %v; got %v, %v", after, r, err)
		}
	}
}

func TestARefusalAfterAnUnknownAttemptIsUnknown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	n := c.nodes[0]
	cut(n, true)
	first := n.submit
	n.submit = func(ctx context.Context, r *wire.SubmitRequest) (*wire.SubmitResponse, error, bool) {
		first(ctx, r)
		return all(r, wire.Code_CODE_CONFLICT), nil, true
	}
	client := c.client(t)
	if _, err := client.Do(within(t, 5*time.Second), cancel("id")); !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotHandedOver) {
		t.Errorf("got %v", err)
	}
	if r, err := client.Do(within(t, 5*time.Second), cancel("id")); err != nil || r.GetCode() != wire.Code_CODE_CONFLICT || r.GetDetail() != "as told" {
		t.Errorf("a refusal at the first attempt: %v, %v", r, err)
	}
}

func TestUnknownStaysUnknownUntilTheCallerGoes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	n := c.nodes[0]
	n.submit = func(context.Context, *wire.SubmitRequest) (*wire.SubmitResponse, error, bool) {
		c.lead(nil)
		n.proxy.Cut()
		panic(http.ErrAbortHandler)
	}
	client := c.client(t, func(o *Options) { o.LeaderWait = 2 * time.Second }) // the leader is there at first, and a busy machine may be late to say so
	_, err := client.Do(within(t, 4*time.Second), accept("id"))
	if !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotHandedOver) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestNoLeaderAnywhereIsSaidInTime(t *testing.T) {
	t.Parallel()
	harm := map[string]func(*cluster){
		"none is elected": func(*cluster) {},
		"all are dead": func(c *cluster) {
			for _, n := range c.nodes {
				n.proxy.Refuse()
				n.proxy.Cut()
			}
		},
		"all are paused": func(c *cluster) {
			for _, n := range c.nodes {
				n.proxy.Pause()
			}
		},
		"all name a dead one": func(c *cluster) {
			c.nodes[0].proxy.Refuse()
			for _, n := range c.nodes {
				n.mu.Lock()
				n.lies, n.says = true, c.nodes[0].proxy.Addr()
				n.mu.Unlock()
			}
		},
		"all send elsewhere": func(c *cluster) {
			for i, n := range c.nodes {
				n.mu.Lock()
				n.lies, n.says = true, c.nodes[(i+1)%3].proxy.Addr()
				n.mu.Unlock()
			}
		},
	}
	for name, do := range harm {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			c.lead(nil)
			do(c)
			client := c.client(t, hasty)
			began := time.Now()
			var callers sync.WaitGroup
			for i := range 50 {
				callers.Go(func() {
					if _, err := client.Do(within(t, 10*time.Second), accept(fmt.Sprint(i))); !errors.Is(err, ErrNoLeader) || !errors.Is(err, ErrNotHandedOver) || errors.Is(err, ErrUnknown) {
						t.Errorf("got %v", err)
					}
				})
			}
			if _, err := client.GetCall(within(t, 10*time.Second), &wire.GetCallRequest{Id: []byte("x")}); !errors.Is(err, ErrNotHandedOver) {
				t.Errorf("reading: %v", err)
			}
			callers.Wait()
			if took := time.Since(began); took < 300*time.Millisecond || took > 3*time.Second {
				t.Errorf("took %v with a wait of 300 ms", took)
			}
			if client.batcher.ops != 0 || client.batcher.bytes != 0 {
				t.Errorf("%d operations of %d bytes are counted still", client.batcher.ops, client.batcher.bytes)
			}
			for _, n := range c.nodes { // looking for a leader is no storm
				n.mu.Lock()
				if n.asked > 60 {
					t.Errorf("%s was asked %d times", n.name, n.asked)
				}
				n.mu.Unlock()
			}
		})
	}
}

func TestAWrongTokenIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client(t, func(o *Options) { o.Token = "wrong"; o.LeaderWait = 20 * time.Second })
	client.leader.answered("http://" + c.nodes[0].proxy.Addr())
	if _, err := client.Do(within(t, 5*time.Second), accept("id")); !errors.Is(err, ErrNotHandedOver) || connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("got %v", err)
	}
	if _, err := client.Facts(within(t, 5*time.Second)); !errors.Is(err, ErrNotHandedOver) || !strings.Contains(err.Error(), "reading the facts") {
		t.Errorf("got %v", err)
	}
}

// TestOutcomesAreTrue lets a cluster misbehave at random: an OK is in the log, and what was not handed over never gets there.
func TestOutcomesAreTrue(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	roll := func(n int) int { mu.Lock(); defer mu.Unlock(); return random.IntN(n) }
	c := newCluster(t, 3)
	var late sync.WaitGroup
	for _, n := range c.nodes {
		n.submit = func(ctx context.Context, r *wire.SubmitRequest) (*wire.SubmitResponse, error, bool) {
			switch roll(12) {
			case 0: // cut before
				n.proxy.Cut()
				panic(http.ErrAbortHandler)
			case 1: // cut after
				n.commit(r)
				n.proxy.Cut()
				panic(http.ErrAbortHandler)
			case 2: // too slow for the client, and committed long after it has turned away
				late.Go(func() {
					<-ctx.Done()
					n.commit(r)
				})
				<-ctx.Done()
				return nil, ctx.Err(), true
			case 3:
				return all(r, wire.Code_CODE_UNAVAILABLE), nil, true
			case 4:
				if roll(2) == 0 {
					n.commit(r)
				}
				return all(r, wire.Code_CODE_UNKNOWN), nil, true
			case 5:
				c.lead(c.nodes[roll(3)])
				return nil, n.refuse(), true
			case 6:
				c.lead(nil)
				return nil, n.refuse(), true
			case 7:
				return all(r, wire.Code_CODE_FULL), nil, true
			}
			return nil, nil, false
		}
	}
	client := c.client(t, func(o *Options) { o.LeaderWait = 50 * time.Millisecond; o.RPCTimeout = 50 * time.Millisecond })
	ended := make(chan struct{})
	var nemesis sync.WaitGroup
	nemesis.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(20 * time.Millisecond):
				c.lead(c.nodes[roll(3)])
			}
		}
	})
	var callers sync.WaitGroup
	var sum sync.Map
	for i := range 16 {
		callers.Go(func() {
			for k := range 40 {
				id := fmt.Sprintf("%d-%d", i, k)
				ctx, stop := context.WithTimeout(t.Context(), time.Duration(20+roll(400))*time.Millisecond)
				r, err := client.Do(ctx, accept(id))
				stop()
				switch {
				case err == nil && r.GetCode() == wire.Code_CODE_OK:
					sum.Store(id, "ok")
				case err == nil && r.GetCode() == wire.Code_CODE_FULL, errors.Is(err, ErrNotHandedOver) && !errors.Is(err, ErrUnknown):
					sum.Store(id, "none")
				case errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotHandedOver):
					sum.Store(id, "unknown")
				default:
					t.Errorf("%s: %v, %v", id, r, err)
				}
			}
		})
	}
	callers.Wait()
	close(ended)
	nemesis.Wait()
	client.Close()
	for _, n := range c.nodes {
		testkit.Eventually(t, 20*time.Second, "nothing is under way", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.busy == 0 })
	}
	late.Wait()
	count := map[string]int{}
	sum.Range(func(id, outcome any) bool {
		count[outcome.(string)]++
		if c.committed(id.(string)) != (outcome == "ok") && outcome != "unknown" {
			t.Errorf("%v ended as %v, committed: %v", id, outcome, c.committed(id.(string)))
		}
		return true
	})
	t.Logf("outcomes: %v", count)
}
