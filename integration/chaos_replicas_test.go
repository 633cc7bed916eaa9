package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestChaosReplicasDieBetweenCalls: replicas are killed at moments when no call is under way, while callers go on as soon as they may.
// Nothing was sent to the dead, so no call may fail; POSTs too, which are never repeated once a byte of them was sent.
func TestChaosReplicasDieBetweenCalls(t *testing.T) {
	n := newNemesis(t)
	replicas, kills := n.runs(4, 20), n.runs(4, 100) // a replica that dies again and again is started ever later
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Queues: 1, Functions: rec.yaml(
		fn{name: "mortal", annotations: map[string]string{"ReplicasMin": fmt.Sprint(replicas)}},
	)})
	readyReplicas(c, "mortal", replicas)
	names := c.Names("fn-mortal-")
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	var between sync.RWMutex // held by a caller for a call, and by who kills
	var calls, failed atomic.Int64
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				between.RLock()
				var res *http.Response
				var err error
				if i%2 == 0 {
					res, err = client.Get(c.URL(0) + "/function/mortal/")
				} else {
					res, err = client.Post(c.URL(0)+"/function/mortal/", "text/plain", strings.NewReader("a body"))
				}
				if err == nil {
					_ = res.Body.Close()
				}
				between.RUnlock()
				calls.Add(1)
				if err != nil || res.StatusCode != http.StatusOK {
					failed.Add(1)
					t.Errorf("call %d: %v %v", calls.Load(), res, err)
				}
				if !n.full {
					pace(5 * time.Millisecond) // with the race detector eight callers would take all of the machine
				}
			}
		})
	}
	for i := range kills {
		name := names[i%len(names)]
		c.Eventually(60*time.Second, name+" runs, and others", func() error {
			if running := c.Replicas("mortal"); c.PID(name) == 0 || running < min(3, replicas) {
				return fmt.Errorf("%d run", running)
			}
			return nil
		})
		between.Lock()
		c.Kill(name)
		between.Unlock()
		pace(n.between(100*time.Millisecond, 500*time.Millisecond))
	}
	close(stop)
	callers.Wait()
	t.Logf("%d kills, %d calls, %d failed", kills, calls.Load(), failed.Load())
}
