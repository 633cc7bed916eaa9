// Package waking raises functions from zero. It needs no leader: raising is monotone and idempotent, so every scaler may do it,
// with the orchestrator's own revision as precondition. The one to which the bus hands the wake does it at once; the others hear it
// too and do it where the orchestrator does not show it soon (docs/adr/0025-one-scaler-raises-first.md).
package waking

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/decide"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

const (
	// maxRaising bounds the requests to the orchestrator at one time. More make a storm of wakes no faster, and everybody else's
	// requests slow: with 64 an API server on two cores took 4 s for each of 500, and the Lease was lost.
	maxRaising = 8
	// raised: the orchestrator's watch shows a raise within this time; till then it is not asked again.
	raised = time.Second
	// handedOver is what another scaler, to which the bus handed a wake, is given until the orchestrator shows the raise.
	handedOver = 30 * time.Millisecond
	// remembered is how long a wake is remembered after it was heard.
	remembered = time.Minute

	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// Options of a Waker. All are required.
type Options struct {
	Orchestrator orchestrator.Orchestrator
	Fleet        *fleet.Fleet
	Sighted      func(function string, f *fleet.Function, r *orchestrator.Replica) // publishes one sighting
	// Leading says whether this scaler leads: then its records tell what sightings would.
	Leading func() bool
	Log     *slog.Logger
}

// Waker raises functions. Heard, First and Raise never block.
type Waker struct {
	Options
	signal chan struct{}

	mu      sync.Mutex
	pending map[string]*attempt // functions somebody wants awake
	heard   map[string]time.Time
	asked   uint64 // requests made to the orchestrator
}

// attempt is one function on its way up.
type attempt struct {
	until    time.Time // nobody wants it any more after this
	hold     time.Time // another is given until then; zero: nobody has wished it since it was last up
	mine     bool      // it was handed to this scaler
	inFlight bool
	done     time.Time             // of the last success; zero: none
	from     orchestrator.Revision // what the watch showed at that success
	next     time.Time             // not before
	pause    time.Duration
	revision orchestrator.Revision // a newer one than the watch has shown; empty: none
}

// before orders attempts where slots are short: what this scaler was handed, the longest wait first, and then what others were,
// beginning with what they will come to last.
func (a *attempt) before(b *attempt) int {
	switch {
	case a.mine != b.mine && a.mine:
		return -1
	case a.mine != b.mine:
		return 1
	case a.mine:
		return a.hold.Compare(b.hold)
	default:
		return b.hold.Compare(a.hold)
	}
}

// New makes a waker; Run does the work.
func New(options Options) *Waker {
	return &Waker{
		Options: options, signal: make(chan struct{}, 1),
		pending: map[string]*attempt{}, heard: map[string]time.Time{},
	}
}

// Heard takes the functions of a wake that every scaler hears. Unknown ones are ignored.
func (w *Waker) Heard(functions []string) { w.heardThat(functions, handedOver) }

// First takes the functions of a wake that the bus handed to this scaler.
func (w *Waker) First(functions []string) { w.heardThat(functions, 0) }

func (w *Waker) heardThat(functions []string, hold time.Duration) {
	now := time.Now()
	view := w.Fleet.View()
	w.mu.Lock()
	for _, name := range functions {
		if f := view.Functions[name]; f != nil && len(f.Problems) == 0 {
			w.heard[f.Name] = now
			w.want(f.Name, now, hold)
		}
	}
	w.mu.Unlock()
	w.poke()
}

// Raise wants a function awake: the leader's decision. What a wake was heard for may be another's to raise.
func (w *Waker) Raise(function string) {
	w.mu.Lock()
	now := time.Now()
	if one := w.pending[function]; one == nil || one.hold.IsZero() {
		w.want(function, now, 0)
	} else {
		one.until = now.Add(decide.WakeHolds)
	}
	w.mu.Unlock()
	w.poke()
}

// want notes the wish, and that another is given hold to fulfil it. The caller holds mu.
func (w *Waker) want(function string, now time.Time, hold time.Duration) {
	one := w.pending[function]
	if one == nil {
		one = &attempt{}
		w.pending[function] = one
	}
	if act := now.Add(hold); one.hold.IsZero() || act.Before(one.hold) {
		one.mine = hold == 0 && (one.hold.IsZero() || now.Before(one.hold)) // a repetition changes nothing
		one.hold = act
	}
	one.until = now.Add(decide.WakeHolds)
}

// Woken lists when wakes were last heard, by function.
func (w *Waker) Woken() map[string]time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.heard)
}

// Asked counts the requests made to the orchestrator.
func (w *Waker) Asked() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

