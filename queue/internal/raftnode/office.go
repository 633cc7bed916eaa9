package raftnode

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// barrierPause between attempts of a leader whose barrier was refused, as during a hand-over.
const barrierPause = 20 * time.Millisecond

// office is leadership with its duties: taken when everything committed before is applied here, left at once when lost.
type office struct {
	node *Node

	mu       sync.Mutex // guards all below
	duties   []func(context.Context)
	cancel   context.CancelFunc // of the current or last term; nil before the first
	previous chan struct{}      // closed when the last term's duties have returned
	ended    bool
	term     *term         // in office; nil otherwise
	changed  chan struct{} // closed and replaced when term changes
}

// term in office.
type term struct {
	number uint64
	ctx    context.Context
	duties sync.WaitGroup
}

func newOffice(n *Node) *office {
	first := make(chan struct{})
	close(first)
	return &office{node: n, previous: first, changed: make(chan struct{})}
}

func (o *office) add(duty func(context.Context)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.duties = append(o.duties, duty)
	if t := o.term; t != nil {
		t.duties.Go(func() { duty(t.ctx) })
	}
}

// watch follows raft's word on leadership until the node's life ends, then waits for the last duties. It never blocks
// between words: raft waits for it.
func (o *office) watch(notify <-chan bool) {
	for {
		select {
		case leading := <-notify:
			o.leave()
			if leading {
				o.enter()
			}
		case <-o.node.life.Done():
			o.end()
			o.mu.Lock()
			last := o.previous
			o.mu.Unlock()
			<-last
			return
		}
	}
}

// end leaves office for good.
func (o *office) end() {
	o.mu.Lock()
	o.ended = true
	o.mu.Unlock()
	o.leave()
}

func (o *office) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cancel != nil {
		o.cancel()
		o.cancel = nil
	}
}

func (o *office) enter() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	ctx, cancel := context.WithCancel(o.node.life)
	o.cancel = cancel
	before, after := o.previous, make(chan struct{})
	o.previous = after
	o.node.background.Go(func() {
		defer close(after)
		defer cancel()
		<-before
		o.serve(ctx)
	})
}

// serve one term, from the barrier to the return of the last duty.
func (o *office) serve(ctx context.Context) {
	number, ok := o.barrier(ctx)
	if !ok {
		return
	}
	t := &term{number: number, ctx: ctx}
	o.set(t)
	o.node.log.Info("took office", "term", number)
	<-ctx.Done()
	o.set(nil)
	t.duties.Wait()
	o.node.log.Info("left office", "term", number)
}

func (o *office) set(t *term) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.term = t
	close(o.changed)
	o.changed = make(chan struct{})
	if t != nil {
		for _, duty := range o.duties {
			t.duties.Go(func() { duty(t.ctx) })
		}
	}
}

func (o *office) current() (*term, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.term, o.changed
}

// barrier waits until everything committed before this term is applied here, and notes the barrier's index as applied: the
// entries that raft keeps to itself are below it.
func (o *office) barrier(ctx context.Context) (term uint64, ok bool) {
	for ctx.Err() == nil && o.node.raft.State() == raft.Leader {
		term = o.node.raft.CurrentTerm()
		future := o.node.raft.Barrier(enqueueTimeout)
		answer := make(chan error, 1)
		go func() { answer <- future.Error() }() // left behind only when raft shuts down with the barrier in it
		select {
		case err := <-answer:
			if err != nil {
				o.node.log.Debug("barrier failed", "term", term, "err", err)
				select { // a lost leadership ends the loop
				case <-time.After(barrierPause):
				case <-ctx.Done():
				}
				continue
			}
		case <-ctx.Done():
			return 0, false
		}
		if o.node.raft.CurrentTerm() != term {
			continue
		}
		if entry, indexed := future.(raft.IndexFuture); indexed {
			o.node.applier.index.advance(entry.Index())
		}
		return term, true
	}
	return 0, false
}
