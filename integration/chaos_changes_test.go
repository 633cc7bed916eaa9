package integration

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestChaosHundredThousandCalls: one load over everything an operator does, one after another: a function scaled down and up, all its
// replicas replaced (one that ends again and again is started ever later: 20 rollouts are make e2e-kube-full's), and the edges ended in turn behind a balancer that knows nothing. No call fails.
func TestChaosHundredThousandCalls(t *testing.T) {
	n := newNemesis(t)
	if !n.full {
		t.Skip("six minutes: each change has a small test of its own")
	}
	scales, replacements, ends, least := n.runs(0, 20), n.runs(0, 5), n.runs(0, 20), n.runs(0, 101_000)
	const perSecond, replicas = 300, 4
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Queues: 1, Edges: 2, Functions: rec.yaml(
		fn{name: "work", annotations: map[string]string{"ReplicasMin": "1"}},
	)})
	b := balance(t, c.URL(0)[len("http://"):], c.URL(1)[len("http://"):])
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 2 * time.Second}}
	defer client.CloseIdleConnections()
	readyReplicas(c, "work", 1)
	scale := func(replicas int) {
		t.Helper()
		status, body, err := c.Do(0, http.MethodPut, "/scale/work", http.Header{"Content-Type": {"application/json"}}, fmt.Appendf(nil, `{"Replicas":%d,"ForSeconds":3600}`, replicas))
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Error(err)
		}
		readyReplicas(c, "work", replicas)
	}

	type count struct {
		sent, failed int
		first        error
	}
	stop, done := make(chan struct{}), make(chan count, 1)
	var asked atomic.Int64
	var onlyGET atomic.Bool
	began := time.Now()
	go func() {
		var all count
		all.sent, all.failed, all.first = steadily(t.Context(), perSecond, stop, func() error {
			method := http.MethodGet
			if asked.Add(1)%2 == 0 && !onlyGET.Load() {
				method = http.MethodPost // which nobody sends again by himself
			}
			req, err := http.NewRequestWithContext(t.Context(), method, b.url()+"/function/work/?ms=5", nil)
			if err != nil {
				return err
			}
			res, err := client.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			return wantStatus(res.StatusCode, 200, body, err)
		})
		done <- all
	}()
	for range scales {
		scale(replicas)
		scale(1)
	}
	scale(replicas)
	// A replica that a stranger ends closes its idle connections, and a request may be on its way on one: only those that may be
	// repeated are. Where an orchestrator ends it, nobody sends it any by then (make e2e-kube-full).
	onlyGET.Store(true)
	for range replacements {
		for _, name := range c.Names("fn-work-") {
			before := c.PID(name)
			c.Signal(name, syscall.SIGTERM)
			c.Eventually(60*time.Second, name+" is replaced", func() error {
				if now := c.PID(name); now == before || c.Replicas("work") < replicas {
					return errNotYet
				}
				return nil
			})
		}
		readyReplicas(c, "work", replicas)
	}
	onlyGET.Store(false)
	for i := range ends {
		endEdge(c, i%2)
	}
	if missing := time.Duration(least)*time.Second/perSecond - time.Since(began); missing > 0 {
		pace(missing)
	}
	close(stop)
	all := <-done
	t.Logf("figure changes: %d calls, %d failed, through %d times down and up, %d replacements of %d replicas, %d ends of an edge", all.sent, all.failed, scales, replacements, replicas, ends)
	if all.failed > 0 {
		t.Errorf("%d of %d calls failed, the first: %v", all.failed, all.sent, all.first)
	}
	if cut := rec.cut(t, "work"); len(cut) > 0 {
		t.Errorf("%d calls were cut, the first: %+v", len(cut), cut[0])
	}
}