func (w *Waker) poke() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// Run raises what is wanted until ctx ends, and waits for the requests under way.
func (w *Waker) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	w.Fleet.Notify(changed)
	defer w.Fleet.Forget(changed)
	var wait sync.WaitGroup
	defer wait.Wait()
	slots := make(chan struct{}, maxRaising)
	sights := newSightings(w)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		next := w.pass(ctx, now, &wait, slots, sights)
		next = min(next, sights.pass(now, w.Fleet.View()))
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.signal:
		case <-changed:
		case <-timer.C:
		}
	}
}

// pass starts what can start now, and says when to look again at the latest.
func (w *Waker) pass(ctx context.Context, now time.Time, wait *sync.WaitGroup, slots chan struct{}, sights *sightings) time.Duration {
	view := w.Fleet.View()
	w.mu.Lock()
	defer w.mu.Unlock()
	next := time.Hour
	maps.DeleteFunc(w.heard, func(_ string, at time.Time) bool { return now.Sub(at) > remembered })
	order := map[string]bool{}
	for name, one := range w.pending {
		if now.After(one.until) && !one.inFlight {
			delete(w.pending, name)
			continue
		}
		next = min(next, one.until.Sub(now)+time.Millisecond)
		f := view.Functions[name]
		if f == nil {
			continue
		}
		if f.Wanted > 0 {
			one.hold = time.Time{}
			sights.wanted(name, now)
			continue
		}
		if now.Before(one.hold) {
			next = min(next, one.hold.Sub(now))
			continue
		}
		if one.inFlight || len(slots) == cap(slots) { // its end, or a slot's, is told
			continue
		}
		for _, raise := range startOrder(now, view, name) {
			order[raise] = true
		}
	}
	for name := range order {
		if w.pending[name] == nil {
			w.pending[name] = &attempt{until: now.Add(decide.WakeHolds)}
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(order), func(a, b string) int { return w.pending[a].before(w.pending[b]) }) {
		one := w.pending[name]
		ready := one.next
		if !one.done.IsZero() && one.from == view.Functions[name].Revision {
			ready = one.done.Add(raised)
		}
		if one.inFlight || now.Before(ready) {
			next = min(next, max(ready.Sub(now), time.Millisecond))
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			return next // the end of one is told
		}
		one.inFlight = true
		w.asked++
		f := view.Functions[name]
		revision := f.Revision
		if one.revision != "" {
			revision = one.revision
		}
		wait.Go(func() {
			w.raise(ctx, f, revision)
			<-slots
			w.poke()
		})
	}
	return next
}

// raise asks the orchestrator once.
func (w *Waker) raise(ctx context.Context, f *fleet.Function, revision orchestrator.Revision) {
	began := time.Now()
	scaled, err := w.Orchestrator.Wake(ctx, f.Name, revision, decide.StartCount(f.Spec))
	var conflict *orchestrator.Conflict
	if errors.As(err, &conflict) {
		scaled = conflict.Current
		if scaled.Wanted > 0 {
			err = nil // another was faster
		}
	}
	now := time.Now()
	w.mu.Lock()
	one := w.pending[f.Name]
	if one == nil {
		one = &attempt{}
		w.pending[f.Name] = one
	}
	one.inFlight = false
	if err == nil {
		one.done, one.from, one.pause, one.revision = now, f.Revision, 0, ""
	} else {
		one.revision = scaled.Revision
		if conflict == nil {
			one.pause = min(max(2*one.pause, firstPause), maxPause)
			one.next = now.Add(one.pause)
		}
	}
	w.mu.Unlock()
	if err == nil {
		w.Log.Info("raised", "fn", f.Name, "replicas", scaled.Wanted, "took", now.Sub(began))
	} else if ctx.Err() == nil {
		w.Log.Warn("could not raise a function yet", "fn", f.Name, "err", err)
	}
}

// startOrder says what to raise so that a function can run, looking only at it and what it depends on.
func startOrder(now time.Time, view *fleet.View, name string) []string {
	var functions []*decide.Function
	seen := map[string]bool{}
	for next := []string{name}; len(next) > 0; next = next[1:] {
		f := view.Functions[next[0]]
		if f == nil || seen[f.Name] {
			continue
		}
		seen[f.Name] = true
		functions = append(functions, &decide.Function{
			Name: f.Name, Spec: f.Spec, Broken: len(f.Problems) > 0, Fixed: f.Fixed, FixedBy: f.FixedBy, Autoscaler: f.Autoscaler,
			Wanted: f.Wanted, Ready: f.Ready(), StartFailure: f.StartFailure(),
		})
		next = append(next, f.Spec.DependsOn...)
	}
	return decide.NewFacts(now, functions).StartOrder(name)
}
