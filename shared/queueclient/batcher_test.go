package queueclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestOperationsGatherWhileTwoBatchesAreUnderWay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	n, release := c.nodes[0], make(chan struct{})
	n.holdBatches(release)
	// Patient: on a machine that others use, 3,000 callers take their time to come.
	client := c.client(t, func(o *Options) { o.RPCTimeout, o.LeaderWait = time.Minute, time.Minute })
	var callers sync.WaitGroup
	for i := range 3000 {
		callers.Go(func() {
			if r, err := client.Do(t.Context(), accept(fmt.Sprint("id", i))); err != nil || r.GetCode() != wire.Code_CODE_OK {
				t.Errorf("operation %d: %v, %v", i, r, err)
			}
		})
	}
	testkit.Eventually(t, 30*time.Second, "two batches are under way and the rest waits", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		sent := 0
		for _, b := range n.batches {
			sent += len(b)
		}
		client.batcher.mu.Lock()
		defer client.batcher.mu.Unlock()
		return n.busy == wire.MaxBatchesInFlight && sent+client.batcher.ops == 3000
	})
	close(release)
	callers.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.top != wire.MaxBatchesInFlight {
		t.Errorf("%d batches were under way at once", n.top)
	}
	if len(n.batches) > 7 {
		t.Errorf("3000 operations took %d batches", len(n.batches))
	}
	for _, b := range n.batches {
		if len(b) > wire.MaxBatchOps {
			t.Errorf("a batch of %d operations", len(b))
		}
	}
}

// A batch of nearly all would be followed by one of nearly all: everybody comes back at once.
func TestACrowdThatComesBackIsSplitEvenlyBetweenTheBatches(t *testing.T) {
	t.Parallel()
	const crowd, rounds = 600, 5
	c := newCluster(t, 1)
	n, release := c.nodes[0], make(chan struct{})
	n.holdBatches(release)
	client := c.client(t, func(o *Options) { o.RPCTimeout, o.LeaderWait = time.Minute, time.Minute })
	var callers sync.WaitGroup
	for i := range crowd {
		callers.Go(func() {
			for round := range rounds {
				if r, err := client.Do(t.Context(), accept(fmt.Sprintf("id%d-%d", i, round))); err != nil || r.GetCode() != wire.Code_CODE_OK {
					t.Errorf("operation %d: %v, %v", i, r, err)
				}
			}
		})
	}
	testkit.Eventually(t, 30*time.Second, "all have come", func() bool {
		client.batcher.mu.Lock()
		defer client.batcher.mu.Unlock()
		return client.batcher.ops+client.batcher.flying == crowd
	})
	close(release)
	callers.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.batches {
		if len(b) > crowd/wire.MaxBatchesInFlight {
			t.Errorf("a batch of %d operations, of %d callers", len(b), crowd)
		}
	}
	if client.batcher.flying != 0 {
		t.Errorf("%d operations under way after all have ended", client.batcher.flying)
	}
}

func TestBatchesAreBoundedInBytesAndFramesStayTogether(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	n, release := c.nodes[0], make(chan struct{})
	n.holdBatches(release)
	client := c.client(t, func(o *Options) { o.RPCTimeout = 10 * time.Second })
	sizes := []int{1, 1, 100 << 10, 200 << 10, wire.MaxFrame, wire.MaxFrame + 1, 100 << 10, wire.MaxPayload, 300 << 10, 100 << 10, 100 << 10}
	payloads := map[string][]byte{}
	var callers sync.WaitGroup
	for i, size := range sizes {
		id := fmt.Sprintf("id-%02d", i)
		payloads[id] = bytes.Repeat([]byte{byte(i + 1)}, size)
		payloads[id][size-1] = 0xff
		op := &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{Id: []byte(id), Function: "f", Payload: payloads[id], Size: uint64(size), DelayMs: 5}}}
		callers.Go(func() {
			if _, err := client.Do(t.Context(), op); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
		testkit.Eventually(t, 20*time.Second, "two are under way, the others wait in order", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.busy == min(i+1, 2) && client.waiting() == max(i-1, 0)
		})
	}
	close(release)
	callers.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	whole := map[string][]byte{}
	for _, batch := range n.batches {
		total, accepts, open := 0, 0, ""
		for _, op := range batch {
			total += proto.Size(op)
			switch {
			case op.GetAccept() != nil:
				a := op.GetAccept()
				accepts++
				whole[string(a.Id)] = bytes.Clone(a.Payload)
				open = string(a.Id)
				if a.Size != uint64(len(payloads[open])) || a.DelayMs != 5 {
					t.Errorf("%s: size %d, delay %d", open, a.Size, a.DelayMs)
				}
			case op.GetAcceptFrame() != nil:
				f := op.GetAcceptFrame()
				if string(f.Id) != open || int(f.Offset) != len(whole[open]) || len(f.Data) > wire.MaxFrame {
					t.Errorf("a frame of %q at %d behind %s, of which there are %d", f.Id, f.Offset, open, len(whole[open]))
				}
				whole[open] = append(whole[open], f.Data...)
			}
		}
		if total > wire.MaxBatchBytes && accepts > 1 {
			t.Errorf("a batch of %d bytes with %d operations", total, accepts)
		}
	}
	for id, want := range payloads {
		if !bytes.Equal(whole[id], want) {
			t.Errorf("%s arrived as %d bytes of %d", id, len(whole[id]), len(want))
		}
	}
}

