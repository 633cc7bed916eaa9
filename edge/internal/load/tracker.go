// Package load counts what is under way on this edge and tells the scalers: per function calls, open streams, parked
// requests and deliveries, and per replica everything that is open on it. Counting is two or three atomic additions; no
// lock is shared between functions.
package load

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Kind says what a call is.
type Kind uint8

const (
	// Sync is a caller's request that waits for the answer.
	Sync Kind = iota
	// Delivery is an async try or an event call.
	Delivery
	// Quiet is a caller's request that does not keep the function awake: it is counted on the replica, which is not stopped
	// under it, and is no activity of the function.
	Quiet
)

// Tracker holds the counters of every function this edge has seen in the table. Safe for concurrent use.
type Tracker struct {
	start  time.Time
	whole  atomic.Bool   // the next report is a full one
	signal chan struct{} // capacity 1: something crossed 0 ↔ n, or a drain moved

	mu        sync.Mutex // guards functions; the hot path keeps *Function and never looks here
	functions map[string]*Function

	changing sync.Mutex  // guards changed
	changed  []*Function // those that are dirty: of ten thousand functions a few
}

// NewTracker returns an empty tracker; ages count from now.
func NewTracker() *Tracker {
	return &Tracker{start: time.Now(), signal: make(chan struct{}, 1), functions: map[string]*Function{}}
}

// Function returns the counters of a function, made at the first call. Call it only with names the table knows: the map
// grows with it.
func (t *Tracker) Function(name string) *Function {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.functions[name]
	if f == nil {
		f = &Function{name: name, tracker: t}
		t.functions[name] = f
	}
	return f
}

// Forget drops the counters of a function that left the table. Calls under way keep counting on the old value.
func (t *Tracker) Forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.functions, name)
}

// Open is the number of calls and deliveries under way, all functions together: what a drain of this edge waits for.
func (t *Tracker) Open() int64 {
	var n int64
	for _, f := range t.list() {
		n += f.inFlight.Load() + f.deliveries.Load() + f.parked.Load()
	}
	return n
}

func (t *Tracker) list() []*Function {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*Function, 0, len(t.functions))
	for _, f := range t.functions {
		all = append(all, f)
	}
	return all
}

// takeChanged gives the functions that are to be reported whatever their figures, each once for all its changes up to now.
func (t *Tracker) takeChanged() []*Function {
	t.changing.Lock()
	changed := t.changed
	t.changed = nil
	t.changing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(changed, func(f *Function) bool {
		f.dirty.Store(false)
		return t.functions[f.name] != f // it was forgotten
	})
}

// now is nanoseconds since the tracker began, at least 1: 0 means never.
func (t *Tracker) now() int64 { return max(1, int64(time.Since(t.start))) }

func (t *Tracker) notify() {
	select {
	case t.signal <- struct{}{}:
	default: // a report is due already
	}
}

// Function is the load of one function on this edge.
type Function struct {
	name    string
	tracker *Tracker

	active     atomic.Int64 // calls + parked + deliveries: crossing 0 is reported at once
	inFlight   atomic.Int64
	streams    atomic.Int64
	parked     atomic.Int64
	deliveries atomic.Int64
	lastEnd    atomic.Int64 // tracker.now() of the last end of anything; 0 never
	dirty      atomic.Bool  // to be sent with the next report, whatever the figures; it is among the tracker's changed
}

// Begin counts a call of this kind on a replica. The caller must look again, afterwards, whether the replica may still be
// used, and End the call at once if not: that order is what makes "zero open" of a draining replica final. open is what is
// open on the replica with this call.
func (f *Function) Begin(r *Replica, kind Kind) (call Call, open int64) {
	open = r.open.Add(1)
	switch kind {
	case Quiet:
		return Call{f: f, r: r, kind: kind}, open
	case Delivery:
		f.deliveries.Add(1)
	default:
		f.inFlight.Add(1)
	}
	f.enter()
	return Call{f: f, r: r, kind: kind}, open
}

// Park counts a request that waits for a replica. End the wait with the returned function, once.
func (f *Function) Park() (end func()) {
	f.parked.Add(1)
	f.enter()
	return func() {
		f.parked.Add(-1)
		f.leave()
	}
}

// Figures are a function's counts of one moment; Streams are among InFlight.
type Figures struct{ InFlight, Streams, Parked, Deliveries int64 }

// Figures reads the counts.
func (f *Function) Figures() Figures {
	return Figures{InFlight: f.inFlight.Load(), Streams: f.streams.Load(), Parked: f.parked.Load(), Deliveries: f.deliveries.Load()}
}

// Parked is how many requests wait.
func (f *Function) Parked() int64 { return f.parked.Load() }

// Touch says that somebody asked for the function without calling it (a wake): it counts as activity that ended now.
func (f *Function) Touch() { f.lastEnd.Store(f.tracker.now()) }

// Changed asks for a report of this function at once; used when a record with draining replicas was applied.
func (f *Function) Changed() {
	if t := f.tracker; !f.dirty.Swap(true) {
		t.changing.Lock()
		t.changed = append(t.changed, f)
		t.changing.Unlock()
	}
	f.tracker.notify()
}

func (f *Function) enter() {
	if f.active.Add(1) == 1 {
		f.Changed()
	}
}

func (f *Function) leave() {
	f.lastEnd.Store(f.tracker.now())
	if f.active.Add(-1) == 0 {
		f.Changed()
	}
}

// Replica counts what is open on one replica in one life.
type Replica struct {
	open     atomic.Int64
	draining atomic.Bool
}

// Open is calls, streams and deliveries under way on the replica.
func (r *Replica) Open() int64 { return r.open.Load() }

// SetDraining makes the end of the last call on the replica a reason to report at once.
func (r *Replica) SetDraining(on bool) { r.draining.Store(on) }

// Call is one counted call. The zero Call counts nothing. Not safe for concurrent use.
type Call struct {
	f      *Function
	r      *Replica
	kind   Kind
	stream bool
}

// Stream marks that response headers went out (or the connection was upgraded) and the body is still open.
func (c *Call) Stream() {
	if c.f == nil || c.stream || c.kind != Sync {
		return
	}
	c.stream = true
	c.f.streams.Add(1)
}

// End takes the call off the counts. Only the first End counts.
func (c *Call) End() {
	if c.f == nil {
		return
	}
	f, r := c.f, c.r
	c.f, c.r = nil, nil
	if c.stream {
		f.streams.Add(-1)
	}
	switch c.kind {
	case Quiet:
	case Delivery:
		f.deliveries.Add(-1)
	default:
		f.inFlight.Add(-1)
	}
	if r.open.Add(-1) == 0 && r.draining.Load() {
		f.Changed()
	}
	if c.kind != Quiet {
		f.leave()
	}
}
