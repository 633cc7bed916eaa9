package orchestratortest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

// Fake is an orchestrator in memory. It passes the suite, and can be told to misbehave.
type Fake struct {
	// StartTime is how long a replica takes to be ready.
	StartTime time.Duration
	// AnswerTime is how long the answer to a scale takes after it was carried out: the watch and others are faster.
	AnswerTime time.Duration
	// WakeTime is how long a wake takes until it is carried out.
	WakeTime time.Duration

	mu        sync.Mutex
	workloads map[string]*orchestrator.Workload
	parts     map[string]bool
	sinks     map[orchestrator.Sink]chan struct{} // closed to break the watch
	revision  uint64
	instance  int
	epoch     uint64
	fail      func(what string, carriedOut bool) error
	log       []string
	stopped   []string // replicas that were stopped, in order
}

var _ orchestrator.Orchestrator = (*Fake)(nil)

// NewFake makes an orchestrator without functions.
func NewFake() *Fake {
	return &Fake{
		workloads: map[string]*orchestrator.Workload{}, parts: map[string]bool{}, sinks: map[orchestrator.Sink]chan struct{}{}, revision: 1,
	}
}

// Add adds a function, or changes its annotations. SlimFaas/Function is added to them.
func (f *Fake) Add(name string, annotations map[string]string) {
	f.change(func() {
		all := map[string]string{"SlimFaas/Function": "true"}
		for key, value := range annotations {
			all[key] = value
		}
		w := f.workloads[name]
		if w == nil {
			w = &orchestrator.Workload{Key: name, Name: name, Namespace: "test", Kind: "Deployment", Revision: f.next()}
			f.workloads[name] = w
		}
		w.Annotations = all
		f.tell(w)
	})
}

// Remove removes a function with its replicas.
func (f *Fake) Remove(name string) {
	f.change(func() {
		delete(f.workloads, name)
		for sink := range f.sinks {
			sink.Deleted(name)
		}
	})
}

// Edit changes a workload in any way and tells it.
func (f *Fake) Edit(name string, edit func(*orchestrator.Workload)) {
	f.change(func() {
		edit(f.workloads[name])
		f.tell(f.workloads[name])
	})
}

// SetPart says whether one of our own processes lives.
func (f *Fake) SetPart(name string, alive bool) {
	f.change(func() {
		f.parts[name] = alive
		for sink := range f.sinks {
			sink.Part(orchestrator.Part{Name: name, Alive: alive})
		}
	})
}

// Fail makes requests fail for as long as fail returns an error. It is asked before a request is carried out and after: an error
// then is an answer that got lost.
func (f *Fake) Fail(fail func(what string, carriedOut bool) error) {
	f.change(func() { f.fail = fail })
}

// Log lists the requests that changed something: "wake f 1", "scale f 0 [f-0]".
func (f *Fake) Log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// Get is a workload as it is now.
func (f *Fake) Get(name string) orchestrator.Workload {
	f.mu.Lock()
	defer f.mu.Unlock()
	return clone(f.workloads[name])
}

// Interrupt breaks every watch.
func (f *Fake) Interrupt() {
	f.change(func() {
		for _, broken := range f.sinks {
			close(broken)
		}
		clear(f.sinks)
	})
}

func (f *Fake) change(apply func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	apply()
}

func (f *Fake) next() orchestrator.Revision {
	f.revision++
	return orchestrator.Revision(strconv.FormatUint(f.revision, 10))
}

func clone(w *orchestrator.Workload) orchestrator.Workload {
	copied := *w
	copied.Replicas = slices.Clone(w.Replicas)
	return copied
}

func (f *Fake) tell(w *orchestrator.Workload) {
	for sink := range f.sinks {
		sink.Workload(clone(w))
	}
}

var errBroken = errors.New("the watch was broken")

// Watch implements orchestrator.Orchestrator.
func (f *Fake) Watch(ctx context.Context, sink orchestrator.Sink) error {
	for {
		broken := make(chan struct{})
		f.change(func() {
			var workloads []orchestrator.Workload
			for _, w := range f.workloads {
				workloads = append(workloads, clone(w))
			}
			var parts []orchestrator.Part
			for name, alive := range f.parts {
				parts = append(parts, orchestrator.Part{Name: name, Alive: alive})
			}
			f.sinks[sink] = broken
			sink.Reset(workloads, parts)
		})
		select {
		case <-ctx.Done():
			f.change(func() { delete(f.sinks, sink) })
			return ctx.Err()
		case <-broken:
			sink.Lost(errBroken)
		}
	}
}

