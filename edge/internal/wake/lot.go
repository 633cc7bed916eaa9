package wake

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// lot is where the requests of one function wait, first come first served. One goroutine serves it while somebody waits or a
// wake is wanted.
type lot struct {
	w    *Waker
	f    *replica.Function
	kick chan struct{} // capacity 1: look again

	mu      sync.Mutex // guards the fields below; never held across I/O
	waiting []*waiter
	running bool
	until   time.Time // a wake without a request is wanted until then
	touched time.Time // last publication for a function that was awake already
	starts  starts

	// Of the serving goroutine only.
	woken, addressed time.Time // when the table first showed wanted ≥ 1, a replica its address; zero before
	nextWake         time.Time
	pause            time.Duration
}

// waiter is one parked request.
type waiter struct {
	since time.Time
	lease chan leased // capacity 1
}

// leased is what a waiter gets; without a lease the function is gone.
type leased struct {
	lease  *replica.Lease
	waited replica.Waited
}

// push parks at the end; nil when as many wait as may.
func (l *lot) push() *waiter {
	x := &waiter{since: time.Now(), lease: make(chan leased, 1)}
	l.mu.Lock()
	if len(l.waiting) >= l.w.MaxPerFunction {
		l.mu.Unlock()
		return nil
	}
	if len(l.waiting) == 0 && !slices.ContainsFunc(l.f.Replicas(), (*replica.Replica).Usable) {
		l.starts.begin(x.since)
	}
	l.waiting = append(l.waiting, x)
	l.mu.Unlock()
	l.start()
	return x
}

// leave takes a waiter off; false when it has been given a lease already.
func (l *lot) leave(x *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiting, x)
	if i < 0 {
		return false
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	return true
}

// start makes sure the lot is served and looks now.
func (l *lot) start() {
	l.mu.Lock()
	run := !l.running
	l.running = true
	l.mu.Unlock()
	if run && !l.w.serve(l) {
		l.mu.Lock()
		l.running = false
		l.mu.Unlock()
		return
	}
	l.look()
}

func (l *lot) look() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// run serves the lot until nobody waits and no wake is wanted.
func (l *lot) run(ctx context.Context) {
	var probes sync.WaitGroup
	defer probes.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.woken, l.addressed, l.nextWake, l.pause = time.Time{}, time.Time{}, time.Time{}, firstPause
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		l.mark()
		l.release()
		if l.finished() {
			return
		}
		wait := idlePause
		if left, wanted := l.wake(); wanted {
			wait = min(wait, left)
		}
		if l.probe(ctx, &probes) {
			wait = min(wait, probeEvery)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			l.mu.Lock()
			l.running = false
			l.mu.Unlock()
			return
		case <-l.kick:
		case <-timer.C:
		}
	}
}

// release gives leases in order, as many as there are.
func (l *lot) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	gone := l.f.Record().GetDeleted()
	given := 0
	for _, x := range l.waiting {
		var lease *replica.Lease
		if !gone {
			var ok bool
			if lease, ok = l.f.Choose(load.Sync, nil); !ok {
				break
			}
		}
		if lease != nil {
			l.starts.end(time.Now())
		}
		x.lease <- leased{lease, l.timing(x)} // never blocks: a waiter is given one lease
		given++
	}
	l.waiting = slices.Delete(l.waiting, 0, given)
}

// mark notes when the way to a replica was got past, for Server-Timing.
func (l *lot) mark() {
	now := time.Now()
	all := l.f.Replicas()
	if l.addressed.IsZero() && slices.ContainsFunc(all, coming) {
		l.addressed = now
	}
	if l.woken.IsZero() && (l.raised() || !l.addressed.IsZero()) {
		l.woken = now
	}
}

// timing splits the wait: until somebody raised the function, until a replica had an address, until it could be used.
func (l *lot) timing(x *waiter) replica.Waited {
	now := time.Now()
	clamp := func(t time.Time) time.Time {
		if t.IsZero() || t.After(now) {
			return now
		}
		if t.Before(x.since) {
			return x.since
		}
		return t
	}
	woken, addressed := clamp(l.woken), clamp(l.addressed)
	return replica.Waited{Wake: woken.Sub(x.since), Start: max(0, addressed.Sub(woken)), Probe: now.Sub(addressed)}
}

// finished ends the service; the next push starts another.
func (l *lot) finished() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 || time.Now().Before(l.until) && !l.raised() && !l.f.Record().GetDeleted() {
		return false
	}
	l.running, l.until = false, time.Time{}
	return true
}

// raised says whether the table shows the function wanted, under the current epoch: an older record may be what a dead
// scaler wished.
func (l *lot) raised() bool {
	rec := l.f.Record()
	return rec.GetWanted() >= 1 && rec.GetVersion().GetEpoch() >= l.w.Epoch()
}

// wake publishes when due and says when it is due next; false when no wake is needed now.
func (l *lot) wake() (left time.Duration, wanted bool) {
	now := time.Now()
	if l.raised() && !l.onlyDraining() {
		l.nextWake, l.pause = time.Time{}, firstPause
		return 0, false
	}
	if now.Before(l.nextWake) {
		return l.nextWake.Sub(now), true
	}
	pause := l.pause
	if err := l.w.Publish(&wire.Wake{Functions: []string{l.f.Name()}, Edge: l.w.Name}); err != nil {
		pause = firstPause // the bus is away; the loop is the retry, and the wait is bounded by the caller's patience
	} else {
		l.pause = min(2*l.pause, lastPause)
	}
	l.nextWake = now.Add(pause)
	return pause, true
}

// coming: a replica that is on its way or here, not one on its way out.
func coming(r *replica.Replica) bool {
	return r.State == wire.ReplicaState_REPLICA_STATE_STARTING || r.State == wire.ReplicaState_REPLICA_STATE_READY
}

// onlyDraining: the scaler is asked to keep one, though it wants some.
func (l *lot) onlyDraining() bool {
	draining := false
	for _, r := range l.f.Record().GetReplicas() {
		switch r.GetState() {
		case wire.ReplicaState_REPLICA_STATE_PENDING, wire.ReplicaState_REPLICA_STATE_STARTING, wire.ReplicaState_REPLICA_STATE_READY:
			return false
		case wire.ReplicaState_REPLICA_STATE_DRAINING:
			draining = true
		}
	}
	return draining
}
