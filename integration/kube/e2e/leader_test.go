package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestLeadersComeAndGo: the leading scaler is killed again and again while functions are awake, asleep and pinned. Another leads soon,
// and no scale changes, least of all back and forth.
func TestLeadersComeAndGo(t *testing.T) {
	needsCluster(t)
	_ = part(t, "apiserver") // the harness's own cluster
	installed(t)
	kills := 1 // TestWakeWithoutALeader has another
	if full() {
		kills = 50
	}
	const prefix = "steady"
	apply(t, fn("Deployment", prefix+"-awake", "ReplicasMin", "2")+fn("Deployment", prefix+"-asleep", "TimeoutSecondBeforeSetReplicasMin", "600")+
		fn("StatefulSet", prefix+"-set", "ReplicasMin", "1"))
	ready(t, prefix+"-awake", 2)
	ready(t, prefix+"-set", 1)
	var mu sync.Mutex
	scales := map[string]int{}
	var changes []string
	a := newAPI(t)
	for _, kind := range []string{"deployments", "statefulsets"} {
		a.watch(t, "/apis/apps/v1/namespaces/"+namespace+"/"+kind+"?watch=1", func(at time.Time, _ string, raw json.RawMessage) {
			var o struct {
				Metadata struct{ Name string }
				Spec     struct{ Replicas int }
			}
			if json.Unmarshal(raw, &o) != nil || !strings.HasPrefix(o.Metadata.Name, prefix) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if old, known := scales[o.Metadata.Name]; known && old != o.Spec.Replicas {
				changes = append(changes, fmt.Sprintf("%s %s %d → %d", at.Format("15:04:05"), o.Metadata.Name, old, o.Spec.Replicas))
			}
			scales[o.Metadata.Name] = o.Spec.Replicas
		})
	}
	var takeovers []time.Duration
	for range kills {
		var old string
		eventually(t, 40*time.Second, "a scaler leads", func() (err error) {
			old, err = holder(t)
			return err
		})
		pod, _, _ := strings.Cut(old, "_")
		kill(t, pod)
		if full() { // a container that dies again and again is started ever later; a new pod is not
			kubectl(t, "delete", "pod", pod, "-n", namespace, "--force", "--grace-period=0", "--wait=false")
		}
		took := eventually(t, 40*time.Second, "another leads", func() error {
			now, err := holder(t)
			if err == nil && now == old {
				err = errNotYet
			}
			return err
		})
		takeovers = append(takeovers, took)
		if took > 20*time.Second {
			t.Errorf("another led after %v", took)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(changes) > 0 {
		t.Errorf("nobody called, yet: %s", strings.Join(changes, ", "))
	}
	t.Logf("figure takeovers: another leads %v after the kill in the median, %v at most, n=%d; %d changes of a scale", percentile(takeovers, 50).Round(100*time.Millisecond),
		percentile(takeovers, 100).Round(100*time.Millisecond), len(takeovers), len(changes))
}
