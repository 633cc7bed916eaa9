// Package wake holds requests of functions that have no usable replica: bounded, first come first served, with one goroutine
// per function that repeats the wake, probes what is starting and gives leases as soon as a replica may be used.
//
// Waking needs no leader and no queue: any scaler that hears a wake raises the function. A lost wake is repeated until the
// table shows the function wanted.
package wake

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	firstPause = 50 * time.Millisecond // between wakes, doubling
	lastPause  = time.Second
	idlePause  = time.Second // looked again without a reason: the net under a lost kick
	// wakeFor is how long a wake without a request is repeated.
	wakeFor = 30 * time.Second
	// touchEvery is how often a wake of a function that is awake is published: it says "in use" to every scaler.
	touchEvery = time.Second
)

// Options of a Waker.
type Options struct {
	Name string // of this edge
	// Publish puts a wake on the bus.
	Publish func(*wire.Wake) error
	// Epoch is the table's current epoch.
	Epoch func() uint64
	// Waited is told of every request that got its replica after a wait. Nil: nobody is.
	Waited func(replica.Waited)
	// Dial connects probes; nil: as the system does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// MaxPerFunction and MaxTotal bound the parked requests.
	MaxPerFunction, MaxTotal int
}

// Waker parks requests and wakes functions. Run it before the first Wait.
type Waker struct {
	Options
	patient, quick prober
	total          atomic.Int64

	mu      sync.Mutex // guards the fields below
	lots    map[*replica.Function]*lot
	ctx     context.Context // of Run; nil before and after: nothing is served
	serving sync.WaitGroup
}

// New returns a Waker; it does nothing before Run.
func New(o Options) *Waker {
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	return &Waker{Options: o, patient: prober{o.Dial, probeTimeout}, quick: prober{o.Dial, quickConnect}, lots: map[*replica.Function]*lot{}}
}

// Run serves until ctx ends, and returns when everything it started has.
func (w *Waker) Run(ctx context.Context) {
	w.mu.Lock()
	w.ctx = ctx
	early := slices.Collect(maps.Values(w.lots))
	w.mu.Unlock()
	for _, l := range early { // somebody may have parked before
		l.start()
	}
	<-ctx.Done()
	w.mu.Lock()
	w.ctx = nil
	w.mu.Unlock()
	w.serving.Wait()
}

// serve starts the goroutine of a lot; false outside Run.
func (w *Waker) serve(l *lot) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil {
		return false
	}
	ctx := w.ctx
	w.serving.Go(func() { l.run(ctx) })
	return true
}

func (w *Waker) lot(f *replica.Function) *lot {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.lots[f]
	if l == nil {
		l = &lot{w: w, f: f, kick: make(chan struct{}, 1)}
		w.lots[f] = l
	}
	return l
}

// Look makes parked requests of the function look again: a record, a sighting, a probe or the end of a paced call may have
// made room. Cheap when nobody waits.
func (w *Waker) Look(f *replica.Function) {
	w.mu.Lock()
	l := w.lots[f]
	if l != nil && f.Record().GetDeleted() {
		delete(w.lots, f)
	}
	w.mu.Unlock()
	if l != nil {
		l.look()
	}
}

// Acquire gives a lease on a usable replica, at once where there is one; else the request is parked and the function woken,
// for at most `patience`. Errors: replica.ErrParkedFull, ErrNotInTime, ErrGone, ErrBroken, or ctx's.
func (w *Waker) Acquire(ctx context.Context, f *replica.Function, patience time.Duration) (*replica.Lease, replica.Waited, error) {
	if f.Load().Parked() == 0 { // else those who wait go first
		if lease, ok := f.Choose(load.Sync, nil); ok {
			return lease, replica.Waited{}, nil
		}
	}
	if f.Record().GetDeleted() {
		return nil, replica.Waited{}, replica.ErrGone
	}
	if len(f.Record().GetProblems()) > 0 && !slices.ContainsFunc(f.Replicas(), coming) {
		return nil, replica.Waited{}, replica.ErrBroken // no scaler starts it: waiting would only use up the patience
	}
	if w.total.Add(1) > int64(w.MaxTotal) {
		w.total.Add(-1)
		return nil, replica.Waited{}, replica.ErrParkedFull
	}
	defer w.total.Add(-1)
	defer f.Load().Park()()
	f.Hungry() // after Park: what waits is what is asked for
	return w.wait(ctx, w.lot(f), patience)
}

func (w *Waker) wait(ctx context.Context, l *lot, patience time.Duration) (*replica.Lease, replica.Waited, error) {
	x := l.push()
	if x == nil {
		return nil, replica.Waited{}, replica.ErrParkedFull
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	select {
	case got := <-x.lease:
		return w.unpack(got)
	case <-timer.C:
		err = replica.ErrNotInTime
	case <-ctx.Done():
		err = ctx.Err()
	}
	if l.leave(x) {
		l.look()
		return nil, replica.Waited{}, err
	}
	got := <-x.lease // given at the last moment
	if ctx.Err() != nil && got.lease != nil {
		got.lease.End()
		l.look()
		return nil, replica.Waited{}, err
	}
	return w.unpack(got)
}

func (w *Waker) unpack(g leased) (*replica.Lease, replica.Waited, error) {
	if g.lease == nil {
		return nil, replica.Waited{}, replica.ErrGone
	}
	if w.Waited != nil {
		w.Waited(g.waited)
	}
	return g.lease, g.waited, nil
}

// Estimate is how long the start of a replica that is under way will take yet, by what earlier ones of the function took. False:
// none was seen on this edge.
func (w *Waker) Estimate(f *replica.Function) (left time.Duration, known bool) {
	w.mu.Lock()
	l := w.lots[f]
	w.mu.Unlock()
	if l == nil {
		return 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.starts.left(time.Now())
}

// Wake asks for the function without calling it, and returns at once: repeated until the table shows it wanted, at most 30 s;
// a wake under way takes further ones in. For a function that is awake it counts as use.
func (w *Waker) Wake(f *replica.Function) {
	f.Load().Touch()
	l := w.lot(f)
	now := time.Now()
	l.mu.Lock()
	l.until = now.Add(wakeFor)
	touch := l.raised() && now.Sub(l.touched) >= touchEvery
	if touch {
		l.touched = now
	}
	l.mu.Unlock()
	if touch {
		_ = w.Publish(&wire.Wake{Functions: []string{f.Name()}, Edge: w.Name}) // lost: the load report says it too
		return
	}
	l.start()
}
