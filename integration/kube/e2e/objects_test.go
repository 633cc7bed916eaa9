package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/kube/cluster"
)

func explained(t *testing.T, function string) string {
	t.Helper()
	out, _ := try(t.Context(), "", "exec", "-n", namespace, "deploy/slimfaas-edge", "--", "/edge", "explain", function)
	return out
}

// TestBadObjectsHurtOnlyThemselves: each ends in words that say what to do, and the good one beside them goes on.
func TestBadObjectsHurtOnlyThemselves(t *testing.T) {
	needsCluster(t)
	t.Parallel()
	installed(t)
	long := "l" + strings.Repeat("o", 60) + "ng" // 63 characters
	twice := fn("Deployment", "twice") + fn("StatefulSet", "twice")
	apply(t, fn("Deployment", "good", "ReplicasMin", "1")+
		fn("Deployment", "wrong", "ReplicasMin", "many")+
		strings.ReplaceAll(fn("Deployment", "portless", "ReplicasMin", "1"), "ports: [{containerPort: 8080}]", "env: []")+
		strings.ReplaceAll(fn("Deployment", "unpulled", "ReplicasMin", "1"), "slimfaas/demo-function:dev", "slimfaas/comes-later:1")+
		strings.Replace(fn("Deployment", "sidecar", "ReplicasMin", "1"), "      containers:\n", "      containers:\n        - {name: side, image: \"slimfaas/pause:1\"}\n", 1)+
		fn("Deployment", long, "ReplicasMin", "1")+twice)
	t.Cleanup(func() {
		kubectl(t, "delete", "-n", namespace, "--wait=false", "deployment/wrong", "deployment/portless", "deployment/unpulled", "deployment/"+long, "deployment/twice", "statefulset/twice", "deployment/sidecar")
	})
	ready(t, "good", 1)
	for function, says := range map[string]string{
		"wrong": "SlimFaas/ReplicasMin", "portless": "SlimFaas/Port", "unpulled": "Pull", "twice": "same name",
	} {
		eventually(t, 30*time.Second, function+" is explained", func() error {
			if out := explained(t, function) + statusOf(function); !strings.Contains(out, says) {
				return fmt.Errorf("%q is not in %s", says, out)
			}
			return nil
		})
	}
	for _, function := range []string{"sidecar", long} {
		eventually(t, 60*time.Second, function+" answers", func() error { return get("/function/" + function + "/hello/x") })
	}
	if dir := os.Getenv("E2E_CLUSTER_DIR"); dir != "" {
		t.Run("an image that comes later", func(t *testing.T) {
			if err := cluster.Push(t.Context(), "slimfaas/comes-later:1", filepath.Join("..", "..", "..", "bin", "demo-function")); err != nil {
				t.Fatal(err)
			}
			eventually(t, 120*time.Second, "unpulled answers", func() error { return get("/function/unpulled/hello/x") })
		})
	}
	t.Run("deleted while a call waits", func(t *testing.T) {
		apply(t, strings.ReplaceAll(fn("Deployment", "doomed"), "slimfaas/demo-function:dev", "slimfaas/never:1"))
		eventually(t, 10*time.Second, "doomed is known", func() error { return get("/status-function/doomed") })
		answered := make(chan string, 1)
		go func() {
			status, body, _, err := do(http.MethodGet, "/function/doomed/hello/x", nil, "")
			answered <- fmt.Sprintf("%d %s %v", status, body, err)
		}()
		eventually(t, 20*time.Second, "it is woken", func() error {
			if wanted, _ := replicas(t, "deployment", "doomed"); wanted != 1 {
				return errNotYet
			}
			return nil
		})
		kubectl(t, "delete", "-n", namespace, "deployment/doomed")
		select {
		case got := <-answered:
			t.Log(got)
			if !strings.HasPrefix(got, "404") && !strings.HasPrefix(got, "503") {
				t.Errorf("the waiting call got %s", got)
			}
		case <-time.After(60 * time.Second):
			t.Error("the waiting call got no answer")
		}
	})
	t.Run("an upstream SlimFaas beside us", func(t *testing.T) {
		apply(t, strings.Replace(strings.ReplaceAll(fn("StatefulSet", "slimfaas"), "slimfaas/demo-function:dev", "axaguildev/slimfaas:latest"), `SlimFaas/Function: "true"`, `x: "y"`, 1))
		eventually(t, 20*time.Second, "explain says why nothing is scaled", func() error {
			if out := explained(t, "good"); !strings.Contains(out, "upstream SlimFaas") {
				return fmt.Errorf("%w: %s", errNotYet, out)
			}
			return nil
		})
		kubectl(t, "delete", "-n", namespace, "statefulset/slimfaas")
		eventually(t, 20*time.Second, "all is as before", func() error {
			if out := explained(t, "good"); strings.Contains(out, "upstream SlimFaas") {
				return errNotYet
			}
			return nil
		})
	})
	if err := get("/function/good/hello/x"); err != nil {
		t.Error(err)
	}
}

func statusOf(function string) string {
	_, body, _, _ := do(http.MethodGet, "/status-function/"+function, nil, "")
	return body
}
