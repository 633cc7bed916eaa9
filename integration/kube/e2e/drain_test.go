package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// scaleTo asks for a number of replicas as an operator does.
func scaleTo(t *testing.T, function string, n int) {
	t.Helper()
	if _, err := try(t.Context(), "", "exec", "-n", namespace, "deploy/slimfaas-edge", "--", "/edge", "scale", function, fmt.Sprint(n)); err != nil {
		t.Fatal(err)
	}
}

// TestLongCallsOutliveAScaleDown: many long calls are open on every replica when all but one are to go. Whichever pods Kubernetes
// takes, no call is cut within their grace.
func TestLongCallsOutliveAScaleDown(t *testing.T) {
	needsCluster(t)
	t.Parallel()
	installed(t)
	calls, lasting := 100, 5*time.Second
	if full() {
		calls, lasting = 1000, 20*time.Second
	}
	for _, kind := range []string{"Deployment", "StatefulSet"} {
		t.Run(kind, func(t *testing.T) {
			name := "long" + strings.ToLower(kind[:1])
			apply(t, strings.Replace(fn(kind, name, "ReplicasMin", "1", "NumberParallelRequest", "2000"), "terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 40", 1))
			ready(t, name, 1)
			scaleTo(t, name, 5)
			ready(t, name, 5)
			var failed atomic.Int64
			var first atomic.Pointer[string]
			var work sync.WaitGroup
			for range calls {
				work.Go(func() {
					status, body, _, err := do(http.MethodGet, fmt.Sprintf("/function/%s/slow?ms=%d", name, lasting.Milliseconds()), nil, "")
					if err != nil || status != http.StatusOK {
						failed.Add(1)
						text := fmt.Sprintf("%d %.200s %v", status, body, err)
						first.CompareAndSwap(nil, &text)
					}
				})
			}
			eventually(t, lasting, "the calls are under way", func() error {
				if out := explained(t, name); !strings.Contains(out, fmt.Sprintf(`"InFlight": %d,`, calls)) {
					return fmt.Errorf("%w: %s", errNotYet, out)
				}
				return nil
			})
			scaleTo(t, name, 1)
			began := time.Now()
			work.Wait()
			if n := failed.Load(); n > 0 {
				t.Errorf("%d of %d calls were cut, the first: %s", n, calls, *first.Load())
			}
			ready(t, name, 1)
			t.Logf("figure scale-down of a %s 5 → 1 under %d calls of %v: %d cut; one replica %v after it was asked for", kind, calls, lasting, failed.Load(), time.Since(began).Round(100*time.Millisecond))
		})
	}
}

// with applies the overlay and a component, as a user's own overlay does.
func with(t *testing.T, component string) {
	t.Helper()
	dir := t.TempDir()
	var lines string
	for _, one := range []struct{ field, path string }{{"resources", overlay}, {"components", "../../../deploy/kubernetes/components/" + component}} {
		from, err := filepath.Abs(one.path)
		if err != nil {
			t.Fatal(err)
		}
		relative, err := filepath.Rel(dir, from)
		if err != nil {
			t.Fatal(err)
		}
		lines += one.field + ": [" + relative + "]\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte("namespace: "+namespace+"\n"+lines), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-k", dir)
}

// TestDrainedPodsGoFirst: with the optional permission Kubernetes stops the pods that were drained, and not one that works.
func TestDrainedPodsGoFirst(t *testing.T) {
	needsCluster(t)
	installed(t)
	with(t, "deletion-cost")
	t.Cleanup(func() {
		kubectl(t, "delete", "role,rolebinding", "slimfaas-deletion-cost", "-n", namespace)
		kubectl(t, "delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", "slimfaas-deletion-cost")
	})
	kubectl(t, "rollout", "restart", "-n", namespace, "deployment/slimfaas-scaler") // it tries a permission it has missed each ten minutes only
	rolledOut(t, "deployment/slimfaas-scaler")
	const name, n = "marked", 4
	apply(t, fn("Deployment", name, "ReplicasMin", "1"))
	ready(t, name, 1)
	scaleTo(t, name, n)
	ready(t, name, n)
	gone := map[string]time.Time{}
	marked := map[string]bool{}
	var mu sync.Mutex
	newAPI(t).watch(t, "/api/v1/namespaces/"+namespace+"/pods?watch=1&labelSelector=app%3D"+name, func(at time.Time, _ string, raw json.RawMessage) {
		var pod struct {
			Metadata struct {
				Name, DeletionTimestamp string
				Annotations             map[string]string
			}
		}
		if json.Unmarshal(raw, &pod) != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if pod.Metadata.DeletionTimestamp != "" && gone[pod.Metadata.Name].IsZero() {
			gone[pod.Metadata.Name] = at
			marked[pod.Metadata.Name] = pod.Metadata.Annotations["controller.kubernetes.io/pod-deletion-cost"] != ""
		}
	})
	scaleTo(t, name, 1)
	eventually(t, 30*time.Second, "three pods are on their way out", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(gone) < n-1 {
			return fmt.Errorf("%w: %v", errNotYet, gone)
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	for pod := range gone {
		if !marked[pod] {
			t.Errorf("%s went, which had not been marked", pod)
		}
	}
}
