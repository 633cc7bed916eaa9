// Package fleet runs the functions of a local stack: how many replicas of each, started, asked for health, started again
// after a crash and stopped; and it tells whoever watches.
package fleet

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/deploy/local/internal/ports"
	"github.com/slimfaas/slimfaas/deploy/local/internal/proc"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// maxReplicas is the most one call of Scale may ask for.
const maxReplicas = 1024

// Reasons why Scale and Wake change nothing.
var (
	ErrUnknown  = errors.New("no such function")
	ErrEpoch    = errors.New("an epoch above this one was seen")
	ErrConflict = errors.New("the workload has another revision")
	ErrInvalid  = errors.New("cannot be asked for")
	ErrStopping = errors.New("the supervisor is stopping")
)

// Options of a Fleet. All are required but NoRestart and Hurry.
type Options struct {
	Namespace string
	Host      *proc.Host
	Ports     *ports.Range
	Environ   []string // what functions inherit
	URL       string   // of the entry, given to functions as SLIMFAAS_URL
	NoRestart bool     // a replica that died stays dead
	Hurry     <-chan struct{}
	Log       *slog.Logger
}

// Fleet is all functions of one stack.
type Fleet struct {
	o        Options
	replicas sync.WaitGroup

	mu        sync.Mutex // guards what follows; never held while waiting
	revision  uint64     // of the last event
	epoch     uint64     // the highest seen
	workloads map[string]*workload
	order     []string
	parts     map[string]wire.LocalPart
	watchers  map[*Watcher]struct{}
	instances int
	stopping  bool
}

type workload struct {
	f        manifest.Function
	wanted   int
	revision uint64 // of the last change of wanted
	replicas map[int]*replica
}

// replica is one place of a workload: a process, its successors after crashes, and the waits between.
type replica struct {
	name  string
	index int
	stop  chan struct{} // closed once: told to stop

	// Guarded by Fleet.mu.
	told     wire.LocalReplica
	shown    bool // a process was started or could not be: from then on watchers see it
	stopping bool
}

// New makes the workloads, with nothing running.
func New(o Options, functions []manifest.Function) *Fleet {
	f := &Fleet{o: o, workloads: map[string]*workload{}, parts: map[string]wire.LocalPart{}, watchers: map[*Watcher]struct{}{}}
	for _, fn := range functions {
		f.revision++
		f.order = append(f.order, fn.Name)
		f.workloads[fn.Name] = &workload{f: fn, revision: f.revision, replicas: map[int]*replica{}}
	}
	slices.Sort(f.order)
	return f
}

// Start brings every function to its ReplicasMin, and begins to look after those that somebody else runs.
func (f *Fleet) Start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range f.order {
		switch w := f.workloads[name]; {
		case w.f.DebugURL != "":
			w.wanted = 1
			r := &replica{name: name + "-debug", stop: make(chan struct{})}
			w.replicas[0] = r
			f.replicas.Go(func() { f.runDebug(w, r) })
		case w.f.Spec.ReplicasMin > 0:
			f.setWanted(w, w.f.Spec.ReplicasMin, nil)
		}
	}
}

// Scale sets the number of replicas under an epoch and a revision.
func (f *Fleet) Scale(s wire.LocalScale) (wire.LocalScaled, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.workloads[s.Function]
	switch {
	case w == nil:
		return wire.LocalScaled{}, fmt.Errorf("scaling %q: %w", s.Function, ErrUnknown)
	case f.stopping:
		return w.scaled(), fmt.Errorf("scaling %s: %w", s.Function, ErrStopping)
	case s.Epoch < f.epoch:
		return w.scaled(), fmt.Errorf("scaling %s under epoch %d: %w (%d)", s.Function, s.Epoch, ErrEpoch, f.epoch)
	}
	f.epoch = s.Epoch
	switch {
	case s.Replicas < 0 || s.Replicas > maxReplicas:
		return w.scaled(), fmt.Errorf("scaling %s to %d replicas: %w: 0–%d", s.Function, s.Replicas, ErrInvalid, maxReplicas)
	case w.f.DebugURL != "":
		return w.scaled(), fmt.Errorf("scaling %s: %w: debugUrl gives it one replica that is never scaled", s.Function, ErrInvalid)
	case s.IfRevision != w.revision:
		return w.scaled(), fmt.Errorf("scaling %s if its revision is %d: %w (%d)", s.Function, s.IfRevision, ErrConflict, w.revision)
	}
	if s.Replicas != w.wanted {
		f.o.Log.Info("a function is scaled", "fn", s.Function, "from", w.wanted, "to", s.Replicas, "epoch", s.Epoch)
		f.setWanted(w, s.Replicas, s.Victims)
	}
	return w.scaled(), nil
}

