package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

const (
	// reachableEvery paces attempts at an API server that does not answer.
	reachableEvery = time.Second
	// short is a watch that ended about as soon as it began.
	short = 10 * time.Second
	// reachableTimeout bounds one such attempt.
	reachableTimeout = 3 * time.Second
	// syncTimeout bounds the first listing of everything.
	syncTimeout = time.Minute
	// leftOutAfter: a namespace that was seen is left out after it was refused for this long.
	leftOutAfter = 30 * time.Second
	// grantedEvery paces looks whether a permission that was missing has been given.
	grantedEvery = 30 * time.Second
)

// errGranted ends a watch that is to be begun again because something more may be watched now.
var errGranted = errors.New("a permission that was missing has been given")

// Watch implements orchestrator.Orchestrator. A watch that breaks is begun again with a listing of everything: what was missed is
// never guessed. The API server's own end of a watch after some minutes is no break.
func (d *Driver) Watch(ctx context.Context, sink orchestrator.Sink) error {
	for {
		began := time.Now()
		err := d.watchOnce(ctx, sink)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sink.Lost(err)
		d.log.Warn("the watch of the API server ended, watching again", "err", err)
		if time.Since(began) < short { // refused, perhaps: asking at once would only be refused again
			if err := pause(ctx); err != nil {
				return err
			}
		}
		if err := d.reachable(ctx); err != nil {
			return err
		}
	}
}

