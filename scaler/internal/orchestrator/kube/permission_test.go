package kube

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

// bound lets a user of that name see functions of a namespace.
const bound = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: functions, namespace: %[1]s}
rules:
  - {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
  - {apiGroups: [apps], resources: [deployments, statefulsets], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: functions, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: functions}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: %[2]s}]
`

// TestANamespaceThatMayNotBeSeenCostsOnlyItself: the others are seen, and it is once the permission is given.
func TestANamespaceThatMayNotBeSeenCostsOnlyItself(t *testing.T) {
	t.Parallel()
	open, config := settle(t)
	closed, _ := settle(t)
	user := "reader-" + open
	kubectl(t, fmt.Sprintf(bound, open, user), "apply", "-f", "-")
	for _, auth := range config.AuthInfos {
		auth.Impersonate = user
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	driver, err := New(Options{Kubeconfig: file, Own: open, Namespaces: []string{closed, open}})
	if err != nil {
		t.Fatal(err)
	}
	driver.grantedEvery = time.Second
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	s := &seen{wanted: map[string]orchestrator.Scaled{}, news: make(chan struct{}, 1)}
	work.Go(func() { _ = driver.Watch(ctx, s) })
	s.of(t, "single."+open)

	kubectl(t, fmt.Sprintf(bound, closed, user), "apply", "-f", "-")
	s.of(t, "single."+closed)
}