// Wake raises 0 to ReplicasAtStart, at least 1. A function that has replicas already is a success.
func (f *Fleet) Wake(s wire.LocalWake) (wire.LocalScaled, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.workloads[s.Function]
	switch {
	case w == nil:
		return wire.LocalScaled{}, fmt.Errorf("waking %q: %w", s.Function, ErrUnknown)
	case f.stopping:
		return w.scaled(), fmt.Errorf("waking %s: %w", s.Function, ErrStopping)
	case w.wanted > 0:
		return w.scaled(), nil
	case s.IfRevision != 0 && s.IfRevision != w.revision:
		return w.scaled(), fmt.Errorf("waking %s if its revision is %d: %w (%d)", s.Function, s.IfRevision, ErrConflict, w.revision)
	}
	n := max(1, w.f.Spec.ReplicasAtStart)
	f.o.Log.Info("a function is woken", "fn", s.Function, "to", n)
	f.setWanted(w, n, nil)
	return w.scaled(), nil
}

func (w *workload) scaled() wire.LocalScaled {
	return wire.LocalScaled{Wanted: w.wanted, Revision: w.revision}
}

// setWanted starts the lowest free indexes, or stops the victims first and then the highest. The lock is held.
func (f *Fleet) setWanted(w *workload, n int, victims []string) {
	w.wanted = n
	w.revision = f.revision + 1 // that of the event below
	live := w.live()
	for _, r := range choose(live, len(live)-n, victims) {
		r.stopping, r.told.State, r.told.Detail = true, wire.LocalStopping, ""
		close(r.stop)
	}
	for index := 0; len(live) < n; index++ {
		if w.replicas[index] != nil {
			continue // also one that is still stopping: its name is not free yet
		}
		r := &replica{name: fmt.Sprintf("fn-%s-%d", w.f.Name, index), index: index, stop: make(chan struct{})}
		w.replicas[index] = r
		live = append(live, r)
		f.replicas.Go(func() { f.run(w, r) })
	}
	f.publish(w)
}

// live are the replicas that were not told to stop, by index.
func (w *workload) live() []*replica {
	var live []*replica
	for _, r := range w.sorted() {
		if !r.stopping {
			live = append(live, r)
		}
	}
	return live
}

func (w *workload) sorted() []*replica {
	return slices.SortedFunc(maps.Values(w.replicas), func(a, b *replica) int { return a.index - b.index })
}

// choose picks n of live to stop: victims by name first, then from the highest index down.
func choose(live []*replica, n int, victims []string) []*replica {
	var chosen []*replica
	for _, name := range victims {
		for _, r := range live {
			if r.name == name && !slices.Contains(chosen, r) {
				chosen = append(chosen, r)
			}
		}
	}
	for _, r := range slices.Backward(live) {
		if !slices.Contains(chosen, r) {
			chosen = append(chosen, r)
		}
	}
	return chosen[:max(0, min(n, len(chosen)))]
}

// change alters what is told of a replica and publishes its workload. A replica told to stop keeps that state.
func (f *Fleet) change(w *workload, r *replica, alter func(*wire.LocalReplica)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	alter(&r.told)
	r.shown = true
	if r.stopping {
		r.told.State = wire.LocalStopping
	}
	f.publish(w)
}

// gone forgets a replica whose last process has ended.
func (f *Fleet) gone(w *workload, r *replica) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(w.replicas, r.index)
	f.publish(w)
}

// instance is a new name for one start of one process.
func (f *Fleet) instance(pid int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.instances++
	return fmt.Sprintf("%d-%d", f.instances, pid)
}

// SetPart tells watchers about one of our own processes.
func (f *Fleet) SetPart(p wire.LocalPart) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parts[p.Name] = p
	f.revision++
	f.send(wire.LocalEvent{Type: wire.LocalEventPart, Revision: f.revision, Part: &p})
}

// Status lists everything.
func (f *Fleet) Status() ([]wire.LocalPart, []wire.LocalWorkload) {
	f.mu.Lock()
	defer f.mu.Unlock()
	workloads := make([]wire.LocalWorkload, 0, len(f.order))
	for _, name := range f.order {
		workloads = append(workloads, f.workload(f.workloads[name]))
	}
	return f.sortedParts(), workloads
}

func (f *Fleet) sortedParts() []wire.LocalPart {
	return slices.SortedFunc(maps.Values(f.parts), func(a, b wire.LocalPart) int { return strings.Compare(a.Name, b.Name) })
}

func (f *Fleet) workload(w *workload) wire.LocalWorkload {
	out := wire.LocalWorkload{
		Name: w.f.Name, Namespace: f.o.Namespace, Annotations: w.f.Annotations,
		Wanted: w.wanted, Revision: w.revision, Fixed: w.f.DebugURL != "", Replicas: []wire.LocalReplica{},
	}
	for _, r := range w.sorted() {
		if r.shown {
			out.Replicas = append(out.Replicas, r.told)
		}
	}
	return out
}

// Stop ends every replica and waits until all are gone. Nothing starts any more.
func (f *Fleet) Stop() {
	f.mu.Lock()
	f.stopping = true
	for _, name := range f.order {
		w := f.workloads[name]
		for _, r := range w.live() {
			r.stopping, r.told.State = true, wire.LocalStopping
			close(r.stop)
		}
		f.publish(w)
	}
	f.mu.Unlock()
	f.replicas.Wait()
}
