package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// callerChoosesHowToWait: what a caller of a function that sleeps may ask for, and what does not wake it.
func callerChoosesHowToWait() scenario {
	late := map[string]string{"START_DELAY_MS": "2500"}
	return scenario{[]fn{
		{name: "paged", annotations: map[string]string{"WaitingPage": "true"}, env: late},
		{name: "hurried", env: late},
		{name: "durable", env: late},
		{name: "watched", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "2", "NoWakePaths": "/live", "NoWakeUserAgents": "monitor"}},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		send := func(method, path string, header http.Header, body string) (int, http.Header, string, time.Duration) {
			t.Helper()
			began := time.Now()
			status, head, answer, err := c.Send(0, method, path, header, []byte(body))
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			return status, head, string(answer), time.Since(began)
		}
		becomes := func(path string, header http.Header, want string) {
			t.Helper()
			c.Eventually(20*time.Second, path+" is answered", func() error {
				status, _, body, _ := send("GET", path, header, "")
				if status != http.StatusOK || !strings.Contains(body, want) {
					return fmt.Errorf("%d %s", status, body)
				}
				return nil
			})
		}

		browser := http.Header{"Accept": {"text/html"}}
		status, head, body, took := send("GET", "/function/paged/", browser, "")
		if status != 503 || head.Get("Refresh") != "1" || !strings.Contains(body, "paged is waking") || took > 2*time.Second {
			t.Errorf("a browser got %d %v %s after %v", status, head, body, took)
		}
		becomes("/function/paged/", browser, "")

		status, head, body, took = send("GET", "/function/hurried/", http.Header{"Prefer": {"wait=1"}}, "")
		if status != 503 || head.Get("Retry-After") == "" || !strings.Contains(body, "within 1s") || took < 900*time.Millisecond || took > 2400*time.Millisecond {
			t.Errorf("wait=1 got %d %v %s after %v", status, head, body, took)
		}
		c.Eventually(20*time.Second, "it was woken all the same", func() error {
			if len(rec.read(t, "hurried")) == 0 {
				return errNotYet
			}
			return nil
		})

		async := http.Header{"Prefer": {"respond-async"}}
		status, head, body, took = send("POST", "/function/durable/in?key=x", async, "the body")
		if status != 202 || head.Get("SlimFaas-Element-Id") == "" || head.Get("Preference-Applied") != "respond-async" || took > 2*time.Second {
			t.Errorf("respond-async got %d %v %s after %v", status, head, body, took)
		}
		c.Eventually(20*time.Second, "the call is delivered", func() error {
			got := rec.started(t, "durable")
			if len(got) != 1 {
				return fmt.Errorf("%d calls", len(got))
			}
			if l := got[0]; l.Method != "POST" || l.URI != "/in?key=x" || l.Body != "the body" || l.Header.Get("Prefer") != "" || l.Header.Get("SlimFaas-Element-Id") == "" {
				t.Errorf("delivered %+v", l)
			}
			return nil
		})
		if status, _, body, _ := send("GET", "/function/durable/", async, ""); status != 200 {
			t.Errorf("awake, respond-async waits for nothing and is answered at once: %d %s", status, body)
		}

		monitor := http.Header{"User-Agent": {"Some-Monitor/1"}}
		for path, header := range map[string]http.Header{"/function/watched/live": nil, "/function/watched/": monitor} {
			p := wantProblem(t, c, "GET", path, header, nil, 503)
			if p.Type != "urn:slimfaas:asleep" || !strings.Contains(p.Detail, "NoWake") {
				t.Errorf("%s asleep: %+v", path, p)
			}
		}
		pace(time.Second)
		if n := len(rec.read(t, "watched")); n != 0 {
			t.Errorf("a request that does not wake has woken: %d records", n)
		}
		becomes("/function/watched/", nil, "")
		if status, _, body, _ := send("GET", "/function/watched/live", nil, ""); status != 200 {
			t.Errorf("awake, it is called: %d %s", status, body)
		}
		c.Eventually(30*time.Second, "it sleeps although it is looked at all the time", func() error {
			if status, _, body, _ := send("GET", "/function/watched/", monitor, ""); status != 200 && status != 503 {
				t.Errorf("%d %s", status, body)
			}
			return asleep(c, "watched")()
		})
		if cut := rec.cut(t, "watched"); len(cut) > 0 {
			t.Errorf("stopped with a call in it: %+v", cut)
		}
	}}
}
