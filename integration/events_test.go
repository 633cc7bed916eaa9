package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// readyReplicas waits until status shows n ready replicas of a function.
func readyReplicas(c *cluster.Cluster, function string, n int) {
	c.Eventually(30*time.Second, fmt.Sprintf("%d ready replicas of %s", n, function), func() error {
		status, body, err := c.Get(0, "/status-function/"+function)
		if err := wantStatus(status, 200, body, err); err != nil {
			return err
		}
		var s struct{ NumberReady int }
		if err := json.Unmarshal(body, &s); err != nil {
			return err
		}
		if s.NumberReady != n {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
}

type eventResult struct {
	Function, Replica, Error string
	Status, Tries            int
	DurationMs               float64
}

func publishReachesEachReplicaOnce() scenario {
	noRetry := `{"DefaultPublish":{"HttpTimeout":3,"TimeoutRetries":[]}}`
	return scenario{[]fn{
		{name: "one", annotations: map[string]string{"ReplicasMin": "2", "SubscribeEvents": "Public:reload,Private:secret"}},
		{name: "two", annotations: map[string]string{"ReplicasMin": "2", "SubscribeEvents": "reload,fail", "Configuration": noRetry}},
		{name: "asleep", annotations: map[string]string{"SubscribeEvents": "reload,lonely"}},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		readyReplicas(c, "one", 2)
		readyReplicas(c, "two", 2)

		status, body, err := c.Do(0, http.MethodPost, "/publish-event/reload/hello?x=1", http.Header{"X-Mine": {"kept"}}, []byte(`{"a":1}`))
		if err := wantStatus(status, 204, body, err); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"one", "two"} {
			var replicas []string
			for _, l := range rec.started(t, f) {
				replicas = append(replicas, l.Replica)
				if l.Method != "POST" || l.URI != "/hello?x=1" || l.Body != `{"a":1}` || l.Header.Get("X-Mine") != "kept" {
					t.Errorf("%s got %s %s %q", f, l.Method, l.URI, l.Body)
				}
			}
			slices.Sort(replicas)
			if !slices.Equal(replicas, []string{"0", "1"}) {
				t.Errorf("%s was called on replicas %v, want each once", f, replicas)
			}
		}
		if n := len(rec.started(t, "asleep")); n != 0 {
			t.Errorf("a sleeping subscriber got %d calls", n)
		}

		t.Run("every method (C5)", func(t *testing.T) {
			for _, m := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"} {
				for _, path := range []string{"/publish-event/reload", "/publish-event/reload/a/b"} {
					status, body, err := c.Do(0, m, path, nil, nil)
					if err := wantStatus(status, 204, body, err); err != nil {
						t.Errorf("%s %s: %v", m, path, err)
					}
				}
			}
		})
		t.Run("no subscriber is 404 (C4)", func(t *testing.T) {
			wantProblem(t, c, "POST", "/publish-event/toto/hello", nil, nil, 404)
			wantProblem(t, c, "POST", "/publish-event/Reload/hello", nil, nil, 404) // exact, case-sensitive
		})
		t.Run("subscribers at zero get nothing (C7)", func(t *testing.T) {
			status, body, err := c.Do(0, "POST", "/publish-event/lonely", nil, nil)
			if err := wantStatus(status, 204, body, err); err != nil {
				t.Error(err)
			}
			if n := c.Replicas("asleep"); n != 0 {
				t.Errorf("an event woke the function")
			}
		})
		t.Run("report tells who failed", func(t *testing.T) {
			status, body, err := c.Do(0, "POST", "/publish-event/fail/x?status=418", http.Header{"Prefer": {"return=representation"}}, nil)
			if err := wantStatus(status, 200, body, err); err != nil {
				t.Fatal(err)
			}
			var report []eventResult
			if err := json.Unmarshal(body, &report); err != nil || len(report) != 2 {
				t.Fatalf("report %s: %v", body, err)
			}
			for _, r := range report {
				if r.Function != "two" || r.Status != 418 || r.Tries != 1 || !strings.HasPrefix(r.Replica, "fn-two-") {
					t.Errorf("report line %+v", r)
				}
			}
		})
		t.Run("a hanging subscriber holds up nobody", func(t *testing.T) {
			before := len(rec.started(t, "one"))
			done := make(chan []byte, 1)
			go func() {
				_, body, _ := c.Do(0, "POST", "/publish-event/reload/slow?ms=5000", http.Header{"Prefer": {"return=representation"}}, nil)
				done <- body
			}()
			c.Eventually(2*time.Second, "the others got theirs at once", func() error {
				if n := len(rec.started(t, "one")) - before; n != 2 {
					return fmt.Errorf("%d", n)
				}
				return nil
			})
			var report []eventResult
			body := <-done
			if err := json.Unmarshal(body, &report); err != nil || len(report) != 4 {
				t.Fatalf("report %s: %v", body, err)
			}
			for _, r := range report {
				if ok := r.Status == 200; ok != (r.Function == "one") { // two has HttpTimeout 3 s and no retries
					t.Errorf("report line %+v", r)
				}
			}
		})
	}}
}
