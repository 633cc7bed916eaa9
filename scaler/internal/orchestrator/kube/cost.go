package kube

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

const (
	// costAnnotation tells the ReplicaSet controller whom to stop first; it is a hint.
	costAnnotation = "controller.kubernetes.io/pod-deletion-cost"
	// marked is how long a pod that was to go may take to, before it is unmarked.
	marked = 5 * time.Second
	// costAgain is when a permission that was missing is tried again.
	costAgain = 10 * time.Minute
)

// prefer marks the pods of a Deployment that are drained, so that the controller stops those. Without the permission, which is optional
// (deploy/kubernetes/components/deletion-cost), the controller chooses, and the watch tells whom.
func (d *Driver) prefer(ctx context.Context, o *object, victims []string) {
	d.mu.Lock()
	off := time.Now().Before(d.costOff)
	d.mu.Unlock()
	if off || o.kind != deployment {
		return
	}
	for _, name := range victims {
		err := d.cost(ctx, o.namespace, name, `"-1000000"`)
		d.mu.Lock()
		switch {
		case forbidden(err):
			d.costOff = time.Now().Add(costAgain)
		case err == nil:
			d.marks[o.namespace+"/"+name] = time.Now()
		}
		d.mu.Unlock()
		if forbidden(err) {
			d.log.Debug("pods are not marked before a Deployment shrinks: the permission is optional", "err", err)
			return
		}
	}
}

func (d *Driver) cost(ctx context.Context, namespace, pod, value string) error {
	body := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%s}}}`, costAnnotation, value)
	return d.client.core.Patch(types.MergePatchType).Namespace(namespace).Resource("pods").Name(pod).
		Param("fieldManager", userAgent).Body(body).Do(ctx).Error()
}

// unmark gives pods back that were marked and spared, until ctx ends.
func (s *session) unmark(ctx context.Context) {
	ticker := time.NewTicker(marked)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, one := range s.spared(time.Now()) {
			bounded, cancel := context.WithTimeout(ctx, reachableTimeout)
			err := s.cost(bounded, one.namespace, one.name, "null")
			cancel()
			if err == nil || apierrors.IsNotFound(err) || forbidden(err) {
				s.mu.Lock()
				delete(s.marks, one.namespace+"/"+one.name)
				s.mu.Unlock()
			}
		}
	}
}

// spared lists the pods that were marked a while ago and are not on their way out; those that are gone are forgotten.
func (s *session) spared(now time.Time) (all []ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, at := range s.marks {
		one := s.view.lives[key]
		switch {
		case one == nil || replica(one.pod, false).Phase == orchestrator.Gone:
			delete(s.marks, key)
		case now.Sub(at) >= marked:
			all = append(all, ref{namespace: one.pod.Namespace, name: one.pod.Name})
		}
	}
	return all
}