func (c *Client) waiting() int {
	c.batcher.mu.Lock()
	defer c.batcher.mu.Unlock()
	return len(c.batcher.queue)
}

func TestACallerThatGoesDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	n, release := c.nodes[0], make(chan struct{})
	n.holdBatches(release)
	client := c.client(t, func(o *Options) { o.RPCTimeout = 10 * time.Second })
	sent, leaveSent := context.WithCancel(t.Context())
	waits, leaveWaiting := context.WithCancel(t.Context())
	results := map[string]chan error{}
	do := func(ctx context.Context, id string) {
		done := make(chan error, 1)
		results[id] = done
		go func() {
			_, err := client.Do(ctx, accept(id))
			done <- err
		}()
	}
	do(sent, "sent")
	testkit.Eventually(t, 20*time.Second, "one batch is under way", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.busy == 1 })
	do(t.Context(), "stays")
	testkit.Eventually(t, 20*time.Second, "two batches are under way", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.busy == 2 })
	do(waits, "waits")
	do(t.Context(), "waits too")
	testkit.Eventually(t, 20*time.Second, "two wait", func() bool { return client.waiting() == 2 })
	leaveSent()
	if err := <-results["sent"]; !errors.Is(err, ErrUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("gone while under way: %v", err)
	}
	leaveWaiting()
	if err := <-results["waits"]; !errors.Is(err, ErrNotHandedOver) || !errors.Is(err, context.Canceled) {
		t.Errorf("gone while waiting: %v", err)
	}
	close(release)
	for _, id := range []string{"stays", "waits too"} {
		if err := <-results[id]; err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if c.committed("waits") {
		t.Error("an operation that was not handed over was carried out")
	}
	if _, err := client.Do(sent, accept("late")); !errors.Is(err, ErrNotHandedOver) || c.committed("late") {
		t.Errorf("a caller that comes with a dead context: %v", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	n := c.nodes[0]
	n.submit = func(ctx context.Context, _ *wire.SubmitRequest) (*wire.SubmitResponse, error, bool) {
		<-ctx.Done()
		return nil, ctx.Err(), true
	}
	client := c.client(t, func(o *Options) { o.RPCTimeout = time.Minute })
	done := make(chan error, 3)
	for i := range 3 {
		go func() {
			_, err := client.Do(t.Context(), accept(fmt.Sprint(i)))
			done <- err
		}()
		testkit.Eventually(t, 20*time.Second, "it is under way, or waits", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.busy == min(i+1, 2) && client.waiting() == max(i-1, 0)
		})
	}
	client.Close()
	unknown := 0
	for range 3 {
		if err := <-done; errors.Is(err, ErrUnknown) {
			unknown++
		} else if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if unknown != 2 {
		t.Errorf("%d are unknown, two were under way", unknown)
	}
	if _, err := client.Do(t.Context(), accept("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestWhatWaitsIsBounded(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.lead(nil)
	client := c.client(t, func(o *Options) { o.LeaderWait = time.Minute })
	ctx, leave := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	payload := make([]byte, wire.MaxPayload)
	full := make(chan error, 100)
	for i := range 70 {
		callers.Go(func() {
			if _, err := client.Do(ctx, &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{Id: fmt.Append(nil, i), Payload: payload}}}); errors.Is(err, ErrFull) {
				full <- err
			}
		})
	}
	if err := <-full; !errors.Is(err, ErrNotHandedOver) {
		t.Error(err)
	}
	leave()
	callers.Wait()
	if client.batcher.ops != 0 || client.batcher.bytes != 0 {
		t.Errorf("%d operations of %d bytes are counted still", client.batcher.ops, client.batcher.bytes)
	}
}
