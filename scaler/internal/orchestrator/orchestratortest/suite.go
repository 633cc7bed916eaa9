// Package orchestratortest is what every orchestrator driver must do, whatever is behind it.
package orchestratortest

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

// patience is how long anything may take: a process, a container or a pod has to start meanwhile.
const patience = 60 * time.Second

// World is one orchestrator with functions in it that nobody else touches.
type World struct {
	Orchestrator orchestrator.Orchestrator
	// Single and Pair sleep at first, with ReplicasAtStart 1 and 2 and ReplicasMin 0.
	Single, Pair string
	// Held is like Pair, but its replicas become ready only once Admit was called, again for each wake. Empty: the orchestrator shows
	// every replica before it is ready; a kubelet may tell of address and readiness at once.
	Held  string
	Admit func(t *testing.T)
	// Part is one of our own processes that is alive; empty: there is none.
	Part string
	// VictimsAreHints: the orchestrator chooses itself who goes (the ReplicaSet controller).
	VictimsAreHints bool
	// Interrupt breaks the watch from outside; nil: cannot be done here.
	Interrupt func()
}

// Run runs the suite; newWorld makes a fresh world for each part.
func Run(t *testing.T, newWorld func(t *testing.T) World) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, World, *Recorder){
		"the first view is whole":                        firstView,
		"a wake starts ReplicasAtStart":                  wakeStarts,
		"a wake of what is awake changes nothing":        wakeTwice,
		"a wake from an old view conflicts":              wakeOldView,
		"unknown functions are told":                     unknown,
		"scale from an old view conflicts and says what": scaleConflict,
		"an old epoch is refused":                        staleEpoch,
		"victims go first":                               victims,
		"zero ends every replica":                        toZero,
		"a broken watch is taken up again":               interrupted,
	} {
		t.Run(name, func(t *testing.T) {
			world := newWorld(t)
			recorder := Watch(t, world.Orchestrator)
			test(t, world, recorder)
		})
	}
}

func firstView(t *testing.T, world World, recorder *Recorder) {
	for _, name := range []string{world.Single, world.Pair} {
		workload := recorder.Wait(t, name, "to be listed", func(orchestrator.Workload) bool { return true })
		if workload.Wanted != 0 || len(alive(workload)) != 0 {
			t.Errorf("%s should sleep at first: %+v", name, workload)
		}
		if workload.Annotations["SlimFaas/Function"] != "true" || workload.Kind == "" || workload.Revision == "" {
			t.Errorf("%s is not told whole: %+v", name, workload)
		}
	}
	if world.Part != "" {
		recorder.WaitFor(t, world.Part+" to be told alive", func(r *Recorder) bool { return r.parts[world.Part] })
	}
}

func wakeStarts(t *testing.T, world World, recorder *Recorder) {
	name := cmp.Or(world.Held, world.Pair)
	before := recorder.Get(t, name)
	scaled, err := world.Orchestrator.Wake(t.Context(), name, before.Revision, 2)
	if err != nil || scaled.Wanted != 2 || scaled.Revision == before.Revision {
		t.Fatalf("wake: %+v, %v", scaled, err)
	}
	if world.Held != "" {
		recorder.Wait(t, name, "two starting replicas with their addresses", func(w orchestrator.Workload) bool { return starting(w) == 2 })
		world.Admit(t)
	}
	after := recorder.Wait(t, name, "two ready replicas", func(w orchestrator.Workload) bool {
		return w.Revision == scaled.Revision && w.Wanted == 2 && ready(w) == 2
	})
	for _, replica := range after.Replicas {
		if replica.Host == "" || len(replica.Ports) == 0 || replica.Instance == "" || !replica.WasReady {
			t.Errorf("a ready replica is not told whole: %+v", replica)
		}
	}
	if !recorder.Saw(name, func(w orchestrator.Workload) bool { return starting(w) > 0 }) {
		t.Error("no replica was shown with its address before it was ready: edges could not probe it early")
	}
}