// Wake implements orchestrator.Orchestrator.
func (f *Fake) Wake(ctx context.Context, function string, ifRevision orchestrator.Revision, replicasAtStart int) (orchestrator.Scaled, error) {
	if f.WakeTime > 0 {
		select {
		case <-time.After(f.WakeTime):
		case <-ctx.Done():
			return orchestrator.Scaled{}, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure("wake "+function, false); err != nil {
		return orchestrator.Scaled{}, err
	}
	w := f.workloads[function]
	switch {
	case w == nil:
		return orchestrator.Scaled{}, orchestrator.ErrNotFound
	case w.Wanted > 0:
		return state(w), nil
	case ifRevision != "" && ifRevision != w.Revision:
		return state(w), &orchestrator.Conflict{Function: function, Current: state(w)}
	}
	f.log = append(f.log, fmt.Sprintf("wake %s %d", function, replicasAtStart))
	f.set(w, replicasAtStart, nil)
	return state(w), f.failure("wake "+function, true)
}

// Scale implements orchestrator.Orchestrator.
func (f *Fake) Scale(ctx context.Context, request orchestrator.Request) (orchestrator.Scaled, error) {
	scaled, err := f.scale(request)
	if f.AnswerTime > 0 {
		select {
		case <-time.After(f.AnswerTime):
		case <-ctx.Done():
		}
	}
	return scaled, err
}

func (f *Fake) scale(request orchestrator.Request) (orchestrator.Scaled, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure("scale "+request.Function, false); err != nil {
		return orchestrator.Scaled{}, err
	}
	w := f.workloads[request.Function]
	switch {
	case w == nil:
		return orchestrator.Scaled{}, orchestrator.ErrNotFound
	case request.Epoch < f.epoch:
		return state(w), orchestrator.ErrStaleEpoch
	case request.IfRevision != w.Revision:
		return state(w), &orchestrator.Conflict{Function: request.Function, Current: state(w)}
	}
	f.epoch = request.Epoch
	if request.Replicas != w.Wanted {
		f.log = append(f.log, fmt.Sprintf("scale %s %d %v", request.Function, request.Replicas, request.Victims))
		f.set(w, request.Replicas, request.Victims)
	}
	return state(w), f.failure("scale "+request.Function, true)
}

func (f *Fake) failure(what string, carriedOut bool) error {
	if f.fail == nil {
		return nil
	}
	return f.fail(what, carriedOut)
}

func state(w *orchestrator.Workload) orchestrator.Scaled {
	return orchestrator.Scaled{Wanted: w.Wanted, Revision: w.Revision}
}

// set starts or stops replicas at once. The caller holds mu.
func (f *Fake) set(w *orchestrator.Workload, wanted int, victims []string) {
	w.Wanted, w.Revision = wanted, f.next()
	for len(w.Replicas) > wanted {
		i := slices.IndexFunc(w.Replicas, func(r orchestrator.Replica) bool { return slices.Contains(victims, r.Name) })
		if i < 0 {
			i = len(w.Replicas) - 1
		}
		f.stopped = append(f.stopped, w.Replicas[i].Name)
		w.Replicas = slices.Delete(slices.Clone(w.Replicas), i, i+1)
	}
	for n := 0; len(w.Replicas) < wanted; n++ {
		name := fmt.Sprintf("%s-%d", w.Name, n)
		if slices.ContainsFunc(w.Replicas, func(r orchestrator.Replica) bool { return r.Name == name }) {
			continue
		}
		f.instance++
		instance := strconv.Itoa(f.instance)
		w.Replicas = append(w.Replicas, orchestrator.Replica{
			Name: name, Instance: instance, Host: "127.0.0.1", Ports: []uint32{uint32(40000 + f.instance%20000)}, //nolint:gosec // a port
			Phase: orchestrator.Starting, HealthPath: "/health",
		})
		time.AfterFunc(f.StartTime, func() { f.ready(w.Name, instance) })
	}
	f.tell(w)
}

func (f *Fake) ready(name, instance string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.workloads[name]
	if w == nil {
		return
	}
	for i := range w.Replicas {
		if w.Replicas[i].Instance == instance {
			w.Replicas = slices.Clone(w.Replicas)
			w.Replicas[i].Phase, w.Replicas[i].WasReady = orchestrator.Ready, true
			f.tell(w)
		}
	}
}
