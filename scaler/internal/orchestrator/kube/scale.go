package kube

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

// maxTries bounds the tries of one request against changes of an object's status.
const maxTries = 5

// Scale implements orchestrator.Orchestrator. Which pods of a Deployment go is the ReplicaSet controller's choice, with victims as a
// hint where that is allowed, and of a StatefulSet those with the highest ordinals do: the watch tells.
func (d *Driver) Scale(ctx context.Context, request orchestrator.Request) (orchestrator.Scaled, error) {
	d.mu.Lock()
	stale := request.Epoch < d.epoch
	d.epoch = max(d.epoch, request.Epoch)
	d.mu.Unlock()
	if stale {
		return orchestrator.Scaled{}, fmt.Errorf("scale %s: %w", request.Function, orchestrator.ErrStaleEpoch)
	}
	return d.set(ctx, request.Function, request.IfRevision, request.Victims, func(orchestrator.Workload, *object) int { return request.Replicas })
}

// Wake implements orchestrator.Orchestrator. Where an autoscaler would raise the function to its minimum twelve seconds later, it is
// started with that many.
func (d *Driver) Wake(ctx context.Context, function string, ifRevision orchestrator.Revision, replicasAtStart int) (orchestrator.Scaled, error) {
	return d.set(ctx, function, ifRevision, nil, func(w orchestrator.Workload, o *object) int {
		if o.replicas > 0 {
			return o.replicas
		}
		return max(replicasAtStart, w.AutoscalerMin, 1)
	})
}

// known is a function as it is known now.
func (d *Driver) known(function string) (w orchestrator.Workload, o *object, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.view == nil {
		return w, nil, fmt.Errorf("%w: nothing is listed yet", orchestrator.ErrUnreachable)
	}
	if o = d.view.find(function); o == nil {
		return w, nil, orchestrator.ErrNotFound
	}
	w, _ = d.view.workload(o.ref)
	return w, o, nil
}

// set brings a function to a number of replicas, if its revision is what was expected.
func (d *Driver) set(ctx context.Context, function string, ifRevision orchestrator.Revision, victims []string, target func(orchestrator.Workload, *object) int) (orchestrator.Scaled, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for range maxTries {
		w, o, err := d.known(function)
		if err != nil {
			return orchestrator.Scaled{}, fmt.Errorf("scale %s: %w", function, err)
		}
		if w.Fixed {
			return o.scaled(), fmt.Errorf("scale %s: %w: %s", function, orchestrator.ErrRefused, w.FixedBy)
		}
		replicas := target(w, o)
		if replicas == o.replicas {
			return o.scaled(), nil
		}
		if ifRevision != "" && ifRevision != o.revision() {
			return o.scaled(), fmt.Errorf("scale %s: %w", function, &orchestrator.Conflict{Function: function, Current: o.scaled()})
		}
		if replicas > 0 && replicas < o.replicas {
			d.prefer(ctx, o, victims)
		}
		resource, err := d.patch(ctx, o, replicas)
		switch {
		case err == nil:
			after := *o
			after.replicas, after.resource, after.generation = replicas, resource, o.generation+1
			d.learn(&after)
			return after.scaled(), nil
		case !apierrors.IsConflict(err):
			return o.scaled(), fmt.Errorf("scale %s to %d: %w", function, replicas, d.classify(err, o))
		}
		// Its status has changed, or its specification: look at the object itself and decide again.
		current, err := d.read(ctx, o.ref)
		if err != nil {
			return o.scaled(), fmt.Errorf("read %s after a conflict: %w", function, d.classify(err, o))
		}
		d.learn(current)
	}
	_, o, err := d.known(function)
	if err != nil {
		return orchestrator.Scaled{}, fmt.Errorf("scale %s: %w", function, err)
	}
	return o.scaled(), fmt.Errorf("scale %s: %w: it changed %d times meanwhile", function, orchestrator.ErrRefused, maxTries)
}

// patch asks for replicas of exactly the object that is known. The body is written by hand: a marshalled Scale leaves out a 0.
func (d *Driver) patch(ctx context.Context, o *object, replicas int) (resource string, err error) {
	body := fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q},"spec":{"replicas":%d}}`, o.resource, replicas)
	var after autoscalingv1.Scale
	err = d.client.apps.Patch(types.MergePatchType).Namespace(o.namespace).Resource(plural(o.kind)).Name(o.name).SubResource("scale").
		Param("fieldManager", userAgent).Body(body).Do(ctx).Into(&after)
	return after.ResourceVersion, err
}

// read gets an object itself, past the watch.
func (d *Driver) read(ctx context.Context, r ref) (*object, error) {
	if r.kind == statefulSet {
		var set appsv1.StatefulSet
		if err := d.client.get(ctx, d.client.apps, r.namespace, plural(r.kind), r.name, &set); err != nil {
			return nil, err
		}
		return ofStatefulSet(&set), nil
	}
	var one appsv1.Deployment
	if err := d.client.get(ctx, d.client.apps, r.namespace, plural(r.kind), r.name, &one); err != nil {
		return nil, err
	}
	return ofDeployment(&one), nil
}

// learn takes over what a request has shown, before the watch does, and tells it.
func (d *Driver) learn(o *object) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := d.view.put(o)
	if d.session != nil {
		d.session.tell(changed)
	}
}

func plural(kind string) string { return strings.ToLower(kind) + "s" }
