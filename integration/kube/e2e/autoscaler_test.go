package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestBesideAnAutoscaler: a HorizontalPodAutoscaler has its minimum from the first moment, and stands aside while the function sleeps.
func TestBesideAnAutoscaler(t *testing.T) {
	needsCluster(t)
	t.Parallel()
	installed(t)
	apply(t, fn("Deployment", "auto", "TimeoutSecondBeforeSetReplicasMin", "10")+`---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: auto}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: auto}
  minReplicas: 2
  maxReplicas: 5
  metrics: [{type: Resource, resource: {name: cpu, target: {type: AverageValue, averageValue: 500m}}}]
`)
	eventually(t, 20*time.Second, "explain knows the autoscaler", func() error {
		if out := explained(t, "auto"); !strings.Contains(out, "auto") {
			return fmt.Errorf("%w: %s", errNotYet, out)
		}
		return nil
	})
	if err := get("/function/auto/hello/x"); err != nil {
		t.Fatal(err)
	}
	if wanted, _ := replicas(t, "deployment", "auto"); wanted != 2 {
		t.Errorf("woken with %d replicas, its autoscaler's minimum is 2", wanted)
	}
	eventually(t, 60*time.Second, "it sleeps", func() error {
		if wanted, _ := replicas(t, "deployment", "auto"); wanted != 0 {
			return fmt.Errorf("%d replicas", wanted)
		}
		return nil
	})
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(500 * time.Millisecond) { // the autoscaler looks every 15 s
		if wanted, _ := replicas(t, "deployment", "auto"); wanted != 0 {
			t.Fatalf("the autoscaler woke it: %d replicas", wanted)
		}
	}
}
