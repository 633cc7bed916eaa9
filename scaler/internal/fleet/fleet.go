// Package fleet keeps the newest view of the orchestrator, with every workload's annotations read once.
package fleet

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/function"
)

// Function is one workload with its specification. Values are never changed once they can be seen.
type Function struct {
	orchestrator.Workload
	Spec     *function.Specification // never nil; with Problems it holds what could be read
	Problems []string
	Warnings []string
	// Seen is when this scaler first saw it.
	Seen time.Time
	// Appeared: it was not there before; otherwise it existed when this scaler first looked.
	Appeared bool
}

// Ready counts the replicas the orchestrator calls ready.
func (f *Function) Ready() int { return f.count(orchestrator.Ready) }

// Count counts the replicas in any of the phases.
func (f *Function) count(phases ...orchestrator.Phase) int {
	n := 0
	for i := range f.Replicas {
		if slices.Contains(phases, f.Replicas[i].Phase) {
			n++
		}
	}
	return n
}

// StartFailure says why a replica cannot be placed; empty: none is refused.
func (f *Function) StartFailure() string {
	for i := range f.Replicas {
		if f.Replicas[i].Unplaced {
			return cmp.Or(f.Replicas[i].Detail, "it cannot be placed")
		}
	}
	return ""
}

// View is everything at one moment. Never changed.
type View struct {
	Functions map[string]*Function // by name; of two with one name the Deployment, else the older
	Parts     map[string]bool      // our own processes: alive or not
	Synced    bool                 // everything was seen at least once
	Current   bool                 // the orchestrator is being watched now
}

// Fleet is an orchestrator.Sink.
type Fleet struct {
	now func() time.Time
	log *slog.Logger

	mu       sync.Mutex
	byKey    map[string]*Function
	parts    map[string]bool
	synced   bool
	current  bool
	view     *View // nil: to be built
	watchers []chan<- struct{}
}

var _ orchestrator.Sink = (*Fleet)(nil)

// New makes an empty fleet.
func New(now func() time.Time, log *slog.Logger) *Fleet {
	return &Fleet{now: now, log: log, byKey: map[string]*Function{}, parts: map[string]bool{}}
}

// Notify adds a channel of capacity 1 that gets a token after each change. A full channel is left as it is.
func (f *Fleet) Notify(changed chan<- struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers = append(f.watchers, changed)
}

// Forget removes a channel given to Notify.
func (f *Fleet) Forget(changed chan<- struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers = slices.DeleteFunc(f.watchers, func(c chan<- struct{}) bool { return c == changed })
}

// View is the newest view.
func (f *Fleet) View() *View {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		f.view = f.build()
	}
	return f.view
}

func (f *Fleet) build() *View {
	view := &View{
		Functions: make(map[string]*Function, len(f.byKey)), Parts: maps.Clone(f.parts), Synced: f.synced, Current: f.current,
	}
	for _, one := range f.byKey {
		other := view.Functions[one.Name]
		if other == nil {
			view.Functions[one.Name] = one
			continue
		}
		winner, loser := one, other
		if before(other, one) {
			winner, loser = other, one
		}
		marked := *winner
		marked.Warnings = append(slices.Clone(winner.Warnings),
			"a "+loser.Kind+" of the same name ("+loser.Key+") is ignored: the first of a name counts")
		view.Functions[one.Name] = &marked
	}
	return view
}

// before says which of two workloads of one name counts.
func before(a, b *Function) bool {
	if (a.Kind == "Deployment") != (b.Kind == "Deployment") {
		return a.Kind == "Deployment"
	}
	if !a.Seen.Equal(b.Seen) {
		return a.Seen.Before(b.Seen)
	}
	return a.Key < b.Key
}

// Reset implements orchestrator.Sink.
func (f *Fleet) Reset(workloads []orchestrator.Workload, parts []orchestrator.Part) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.byKey
	f.byKey = make(map[string]*Function, len(workloads))
	for i := range workloads {
		f.byKey[workloads[i].Key] = f.read(old[workloads[i].Key], workloads[i])
	}
	f.parts = make(map[string]bool, len(parts))
	for _, part := range parts {
		f.parts[part.Name] = part.Alive
	}
	f.synced, f.current = true, true
	f.changed()
}

// Workload implements orchestrator.Sink.
func (f *Fleet) Workload(workload orchestrator.Workload) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byKey[workload.Key] = f.read(f.byKey[workload.Key], workload)
	f.changed()
}

// Deleted implements orchestrator.Sink.
func (f *Fleet) Deleted(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byKey, key)
	f.changed()
}

// Part implements orchestrator.Sink.
func (f *Fleet) Part(part orchestrator.Part) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parts[part.Name] = part.Alive
	f.changed()
}

// Lost implements orchestrator.Sink.
func (f *Fleet) Lost(error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = false
	f.changed()
}

// read makes a Function of a workload; old is what was known of it, nil: nothing.
func (f *Fleet) read(old *Function, workload orchestrator.Workload) *Function {
	one := &Function{Workload: workload}
	if old != nil {
		one.Seen, one.Appeared = old.Seen, old.Appeared
		if maps.Equal(old.Annotations, workload.Annotations) {
			one.Spec, one.Problems, one.Warnings = old.Spec, old.Problems, old.Warnings
			return one
		}
	} else {
		one.Seen, one.Appeared = f.now(), f.synced
	}
	spec, problems := function.Parse(workload.Name, workload.Annotations)
	one.Spec, one.Problems, one.Warnings = &spec, problems.Strings(), function.Warnings(workload.Name, workload.Annotations)
	for _, problem := range one.Problems {
		f.log.Error("a function is broken", "fn", workload.Name, "problem", problem)
	}
	for _, warning := range one.Warnings {
		f.log.Warn("an annotation will not do what it seems to", "fn", workload.Name, "warning", warning)
	}
	return one
}

// changed throws the view away and tells everybody. The caller holds mu.
func (f *Fleet) changed() {
	f.view = nil
	for _, watcher := range f.watchers {
		select {
		case watcher <- struct{}{}:
		default:
		}
	}
}
