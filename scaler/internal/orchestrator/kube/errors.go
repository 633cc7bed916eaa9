package kube

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

func forbidden(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }

// expected of a watch: it is too old to go on from, or this API server cannot begin one with a listing; the informer then lists
// by itself, and misses nothing.
func expected(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsInvalid(err)
}

// classify says what an error of the API server means to those who asked.
func (d *Driver) classify(err error, o *object) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", orchestrator.ErrNotFound, err)
	case forbidden(err):
		d.hint(plural(o.kind)+"/scale", "apps", o.namespace, "get, patch", "functions of this kind are neither woken nor put to sleep")
		return fmt.Errorf("%w: %w", orchestrator.ErrRefused, err)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsTooManyRequests(err), apierrors.IsMethodNotSupported(err):
		return fmt.Errorf("%w: %w", orchestrator.ErrRefused, err)
	}
	return fmt.Errorf("%w: %w", orchestrator.ErrUnreachable, err)
}

func (s *session) explainForbidden(r resource) {
	costs := r.costs
	if r.needed {
		costs = "nothing of this namespace is seen"
	}
	s.hint(r.resource, r.group, r.namespace, "get, list, watch", costs)
}

// hint says once what permission is missing, what that costs, and the lines of YAML to add.
func (d *Driver) hint(resource, group, namespace, verbs, costs string) {
	kind, of := "Role", namespace
	if namespace == "" {
		kind, of = "ClusterRole", "all namespaces"
	}
	key := resource + " " + namespace
	d.mu.Lock()
	known := d.hinted[key]
	d.hinted[key] = true
	d.mu.Unlock()
	if known {
		return
	}
	d.log.Error("a permission is missing", "resource", resource, "namespace", of, "costs", costs,
		"add to the "+kind+" of the scaler", fmt.Sprintf("- {apiGroups: [%q], resources: [%q], verbs: [%s]}", group, resource, verbs))
}