func wakeTwice(t *testing.T, world World, recorder *Recorder) {
	revision := recorder.Get(t, world.Single).Revision
	first, err := world.Orchestrator.Wake(t.Context(), world.Single, revision, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, precondition := range []orchestrator.Revision{"", revision, first.Revision} {
		again, err := world.Orchestrator.Wake(t.Context(), world.Single, precondition, 1)
		var conflict *orchestrator.Conflict
		if errors.As(err, &conflict) {
			again, err = conflict.Current, nil
		}
		if err != nil || again.Wanted != 1 || again.Revision != first.Revision {
			t.Errorf("wake with precondition %q: %+v, %v; want the state of the first, %+v", precondition, again, err, first)
		}
	}
}

func wakeOldView(t *testing.T, world World, recorder *Recorder) {
	old := recorder.Get(t, world.Single)
	up := scale(t, world, world.Single, 1, old.Revision)
	down := scale(t, world, world.Single, 0, up.Revision)
	_, err := world.Orchestrator.Wake(t.Context(), world.Single, old.Revision, 1)
	var conflict *orchestrator.Conflict
	if !errors.As(err, &conflict) || conflict.Current != down {
		t.Fatalf("got %v, want a conflict that says %+v", err, down)
	}
}

func unknown(t *testing.T, world World, _ *Recorder) {
	const nobody = "nobody-knows-me"
	if _, err := world.Orchestrator.Wake(t.Context(), nobody, "", 1); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("wake: %v", err)
	}
	if _, err := world.Orchestrator.Scale(t.Context(), orchestrator.Request{Function: nobody, Replicas: 1, Epoch: 1}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("scale: %v", err)
	}
}

func scaleConflict(t *testing.T, world World, recorder *Recorder) {
	old := recorder.Get(t, world.Single)
	up := scale(t, world, world.Single, 1, old.Revision)
	_, err := world.Orchestrator.Scale(t.Context(), orchestrator.Request{Function: world.Single, Replicas: 0, Epoch: 1, IfRevision: old.Revision})
	var conflict *orchestrator.Conflict
	if !errors.As(err, &conflict) || conflict.Current != up {
		t.Fatalf("got %v, want a conflict that says %+v", err, up)
	}
}

func staleEpoch(t *testing.T, world World, recorder *Recorder) {
	revision := recorder.Get(t, world.Single).Revision
	up, err := world.Orchestrator.Scale(t.Context(), orchestrator.Request{Function: world.Single, Replicas: 1, Epoch: 7, IfRevision: revision})
	if err != nil {
		t.Fatal(err)
	}
	_, err = world.Orchestrator.Scale(t.Context(), orchestrator.Request{Function: world.Single, Replicas: 0, Epoch: 6, IfRevision: up.Revision})
	if !errors.Is(err, orchestrator.ErrStaleEpoch) {
		t.Errorf("got %v, want ErrStaleEpoch", err)
	}
	if _, err := world.Orchestrator.Wake(t.Context(), world.Pair, "", 2); err != nil {
		t.Errorf("a wake has no epoch, and got %v", err)
	}
}

func victims(t *testing.T, world World, recorder *Recorder) {
	up := scale(t, world, world.Pair, 3, recorder.Get(t, world.Pair).Revision)
	three := recorder.Wait(t, world.Pair, "three ready replicas", func(w orchestrator.Workload) bool { return ready(w) == 3 })
	victim := alive(three)[0]
	_, err := world.Orchestrator.Scale(t.Context(), orchestrator.Request{
		Function: world.Pair, Replicas: 2, Victims: []string{victim}, Epoch: 1, IfRevision: up.Revision,
	})
	if err != nil {
		t.Fatal(err)
	}
	two := recorder.Wait(t, world.Pair, "two replicas", func(w orchestrator.Workload) bool { return len(alive(w)) == 2 })
	if slices.Contains(alive(two), victim) && !world.VictimsAreHints {
		t.Errorf("%s was to go, and %v are left", victim, alive(two))
	}
}

func toZero(t *testing.T, world World, recorder *Recorder) {
	up := scale(t, world, world.Single, 1, recorder.Get(t, world.Single).Revision)
	recorder.Wait(t, world.Single, "a ready replica", func(w orchestrator.Workload) bool { return ready(w) == 1 })
	down := scale(t, world, world.Single, 0, up.Revision)
	recorder.Wait(t, world.Single, "no replica", func(w orchestrator.Workload) bool {
		return w.Wanted == 0 && w.Revision == down.Revision && len(alive(w)) == 0
	})
}

func interrupted(t *testing.T, world World, recorder *Recorder) {
	if world.Interrupt == nil {
		t.Skip("the watch of this orchestrator cannot be broken from outside")
	}
	revision := recorder.Get(t, world.Single).Revision
	resets := recorder.Resets()
	world.Interrupt()
	recorder.WaitFor(t, "another whole view", func(r *Recorder) bool { return r.resets > resets })
	if recorder.losses == 0 {
		t.Error("the loss of the watch was not told")
	}
	up := scale(t, world, world.Single, 1, revision)
	recorder.Wait(t, world.Single, "the change", func(w orchestrator.Workload) bool { return w.Revision == up.Revision })
}