// pause for reachableEvery, more or less.
func pause(ctx context.Context) error {
	timer := time.NewTimer(reachableEvery/2 + rand.N(reachableEvery)) //nolint:gosec // jitter
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// reachable waits until the API server answers again.
func (d *Driver) reachable(ctx context.Context) error {
	for {
		one, cancel := context.WithTimeout(ctx, reachableTimeout)
		err := d.client.answers(one)
		cancel()
		if err == nil {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// session is one watch of everything, from its listing to its break.
type session struct {
	*Driver
	sink   orchestrator.Sink
	broken context.CancelCauseFunc

	// Guarded by Driver.mu:
	fresh  *view // what was listed; the driver's once it is whole
	synced bool  // the sink has the whole state
	parts  map[string]orchestrator.Part
}

func (d *Driver) watchOnce(ctx context.Context, sink orchestrator.Sink) error {
	ctx, broken := context.WithCancelCause(ctx)
	defer broken(nil)
	s := &session{Driver: d, sink: sink, broken: broken, parts: map[string]orchestrator.Part{}}
	s.fresh = newView(d.single())

	var work sync.WaitGroup
	defer work.Wait()
	defer broken(nil)
	registrations, missing, err := s.informers(ctx, &work)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if !cache.WaitForCacheSync(bounded.Done(), registrations...) {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("list the workloads: not done after %s", syncTimeout)
	}
	s.begin()
	defer s.end()

	work.Go(func() { s.unmark(ctx) })
	if len(missing) > 0 {
		work.Go(func() { s.awaitGrant(ctx, missing) })
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// begin tells the whole state; from now on changes are told.
func (s *session) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := make([]orchestrator.Part, 0, len(s.parts))
	for _, one := range s.parts {
		parts = append(parts, one)
	}
	s.view = s.fresh
	workloads := s.view.workloads()
	clear(s.told)
	for r := range s.view.objects {
		s.told[r] = true
	}
	s.Driver.session, s.synced = s, true
	s.sink.Reset(workloads, parts)
}

// end says that nothing is told any more.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Driver.session, s.synced = nil, false
}

// resource is something that is watched in a namespace.
type resource struct {
	source
	group string
	// needed: without it nothing works in its namespace, and it comes first of it. Otherwise costs says what a missing permission costs.
	needed bool
	costs  string
	object runtime.Object
	trim   cache.TransformFunc
	put    func(s *session, object any) []ref
	remove func(s *session, namespace, name string) []ref
}

// resources lists what is watched.
func (d *Driver) resources() (all []resource) {
	for _, ns := range d.namespaces {
		all = append(all,
			resource{
				source: source{client: d.client.core, resource: "pods", namespace: ns}, needed: true, object: &corev1.Pod{}, trim: trimPod,
				put:    func(s *session, o any) []ref { return s.fresh.putPod(o.(*corev1.Pod)) },
				remove: func(s *session, ns, name string) []ref { return s.fresh.removePod(ns, name) },
			},
			resource{
				source: source{client: d.client.apps, resource: "deployments", namespace: ns}, group: "apps",
				costs: "functions that are Deployments are not seen", object: &appsv1.Deployment{}, trim: trimDeployment,
				put:    func(s *session, o any) []ref { return s.fresh.put(ofDeployment(o.(*appsv1.Deployment))) },
				remove: func(s *session, ns, name string) []ref { return s.fresh.remove(ref{ns, deployment, name}) },
			},
			resource{
				source: source{client: d.client.apps, resource: "statefulsets", namespace: ns}, group: "apps",
				costs: "functions that are StatefulSets are not seen", object: &appsv1.StatefulSet{}, trim: trimStatefulSet,
				put:    func(s *session, o any) []ref { return s.fresh.put(ofStatefulSet(o.(*appsv1.StatefulSet))) },
				remove: func(s *session, ns, name string) []ref { return s.fresh.remove(ref{ns, statefulSet, name}) },
			},
			resource{
				source: source{client: d.client.autoscaling, resource: "horizontalpodautoscalers", namespace: ns}, group: "autoscaling",
				costs: "functions with a HorizontalPodAutoscaler or KEDA are scaled as if they had none", object: &autoscalingv2.HorizontalPodAutoscaler{}, trim: trimMeta,
				put: func(s *session, o any) []ref {
					h := o.(*autoscalingv2.HorizontalPodAutoscaler)
					return s.fresh.putAutoscaler(h.Namespace, ofAutoscaler(h))
				},
				remove: func(s *session, ns, name string) []ref { return s.fresh.removeAutoscaler(ns, name) },
			},
		)
	}
	if d.own != "" {
		all = append(all, resource{
			source: source{client: d.client.core, resource: "pods", namespace: d.own, selector: partsSelector},
			costs:  "an edge that vanished without a word hinders shrinking longer", object: &corev1.Pod{}, trim: trimPod,
			put:    func(s *session, o any) []ref { s.part(part(o.(*corev1.Pod))); return nil },
			remove: func(s *session, _, name string) []ref { s.part(orchestrator.Part{Name: name}); return nil },
		})
	}
	return all
}

// partsSelector finds our own pods.
const partsSelector = "app.kubernetes.io/part-of=slimfaas"

// informers starts an informer for each resource that may be watched, and says which may not.
func (s *session) informers(ctx context.Context, work *sync.WaitGroup) (synced []cache.InformerSynced, missing []resource, err error) {
	leftOut := map[string]bool{} // namespaces
	for _, r := range s.resources() {
		if leftOut[r.namespace] && !r.needed && r.selector == "" {
			continue
		}
		switch err := s.allowed(ctx, r); {
		case forbidden(err) && r.needed && !s.mayLeaveOut(r.namespace, len(leftOut)+1):
			s.explainForbidden(r)
			return nil, nil, fmt.Errorf("list %s: %w: %w", r.resource, orchestrator.ErrRefused, err)
		case forbidden(err):
			leftOut[r.namespace] = leftOut[r.namespace] || r.needed
			s.explainForbidden(r)
			missing = append(missing, r)
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("list %s: %w: %w", r.resource, orchestrator.ErrUnreachable, err)
		case r.needed:
			s.refused[r.namespace] = time.Time{}
		}
		informer := cache.NewSharedIndexInformer(s.from(ctx, r), r.object, 0, cache.Indexers{})
		if err := informer.SetTransform(r.trim); err != nil {
			return nil, nil, fmt.Errorf("watch %s: %w", r.resource, err)
		}
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { s.change(func() []ref { return r.put(s, o) }) },
			UpdateFunc: func(_, o any) { s.change(func() []ref { return r.put(s, o) }) },
			DeleteFunc: func(o any) {
				if last, unknown := o.(cache.DeletedFinalStateUnknown); unknown {
					o = last.Obj
				}
				if gone, is := o.(metav1.Object); is {
					s.change(func() []ref { return r.remove(s, gone.GetNamespace(), gone.GetName()) })
				}
			},
		})
		if err != nil {
			return nil, nil, fmt.Errorf("watch %s: %w", r.resource, err)
		}
		synced = append(synced, registration.HasSynced)
		work.Go(func() { informer.RunWithContext(ctx) })
	}
	return synced, missing, nil
}

// mayLeaveOut says whether the others can go on without a namespace of which nothing may be seen: one of several, that never was
// seen, or not for leftOutAfter, as an API server that has just begun refuses everything for a moment. n counts it among those left out.
func (s *session) mayLeaveOut(namespace string, n int) bool {
	if n >= len(s.namespaces) {
		return false
	}
	since, seen := s.refused[namespace]
	if !seen {
		return true
	}
	if since.IsZero() {
		s.refused[namespace] = time.Now()
		return false
	}
	return time.Since(since) > leftOutAfter
}

// allowed asks for one object of a resource: the cheapest way to know whether all may be listed.
func (s *session) allowed(ctx context.Context, r resource) error {
	ctx, cancel := context.WithTimeout(ctx, reachableTimeout)
	defer cancel()
	_, err := r.list(ctx, metav1.ListOptions{Limit: 1})
	return err
}

// awaitGrant looks now and then whether what is missing was granted, and then ends the watch, to begin it anew with more.
func (s *session) awaitGrant(ctx context.Context, missing []resource) {
	ticker := time.NewTicker(s.grantedEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, r := range missing {
			if s.allowed(ctx, r) == nil {
				s.broken(errGranted)
				return
			}
		}
	}
}

// from lists and watches a resource, and breaks the session when the API server refuses to: the informer would go on by itself,
// but nobody could tell how old its view is.
func (s *session) from(ctx context.Context, r resource) cache.ListerWatcher {
	failed := func(what string, err error) {
		if err != nil && ctx.Err() == nil && !expected(err) {
			s.broken(fmt.Errorf("%s %s: %w", what, r.resource, err))
		}
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			s.lists.Add(1)
			list, err := r.list(ctx, o)
			failed("list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil && *o.SendInitialEvents {
				s.lists.Add(1) // a listing, streamed
			}
			events, err := r.watch(ctx, o)
			failed("watch", err)
			return events, err
		},
	}
}

// change carries a change out and tells the sink what looks different now.
func (s *session) change(apply func() []ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := apply()
	if !s.synced {
		return
	}
	s.tell(changed)
}

// tell states workloads. The caller holds mu.
func (s *session) tell(changed []ref) {
	for _, r := range changed {
		if w, ok := s.view.workload(r); ok {
			s.told[r] = true
			s.sink.Workload(w)
		} else if s.told[r] {
			delete(s.told, r)
			s.sink.Deleted(r.key())
		}
	}
}

// part takes one of our own processes over. The caller holds mu.
func (s *session) part(p orchestrator.Part) {
	if old, known := s.parts[p.Name]; known && old == p {
		return
	}
	s.parts[p.Name] = p
	if s.synced {
		s.sink.Part(p)
	}
}
