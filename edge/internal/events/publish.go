// Package events delivers a published event: one call to every ready replica of every subscriber, with retries, and a line of
// report for each. The calls of a large one are shared with other edges (docs/adr/0020-shared-events.md). Nothing is kept: a
// replica that is not there now does not get it.
package events

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Options of a Publisher. All but Bus are needed.
type Options struct {
	Functions *replica.Set
	// Awake wakes a function and returns once a replica of it may be called, or the patience is over.
	Awake func(ctx context.Context, f *replica.Function, patience time.Duration) error
	// Concurrency is how many calls of one publish, or of one share of it, this edge has open at one time. Waiting for a retry
	// is not being open.
	Concurrency int
	// Bus and Roster: with them large events are shared. A nil Bus: this edge makes all calls.
	Bus    Bus
	Roster *Roster
	// Drain bounds the wait for deliveries under way at the stop.
	Drain time.Duration
	Log   *slog.Logger
}

// Publisher delivers events. Safe for concurrent use. Close it when done.
type Publisher struct {
	opts      Options
	transport *message.Transport
	running   sync.WaitGroup
	shares    struct{ helped, notTaken, silent atomic.Uint64 }

	mu      sync.Mutex // guards the fields below
	cancels map[uint64]context.CancelFunc
	next    uint64
	closed  bool
	offers  map[string]offer // by id
	helping int              // shares of other edges being called
}

// Shares says how many shares of events other edges have called so far, did not take, and fell silent over.
func (p *Publisher) Shares() (helped, notTaken, silent uint64) {
	return p.shares.helped.Load(), p.shares.notTaken.Load(), p.shares.silent.Load()
}

// NewPublisher returns a Publisher.
func NewPublisher(opts Options) *Publisher {
	return &Publisher{opts: opts, transport: message.NewTransport(), cancels: map[uint64]context.CancelFunc{}, offers: map[string]offer{}}
}

// errClosed says that the edge stops and takes no events.
var errClosed = errors.New("the edge is stopping")

// Publish starts the delivery of an event. permitted is false when nobody whom this caller may reach subscribes to it. The
// report, in the order of function and replica, comes when every delivery has ended, whether or not ctx has by then: a caller
// that goes away stops nothing. ended is called then too, or at once when nothing was started.
func (p *Publisher) Publish(ctx context.Context, event string, internal bool, request *wire.StoredRequest, ended func()) (report <-chan []*wire.EventResult, permitted bool, err error) {
	subscribers := p.subscribers(event, internal)
	if len(subscribers) == 0 {
		ended()
		return nil, false, nil
	}
	ctx, done, ok := p.begin(ctx)
	if !ok {
		ended()
		return nil, true, errClosed
	}
	results := make(chan []*wire.EventResult, 1)
	go func() {
		defer done()
		defer ended()
		results <- p.deliver(ctx, event, subscribers, request)
	}()
	return results, true, nil
}

// begin registers a publish that outlives its caller, though not the Publisher: Close waits for done.
func (p *Publisher) begin(ctx context.Context) (context.Context, func(), bool) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		cancel()
		return nil, nil, false
	}
	p.next++
	number := p.next
	p.cancels[number] = cancel
	p.running.Add(1)
	return ctx, func() {
		defer p.running.Done()
		cancel()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.cancels, number)
	}, true
}

// Close takes no more events, waits for deliveries under way within Options.Drain and cuts the rest.
func (p *Publisher) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	cut := time.AfterFunc(p.opts.Drain, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.opts.Log.Warn("events did not end in time, cutting them", "after", p.opts.Drain, "events", len(p.cancels))
		for _, cancel := range p.cancels {
			cancel()
		}
	})
	p.running.Wait()
	cut.Stop()
	p.transport.Close()
}

// subscribers lists, by name, the functions that subscribe to event and that this caller may reach.
func (p *Publisher) subscribers(event string, internal bool) []*replica.Function {
	return slices.DeleteFunc(p.opts.Functions.All(), func(f *replica.Function) bool {
		return !permitted(f.Spec().SubscribeEvents, event, internal)
	})
}

// permitted: the first subscription of the event's exact name decides.
func permitted(all []function.Subscription, event string, internal bool) bool {
	i := slices.IndexFunc(all, func(s function.Subscription) bool { return s.Name == event })
	return i >= 0 && (internal || all[i].Visibility == function.Public)
}

// deliver has every ready replica called and waits for all of them. A subscriber that asks for it (SlimFaas/EventsWake) is woken
// where none is ready, and then the replicas that are by then are called.
func (p *Publisher) deliver(ctx context.Context, event string, subscribers []*replica.Function, request *wire.StoredRequest) []*wire.EventResult {
	open := make(chan struct{}, max(1, p.opts.Concurrency))
	lines := make([][]*wire.EventResult, len(subscribers)) // by subscriber: each is written by one goroutine
	deliveries := func(i int, f *replica.Function) (all []*delivery) {
		retry := retryFrom(f.Spec().Configuration.DefaultPublish)
		for _, r := range f.Ready() {
			d := newDelivery(p, f, f.Name(), r.Name, retry, open, request)
			lines[i], all = append(lines[i], d.result), append(all, d)
		}
		return all
	}
	var calls sync.WaitGroup
	call := func(all []*delivery) {
		for _, d := range all {
			calls.Go(func() { d.run(ctx) })
		}
	}
	var ready []*delivery
	for i, f := range subscribers {
		if !f.Spec().EventsWake || len(f.Ready()) > 0 {
			ready = append(ready, deliveries(i, f)...)
			continue
		}
		calls.Go(func() {
			began := time.Now()
			patience := time.Duration(max(1, f.Spec().Configuration.DefaultPublish.HttpTimeout)) * time.Second
			if err := p.opts.Awake(ctx, f, patience); err != nil {
				lines[i] = []*wire.EventResult{{Function: f.Name(), Error: err.Error(), DurationMs: uint64(time.Since(began).Milliseconds())}}
				return
			}
			call(deliveries(i, f))
		})
	}
	mine, shares := p.share(event, ready, request)
	for _, s := range shares {
		calls.Go(func() { call(p.ask(ctx, s)) })
	}
	call(mine)
	calls.Wait()
	results := slices.Concat([]*wire.EventResult{}, slices.Concat(lines...)) // never null in the report
	p.tell(event, results)
	return results
}

// tell logs the failures of a publish in one line, the first of them in full.
func (p *Publisher) tell(event string, results []*wire.EventResult) {
	var failed []*wire.EventResult
	for _, r := range results {
		if r.Error != "" {
			failed = append(failed, r)
		}
	}
	if len(failed) > 0 {
		first := failed[0]
		p.opts.Log.Info("event not delivered everywhere", "event", event, "replicas", len(results), "failed", len(failed),
			"fn", first.Function, "replica", first.Replica, "status", first.Status, "tries", first.Tries, "reason", first.Error)
	}
}
