package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestChaosEventsOverThreeEdges: an event to many replicas is delivered by all edges together, each replica once; an edge that dies in
// the middle costs its own share a repeat at most. The full size is 1,000 replicas, against one process that posts to them directly.
func TestChaosEventsOverThreeEdges(t *testing.T) {
	n := newNemesis(t)
	replicas, rounds := n.runs(48, 1000), n.runs(3, 7)
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Queues: 1, Edges: 3, Ports: max(200, 2*replicas), Functions: rec.yaml(
		fn{name: "crowd", annotations: map[string]string{"ReplicasMin": fmt.Sprint(replicas), "SubscribeEvents": "all"}},
	)})
	c.Eventually(5*time.Minute, "all replicas are ready, for every edge", func() error {
		for edge := range 3 {
			status, body, err := c.Get(edge, "/status-function/crowd")
			if err := wantStatus(status, 200, body, err); err != nil {
				return err
			}
			var s struct{ NumberReady int }
			if err := json.Unmarshal(body, &s); err != nil {
				return err
			}
			if s.NumberReady != replicas {
				return fmt.Errorf("edge-%d: %s", edge, body)
			}
		}
		return nil
	})
	event := bytes.Repeat([]byte("e"), 1<<10)
	publish := func(t *testing.T, key string, ms int) (took time.Duration) {
		t.Helper()
		began := time.Now()
		status, body, err := c.Do(0, http.MethodPost, fmt.Sprintf("/publish-event/all/%s?ms=%d", key, ms), http.Header{"Prefer": {"return=representation"}}, event)
		took = time.Since(began)
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Fatal(err)
		}
		var report []eventResult
		if err := json.Unmarshal(body, &report); err != nil || len(report) != replicas {
			t.Fatalf("a report of %d lines: %v", len(report), err)
		}
		for _, r := range report {
			if r.Status != 200 {
				t.Errorf("line %+v", r)
			}
		}
		return took
	}
	calls := func(t *testing.T, key string) map[string]int { // by replica
		t.Helper()
		count := map[string]int{}
		for _, l := range rec.started(t, "crowd") {
			if strings.HasPrefix(l.URI, "/"+key+"?") {
				count[l.Replica]++
			}
		}
		return count
	}
	c.Eventually(10*time.Second, "the edges know of each other", func() error {
		before, err := edgeGauge(c, `slimfaas_edge_event_shares_total`)
		if err != nil {
			return err
		}
		publish(t, "first", 0)
		after, err := edgeGauge(c, `slimfaas_edge_event_shares_total`)
		if err == nil && after < before+2 {
			err = fmt.Errorf("%.0f shares", after-before)
		}
		return err
	})

	var addresses []string
	for _, l := range rec.read(t, "crowd") {
		if l.Phase == "listen" {
			addresses = append(addresses, l.URI+"/direct")
		}
	}
	if len(addresses) != replicas {
		t.Fatalf("%d addresses", len(addresses))
	}
	direct := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32, IdleConnTimeout: time.Second}}
	var ours, theirs []time.Duration
	for round := range rounds {
		key := fmt.Sprintf("round-%d", round)
		ours = append(ours, publish(t, key, 0))
		for replica, n := range calls(t, key) {
			if n != 1 {
				t.Errorf("%s: replica %s was called %d times", key, replica, n)
			}
		}
		if reached := len(calls(t, key)); reached != replicas {
			t.Errorf("%s: %d replicas were called", key, reached)
		}
		theirs = append(theirs, postAll(t, direct, addresses, event))
	}
	n.atMost(t, fmt.Sprintf("event_to_%d_replicas", replicas), percentile(ours, 50), 2*percentile(theirs, 50))
	t.Logf("one process posts to them directly in %v", percentile(theirs, 50).Round(time.Millisecond))

	// 64 calls at one time: the share of the edge that dies is under way for as long as this and, at full size, five times that.
	ms := n.runs(300, 1500)
	died := make(chan struct{})
	go func() {
		defer close(died)
		c.Eventually(10*time.Second, "the event is under way", func() error {
			if len(calls(t, "killed")) < replicas/2 {
				return errNotYet
			}
			return nil
		})
		c.Kill("edge-2")
	}()
	took := publish(t, "killed", ms)
	<-died
	count := calls(t, "killed")
	again := 0
	for replica, n := range count {
		if n > 2 {
			t.Errorf("replica %s was called %d times", replica, n)
		}
		if n == 2 {
			again++
		}
	}
	t.Logf("an edge died: %d of %d replicas called, %d of them twice, in %v", len(count), replicas, again, took.Round(time.Millisecond))
	if len(count) != replicas || again > replicas/3+1 || again == 0 { // none twice: it died too late
		t.Errorf("%d of %d replicas called, %d of them twice", len(count), replicas, again)
	}
}

// postAll posts to every address, 64 at a time as an edge does.
func postAll(t *testing.T, client *http.Client, addresses []string, body []byte) time.Duration {
	t.Helper()
	open := make(chan struct{}, 64)
	var calls sync.WaitGroup
	began := time.Now()
	for _, address := range slices.Sorted(slices.Values(addresses)) {
		calls.Go(func() {
			open <- struct{}{}
			defer func() { <-open }()
			res, err := client.Post(address, "text/plain", bytes.NewReader(body))
			if err != nil {
				t.Errorf("posting: %v", err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		})
	}
	calls.Wait()
	return time.Since(began)
}
