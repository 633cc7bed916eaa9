package integration

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestSyncCallsKeepWithinTheirLimits: a thousand first calls by way of two edges; then calls while the node that shares out the run
// slots is dead and comes back, and an edge that has some is killed. Never are more under way than the function asks for.
func TestSyncCallsKeepWithinTheirLimits(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Queues: 1, Edges: 2, Functions: rec.yaml(
		fn{name: "cold", env: map[string]string{"START_DELAY_MS": "1000"}, annotations: map[string]string{"NumberParallelRequestPerPodSync": "10"}},
		fn{name: "few", annotations: map[string]string{"NumberParallelRequestSync": "3", "ReplicasMin": "2", "ReplicasAtStart": "2"}},
	)})
	var calls sync.WaitGroup
	for i := range 1000 {
		calls.Go(func() {
			if status, body, err := c.Get(i%2, "/function/cold/?ms=10"); wantStatus(status, 200, body, err) != nil {
				t.Errorf("call %d: %d %s %v", i, status, body, err)
			}
		})
	}
	calls.Wait()
	starts := 0
	for _, l := range rec.read(t, "cold") {
		if l.Phase == "listen" {
			starts++
		}
	}
	if starts != 1 {
		t.Errorf("%d replicas were started, want one", starts)
	}
	if most := rec.most(t, "cold"); most != 10 {
		t.Errorf("at most %d calls at one time, want 10", most)
	}

	c.Eventually(10*time.Second, "two replicas", func() error {
		if n := c.Replicas("few"); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	stop := make(chan struct{})
	var done [2]atomic.Int64
	var failed atomic.Int64
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	for i := range 12 {
		calls.Go(func() {
			edge := i % 2
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := client.Get(c.URL(edge) + "/function/few/?ms=5")
				if err == nil {
					_ = res.Body.Close()
				}
				switch {
				case err == nil && res.StatusCode == 200:
					done[edge].Add(1)
				case edge == 0: // that is not killed
					failed.Add(1)
					t.Errorf("a call by way of edge-0: %v %v", res, err)
					return
				default:
					pace(50 * time.Millisecond)
				}
			}
		})
	}
	goesOn := func(edge int) {
		t.Helper()
		from := done[edge].Load()
		c.Eventually(30*time.Second, fmt.Sprintf("calls by way of edge-%d go on", edge), func() error {
			if done[edge].Load() < from+20 {
				return errNotYet
			}
			return nil
		})
	}
	goesOn(0)
	goesOn(1)
	c.Kill("queue-0")
	goesOn(0)
	goesOn(1)
	c.Eventually(20*time.Second, "the queue leads again", func() error {
		if c.QueueLeader(0) == "" {
			return errNotYet
		}
		return nil
	})
	c.Kill("edge-1")
	goesOn(0)
	goesOn(1)
	close(stop)
	calls.Wait()
	if most := rec.most(t, "few"); most != 3 {
		t.Errorf("at most %d calls at one time, want 3", most)
	}
	t.Logf("%d and %d calls by way of the two edges, %d failed", done[0].Load(), done[1].Load(), failed.Load())
}

// most requests of a function that were under way at one time, in all its replicas.
func (r records) most(t *testing.T, function string) (most int) {
	t.Helper()
	open := map[[2]int]bool{}
	for _, l := range r.read(t, function) {
		switch l.Phase {
		case "start":
			open[[2]int{l.PID, l.Seq}] = true
		case "end":
			delete(open, [2]int{l.PID, l.Seq})
		}
		most = max(most, len(open))
	}
	return most
}