func scale(t *testing.T, world World, function string, replicas int, revision orchestrator.Revision) orchestrator.Scaled {
	t.Helper()
	scaled, err := world.Orchestrator.Scale(t.Context(), orchestrator.Request{Function: function, Replicas: replicas, Epoch: 1, IfRevision: revision})
	if err != nil || scaled.Wanted != replicas {
		t.Fatalf("scale %s to %d: %+v, %v", function, replicas, scaled, err)
	}
	return scaled
}

func ready(w orchestrator.Workload) int {
	n := 0
	for _, replica := range w.Replicas {
		if replica.Phase == orchestrator.Ready {
			n++
		}
	}
	return n
}

// starting counts the replicas that an edge can probe early.
func starting(w orchestrator.Workload) int {
	n := 0
	for _, replica := range w.Replicas {
		if replica.Phase == orchestrator.Starting && replica.Host != "" {
			n++
		}
	}
	return n
}

// alive names the replicas that are not on their way out.
func alive(w orchestrator.Workload) []string {
	var names []string
	for _, replica := range w.Replicas {
		if replica.Phase != orchestrator.Gone {
			names = append(names, replica.Name)
		}
	}
	return names
}

// Recorder is a Sink that remembers what it was told.
type Recorder struct {
	mu        sync.Mutex
	changed   chan struct{} // closed at the next change
	workloads map[string]orchestrator.Workload
	history   []orchestrator.Workload
	parts     map[string]bool
	resets    int
	losses    int
}

var _ orchestrator.Sink = (*Recorder)(nil)

// Watch starts a watch into a new recorder, waits for the first whole view, and ends the watch with the test.
func Watch(t *testing.T, from orchestrator.Orchestrator) *Recorder {
	t.Helper()
	recorder := &Recorder{changed: make(chan struct{}), workloads: map[string]orchestrator.Workload{}, parts: map[string]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := from.Watch(ctx, recorder); ctx.Err() == nil {
			t.Errorf("the watch ended by itself: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wait.Wait() })
	recorder.WaitFor(t, "the first whole view", func(r *Recorder) bool { return r.resets > 0 })
	return recorder
}

// Reset implements orchestrator.Sink.
func (r *Recorder) Reset(workloads []orchestrator.Workload, parts []orchestrator.Part) {
	r.change(func() {
		r.resets++
		clear(r.workloads)
		clear(r.parts)
		for _, workload := range workloads {
			r.workloads[workload.Name] = workload
			r.history = append(r.history, workload)
		}
		for _, part := range parts {
			r.parts[part.Name] = part.Alive
		}
	})
}

// Workload implements orchestrator.Sink.
func (r *Recorder) Workload(workload orchestrator.Workload) {
	r.change(func() {
		r.workloads[workload.Name] = workload
		r.history = append(r.history, workload)
	})
}

// Deleted implements orchestrator.Sink.
func (r *Recorder) Deleted(key string) { r.change(func() { delete(r.workloads, key) }) }

// Part implements orchestrator.Sink.
func (r *Recorder) Part(part orchestrator.Part) { r.change(func() { r.parts[part.Name] = part.Alive }) }

// Lost implements orchestrator.Sink.
func (r *Recorder) Lost(error) { r.change(func() { r.losses++ }) }

func (r *Recorder) change(apply func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	apply()
	close(r.changed)
	r.changed = make(chan struct{})
}

// Get is a workload as it is now.
func (r *Recorder) Get(t *testing.T, name string) orchestrator.Workload {
	t.Helper()
	return r.Wait(t, name, "to be listed", func(orchestrator.Workload) bool { return true })
}

// Resets counts the whole views.
func (r *Recorder) Resets() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resets
}

// Saw says whether a workload was ever like that.
func (r *Recorder) Saw(name string, like func(orchestrator.Workload) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.history, func(w orchestrator.Workload) bool { return w.Name == name && like(w) })
}

// Wait waits until a workload is like that.
func (r *Recorder) Wait(t *testing.T, name, what string, like func(orchestrator.Workload) bool) orchestrator.Workload {
	t.Helper()
	var found orchestrator.Workload
	r.WaitFor(t, name+": "+what, func(r *Recorder) bool {
		workload, known := r.workloads[name]
		found = workload
		return known && like(workload)
	})
	return found
}

// WaitFor waits until something holds; it is asked after every change.
func (r *Recorder) WaitFor(t *testing.T, what string, holds func(*Recorder) bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		done, changed := holds(r), r.changed
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("waited in vain for %s; the last state was %+v, parts %v", what, r.workloads, r.parts)
		}
	}
}
