package queueclient

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestReadsFollowTheLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client(t)
	if _, err := client.Do(within(t, 5*time.Second), accept("id")); err != nil {
		t.Fatal(err)
	}
	get := func() (*wire.GetCallResponse, error) {
		return client.GetCall(within(t, 5*time.Second), &wire.GetCallRequest{Id: []byte("id")})
	}
	if r, err := get(); err != nil || r.GetCall() == nil {
		t.Fatalf("%v, %v", r, err)
	}
	c.lead(c.nodes[2])
	if r, err := get(); err != nil || r.GetCall() == nil {
		t.Errorf("after the office moved: %v, %v", r, err)
	}
	c.nodes[2].proxy.Pause()
	c.lead(c.nodes[1])
	if r, err := get(); err != nil || r.GetCall() == nil {
		t.Errorf("with the old leader paused: %v, %v", r, err)
	}
	if r, err := client.Cluster(within(t, 5*time.Second)); err != nil || r.GetLeader() != "queue-1" {
		t.Errorf("%v, %v", r, err)
	}
}

// A count is worth something only when what was counted was done once.
func TestRedriveIsNotRepeatedOnceItWasHandedOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client(t)
	var times atomic.Int64
	var fails atomic.Bool
	for _, n := range c.nodes {
		n.redrive = func() (*wire.RedriveResponse, error) {
			times.Add(1)
			if fails.Load() {
				return nil, connect.NewError(connect.CodeAborted, errors.New("some of them"))
			}
			return &wire.RedriveResponse{Count: 3}, nil
		}
	}
	redrive := func() (*wire.RedriveResponse, error) {
		return client.Redrive(within(t, 20*time.Second), &wire.RedriveRequest{Function: "f"})
	}
	c.lead(c.nodes[2])
	if r, err := redrive(); err != nil || r.GetCount() != 3 || times.Load() != 1 {
		t.Fatalf("the leader is not the first that is asked: %v, %v, %d times", r, err, times.Load())
	}
	fails.Store(true)
	if _, err := redrive(); !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotHandedOver) || times.Load() != 2 {
		t.Errorf("broken off: %v, %d times", err, times.Load())
	}
	c.lead(nil)
	client = c.client(t, hasty)
	if _, err := redrive(); !errors.Is(err, ErrNotHandedOver) || errors.Is(err, ErrUnknown) || times.Load() != 2 {
		t.Errorf("without a leader: %v, %d times", err, times.Load())
	}
}

func TestDeliverFindsTheLeaderAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client(t)
	open := func() (*Stream, string) {
		ctx := within(t, 10*time.Second)
		for {
			s, _, err := client.Deliver(ctx)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.CloseResponse() })
			_ = s.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Hello{Hello: &wire.Hello{Name: "edge-0"}}})
			m, err := s.Receive()
			if err == nil && m.GetWelcome() != nil {
				return s, m.GetWelcome().GetNode()
			}
			_ = s.CloseResponse()
		}
	}
	if _, node := open(); node != "queue-0" {
		t.Errorf("welcomed by %s", node)
	}
	c.lead(c.nodes[1]) // the hint is old: queue-0 refuses and names queue-1
	s, node := open()
	if node != "queue-1" {
		t.Errorf("welcomed by %s", node)
	}
	c.lead(c.nodes[2])
	began := time.Now()
	c.nodes[1].proxy.Pause() // the stream must break by itself
	if m, err := s.Receive(); err == nil {
		t.Errorf("received %v from a paused node", m)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("a paused node was noticed after %v", took)
	}
	if _, node = open(); node != "queue-2" {
		t.Errorf("welcomed by %s", node)
	}
	last, _, err := client.Deliver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = last.Send(&wire.DeliverUp{Up: &wire.DeliverUp_Hello{Hello: &wire.Hello{}}})
	if _, err := last.Receive(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := last.Receive()
		ended <- err
	}()
	client.Close()
	if err := <-ended; err == nil {
		t.Error("a stream outlives its client")
	}
	_ = last.CloseResponse()
	if _, _, err := client.Deliver(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestDeliverWaitsForALeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.lead(nil)
	client := c.client(t)
	opened := make(chan error, 1)
	go func() {
		s, _, err := client.Deliver(within(t, 10*time.Second))
		if err == nil {
			_ = s.CloseResponse()
		}
		opened <- err
	}()
	testkit.Eventually(t, 20*time.Second, "it has tried a few times", func() bool {
		client.mu.Lock()
		defer client.mu.Unlock()
		return client.failedStreams > 3
	})
	c.lead(c.nodes[1])
	if err := <-opened; err != nil {
		t.Error(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, _, err := client.Deliver(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestPullTableTakesTheFirstNodeThatHasIt(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	want := []*wire.PullResponse{{Digest: &wire.TableDigest{Count: 2}, Full: true}, {Records: []*wire.FunctionRecord{{Name: "f"}}}}
	c.nodes[0].proxy.Pause()
	c.nodes[2].pages = want // node 1 is not synced
	client := c.client(t)
	pull := func() (n int, last error) {
		for _, err := range client.PullTable(within(t, 10*time.Second), nil) {
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	}
	for range 3 { // whichever comes first
		if n, err := pull(); n != 2 || err != nil {
			t.Errorf("%d pages, %v", n, err)
		}
	}
	c.nodes[2].pages = nil
	if n, err := pull(); n != 0 || connect.CodeOf(err) != connect.CodeUnavailable && err == nil {
		t.Errorf("%d pages, %v", n, err)
	}
	for range client.PullTable(t.Context(), nil) {
		break // the receiver may have had enough
	}
	p := NewPuller(token, nil)
	defer p.Close()
	c.nodes[1].pages = want
	pages := 0
	for _, err := range p.Pull(t.Context(), c.nodes[1].proxy.Addr(), &wire.Version{Epoch: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		pages++
	}
	if pages != 2 {
		t.Errorf("%d pages from an address", pages)
	}
}
