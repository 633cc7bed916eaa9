package integration

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestChaosE12AnEdgeDies: an edge is killed -9 with hundreds of calls in flight, while it accepts asynchronous ones. What was accepted
// is carried out, and callers of the other edge notice nothing.
func TestChaosE12AnEdgeDies(t *testing.T) {
	n := newNemesis(t)
	kills, inFlight, perSecond := n.runs(1, 5), n.runs(60, 500), n.runs(50, 100)
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Queues: 1, Edges: 2, Functions: rec.yaml(
		fn{name: "work", annotations: map[string]string{"ReplicasMin": "2", "NumberParallelRequest": "100"}},
	)})
	client := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: inFlight}}
	defer client.CloseIdleConnections()
	readyReplicas(c, "work", 2)

	stop, others := make(chan struct{}), make(chan error, 1)
	go func() {
		sent, failed, first := steadily(t.Context(), perSecond, stop, func() error {
			res, err := client.Get(c.URL(1) + "/function/work/?ms=10")
			if err != nil {
				return err
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			return wantStatus(res.StatusCode, 200, body, err)
		})
		t.Logf("the other edge: %d calls, %d failed", sent, failed)
		if failed > 0 {
			others <- fmt.Errorf("%d of %d calls to the other edge failed, the first: %w", failed, sent, first)
			return
		}
		others <- nil
	}()

	var mu sync.Mutex
	var accepted []string
	for kill := range kills {
		var calls sync.WaitGroup
		var cut atomic.Int64
		earlier := len(accepted) // nobody adds to it now
		for i := range inFlight {
			calls.Go(func() { // in flight when the edge dies
				res, err := client.Get(c.URL(0) + "/function/work/?ms=3000")
				if err != nil {
					cut.Add(1)
					return
				}
				defer res.Body.Close()
				if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
					cut.Add(1)
				}
			})
			calls.Go(func() {
				id := fmt.Sprintf("call-%d-%d-", kill, i)
				res, err := client.Post(c.URL(0)+"/async-function/work/?ms=20&id="+id, "text/plain", strings.NewReader("x"))
				if err != nil {
					return // whether it was accepted is not known
				}
				defer res.Body.Close()
				if res.StatusCode == http.StatusAccepted {
					mu.Lock()
					accepted = append(accepted, id)
					mu.Unlock()
				}
			})
		}
		c.Eventually(20*time.Second, "the calls are in flight", func() error {
			running, err := edgeGauge(c, "slimfaas_edge_in_flight")
			if err == nil && running < float64(inFlight)*9/10 {
				err = fmt.Errorf("%.0f of %d are", running, inFlight)
			}
			mu.Lock()
			defer mu.Unlock()
			if n := len(accepted) - earlier; err == nil && n < inFlight/2 {
				err = fmt.Errorf("%d asynchronous ones of %d are accepted", n, inFlight)
			}
			return err
		})
		before := c.PID("edge-0")
		c.Kill("edge-0")
		calls.Wait()
		t.Logf("kill %d: %d of %d synchronous calls were cut", kill+1, cut.Load(), inFlight)
		edgeReturns(c, 0, before)
	}
	close(stop)
	if err := <-others; err != nil {
		t.Error(err)
	}
	c.Eventually(60*time.Second, "what was accepted is carried out", func() error {
		ended := map[string]bool{}
		for _, l := range rec.read(t, "work") {
			if _, id, found := strings.Cut(l.URI, "id="); found && l.Phase == "end" && !l.Aborted {
				ended[id] = true
			}
		}
		missing := 0
		for _, id := range accepted {
			if !ended[id] {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d accepted calls were not carried out", missing, len(accepted))
		}
		return nil
	})
	t.Logf("figure E12: %d kills, %d asynchronous calls accepted by the killed edge, all carried out", kills, len(accepted))
}
