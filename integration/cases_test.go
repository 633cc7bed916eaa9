package integration

// The numbered cases of the contract that can be seen from outside. Each subtest carries its number; the others are unit
// tests (A11, A14, A15, B7, B8, H, I) or stand in docs/compatibility.md with the reason for the difference.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

const caseRetries = `{"DefaultAsync":{"HttpTimeout":3,"TimeoutRetries":[1,1],"HttpStatusRetries":[500,502,503]}}`

// caseFunctions are those of contractCases.
func caseFunctions() []fn {
	return []fn{
		{name: "fibonacci", annotations: map[string]string{
			"PathsStartWithVisibility": "Public:/compute,Private:/private,/noprefix", "Configuration": caseRetries, "TimeoutSecondBeforeSetReplicasMin": "600",
		}},
		{name: "sleeper"}, {name: "other"},
	}
}

// contractCases of upstream, by their numbers, on a cluster of so many functions.
func contractCases(t *testing.T, c *cluster.Cluster, rec records, functions int) {
	last := func() line {
		all := rec.started(t, "fibonacci")
		if len(all) == 0 {
			return line{}
		}
		return all[len(all)-1]
	}
	get := func(t *testing.T, path string, want int) {
		t.Helper()
		status, body, err := c.Get(0, path)
		if err := wantStatus(status, want, body, err); err != nil {
			t.Errorf("GET %s: %v", path, err)
		}
	}
	t.Run("A1 A2 A3 A4", func(t *testing.T) {
		get(t, "/function/fibonacci/compute", 200)
		get(t, "/function/fibonacci/noprefix", 200)
		get(t, "/function/fibonacci/download", 200)
		get(t, "/function/wrong/download", 404)
	})
	t.Run("A12 methods and headers are forwarded", func(t *testing.T) {
		for _, m := range []string{"GET", "POST", "DELETE", "PATCH", "HEAD", "PUT", "OPTIONS"} {
			status, body, err := c.Do(0, m, "/function/fibonacci/x?m="+m, http.Header{"Authorization": {"bearer value1"}, "X-Slimfaas-Job": {"forged"}, "Slimfaas-Element-Id": {"forged"}}, nil)
			if err := wantStatus(status, 200, body, err); err != nil {
				t.Errorf("%s: %v", m, err)
			}
			if l := last(); l.Method != m || l.Header.Get("Authorization") != "bearer value1" || l.Header.Get("X-Slimfaas-Job") != "" || l.Header.Get("Slimfaas-Element-Id") != "" {
				t.Errorf("%s arrived as %s %v", m, l.Method, l.Header)
			}
		}
	})
	t.Run("A16 client abort cancels the call", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", c.URL(0)+"/function/fibonacci/abort?ms=30000", nil)
		go func() {
			_ = cluster.Poll(t.Context(), 10*time.Second, func() error {
				if !strings.HasPrefix(last().URI, "/abort") {
					return errNotYet
				}
				return nil
			})
			cancel()
		}()
		res, err := cluster.Client.Do(req)
		if err == nil {
			_ = res.Body.Close()
			t.Fatalf("answered %d", res.StatusCode)
		}
		c.Eventually(3*time.Second, "the function notices", func() error {
			for _, l := range rec.read(t, "fibonacci") {
				if l.Phase == "end" && l.Aborted && strings.HasPrefix(l.URI, "/abort") {
					return nil
				}
			}
			return errNotYet
		})
	})
	t.Run("A22 path and query arrive as they were sent (quirk fixed)", func(t *testing.T) {
		address := strings.TrimPrefix(c.URL(0), "http://")
		for _, target := range []string{"/a/b/", "/a%20b?q=%20", "/a%2Fb", "/a//b", "/a%23b?x=1/", "/?q=1", "/a;b=c", "/%E2%82%AC", "/a%25b"} {
			if got := raw(t, address, "GET", "/function/fibonacci"+target); got != 200 {
				t.Errorf("%s: %d", target, got)
			} else if l := last(); l.URI != target {
				t.Errorf("sent %s, the function saw %s", target, l.URI)
			}
		}
	})
	t.Run("A17 a large body arrives byte for byte", func(t *testing.T) {
		body := make([]byte, 3<<20)
		random := rand.NewChaCha8([32]byte{1})
		_, _ = random.Read(body)
		text := []byte(fmt.Sprintf("%x", body))[:3<<20]
		req, _ := http.NewRequestWithContext(t.Context(), "POST", c.URL(0)+"/function/fibonacci/large", io.MultiReader(bytes.NewReader(text))) // no length: chunked
		res, err := cluster.Client.Do(req)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v %v", res, err)
		}
		_ = res.Body.Close()
		if sha256.Sum256([]byte(last().Body)) != sha256.Sum256(text) {
			t.Errorf("%d bytes arrived, not the %d that were sent", len(last().Body), len(text))
		}
	})
	t.Run("A24 TRACE is refused", func(t *testing.T) {
		if got := raw(t, strings.TrimPrefix(c.URL(0), "http://"), "TRACE", "/function/fibonacci/x"); got != 405 {
			t.Errorf("TRACE: %d, want 405", got)
		}
	})
	delivered := func(t *testing.T, key string, tries int) []line {
		t.Helper()
		var got []line
		c.Eventually(20*time.Second, fmt.Sprintf("%d deliveries of %s", tries, key), func() error {
			got = nil
			for _, l := range rec.started(t, "fibonacci") {
				if keyOf(l) == key {
					got = append(got, l)
				}
			}
			if len(got) < tries {
				return fmt.Errorf("%d", len(got))
			}
			return nil
		})
		return got
	}
	call := func(id string) (map[string]any, error) {
		status, body, err := c.Get(0, "/async-calls/"+id)
		if err := wantStatus(status, 200, body, err); err != nil {
			return nil, err
		}
		var v map[string]any
		return v, json.Unmarshal(body, &v)
	}
	ends := func(t *testing.T, id, state string) map[string]any {
		t.Helper()
		var v map[string]any
		c.Eventually(20*time.Second, id+" is "+state, func() error {
			var err error
			if v, err = call(id); err != nil {
				return err
			}
			if v["State"] != state {
				return fmt.Errorf("%v", v)
			}
			return nil
		})
		return v
	}
	t.Run("async", func(t *testing.T) { // side by side: each knows its calls by a key
		t.Run("B1 async call is queued and delivered whole", func(t *testing.T) {
			t.Parallel()
			status, header, body, err := c.Send(0, "PUT", "/async-function/fibonacci/download/x%20y/?key=b1&z=%2F", http.Header{"Accept": {"text/x"}, "User-Agent": {"me"}, "Range": {"bytes=1-"}, "X-Mine": {"a", "b"}}, []byte("the body"))
			if err := wantStatus(status, 202, body, err); err != nil {
				t.Fatal(err)
			}
			id := header.Get("SlimFaas-Element-Id")
			if len(id) != 36 || id != strings.ToLower(id) || len(body) != 0 {
				t.Errorf("id %q, body %q", id, body)
			}
			l := delivered(t, "b1", 1)[0]
			if l.Method != "PUT" || l.URI != "/download/x%20y/?key=b1&z=%2F" || l.Body != "the body" || l.Header.Get("Accept") != "text/x" ||
				l.Header.Get("User-Agent") != "me" || l.Header.Get("Range") != "bytes=1-" || len(l.Header["X-Mine"]) != 2 || l.Header.Get("SlimFaas-Element-Id") != id {
				t.Errorf("the function got %+v", l)
			}
			v := ends(t, id, "Succeeded")
			for _, field := range []string{"Id", "Function", "State", "Tries", "MaxTries", "EnqueuedAt", "StartedAt", "NextTryAt", "FinishedAt", "LastStatus", "LastError"} {
				if _, ok := v[field]; !ok {
					t.Errorf("/async-calls lacks %s: %v", field, v)
				}
			}
			if v["Id"] != id || v["Function"] != "fibonacci" || v["Tries"] != 1.0 || v["MaxTries"] != 3.0 || v["LastStatus"] != 200.0 {
				t.Errorf("%v", v)
			}
		})
		t.Run("B6 B7 tries carry their number, the last says so, a GET carries them too", func(t *testing.T) {
			t.Parallel()
			status, header, body, err := c.Send(0, "GET", "/async-function/fibonacci/x?key=b6&status=503", nil, nil)
			if err := wantStatus(status, 202, body, err); err != nil {
				t.Fatal(err)
			}
			for i, l := range delivered(t, "b6", 3) {
				if l.Header.Get("SlimFaas-Try-Number") != strconv.Itoa(i+1) || l.Header.Get("Slimfaas-Last-Try") != strconv.FormatBool(i == 2) || l.Header.Get("SlimFaas-Element-Id") == "" {
					t.Errorf("try %d carried %v", i+1, l.Header)
				}
			}
			if v := ends(t, header.Get("SlimFaas-Element-Id"), "Dead"); v["Tries"] != 3.0 || v["LastStatus"] != 503.0 || v["LastError"] == nil {
				t.Errorf("%v", v)
			}
		})
		t.Run("B11 B12 B13 callback", func(t *testing.T) {
			t.Parallel()
			later := func(key string) string {
				status, header, body, err := c.Send(0, "POST", "/async-function/fibonacci/x?status=202&key="+key, nil, nil)
				if err := wantStatus(status, 202, body, err); err != nil {
					t.Fatal(err)
				}
				delivered(t, key, 1)
				id := header.Get("SlimFaas-Element-Id")
				if v, err := call(id); err != nil || v["State"] != "Running" {
					t.Errorf("awaiting its callback: %v %v", v, err)
				}
				return id
			}
			callback := func(id, status string) {
				got, body, err := c.Do(0, "POST", "/async-function-callback/fibonacci/"+id+"/"+status, nil, nil)
				if err := wantStatus(got, 200, body, err); err != nil {
					t.Errorf("callback %s: %v", status, err)
				}
			}
			id := later("b11")
			callback(id, "Success")
			ends(t, id, "Succeeded")
			id = later("b12")
			callback(id, "error")
			if got := delivered(t, "b12", 2); got[1].Header.Get("SlimFaas-Try-Number") != "2" {
				t.Errorf("second try carried %v", got[1].Header)
			}
			callback("01890000-0000-7000-8000-000000000000", "success")
			if got := raw(t, strings.TrimPrefix(c.URL(0), "http://"), "GET", "/async-function-callback/fibonacci/"+id+"/success"); got != 405 {
				t.Errorf("GET callback: %d, want 405", got)
			}
			callback(id, "success")
			ends(t, id, "Succeeded")
			id = later("b11-late") // no callback within HttpTimeout: tried again
			delivered(t, "b11-late", 2)
			callback(id, "success")
			ends(t, id, "Succeeded")
		})
		t.Run("B15 a status that is not retried ends the call", func(t *testing.T) {
			t.Parallel()
			status, header, body, err := c.Send(0, "POST", "/async-function/fibonacci/x?status=404&key=b15", nil, nil)
			if err := wantStatus(status, 202, body, err); err != nil {
				t.Fatal(err)
			}
			if v := ends(t, header.Get("SlimFaas-Element-Id"), "Dead"); v["Tries"] != 1.0 || v["LastStatus"] != 404.0 {
				t.Errorf("%v", v)
			}
		})
		t.Run("long poll answers when the call ends", func(t *testing.T) {
			t.Parallel()
			status, header, body, err := c.Send(0, "POST", "/async-function/fibonacci/x?ms=1500&key=wait", nil, nil)
			if err := wantStatus(status, 202, body, err); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			status, body, err = c.Get(0, "/async-calls/"+header.Get("SlimFaas-Element-Id")+"?wait=30s")
			if err := wantStatus(status, 200, body, err); err != nil || !bytes.Contains(body, []byte(`"Succeeded"`)) || time.Since(began) > 10*time.Second {
				t.Errorf("%s %v after %v", body, err, time.Since(began))
			}
		})
	})
	t.Run("D4 D5 D6 D7 wake", func(t *testing.T) {
		for _, m := range []string{"POST", "POST", "GET"} {
			status, body, err := c.Do(0, m, "/wake-function/sleeper", nil, nil)
			if err := wantStatus(status, 204, body, err); err != nil {
				t.Errorf("%s: %v", m, err)
			}
		}
		readyReplicas(c, "sleeper", 1)
		wantProblem(t, c, "POST", "/wake-function/wrong", nil, nil, 404)
		if n := c.Replicas("sleeper"); n != 1 {
			t.Errorf("%d replicas after three wakes", n)
		}
		status, body, err := c.Do(0, "POST", "/wake-functions", nil, nil)
		if err := wantStatus(status, 204, body, err); err != nil {
			t.Error(err)
		}
		readyReplicas(c, "other", 1)
	})
	t.Run("D1 D2 D3 status", func(t *testing.T) {
		status, body, err := c.Get(0, "/status-function/other")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Fatal(err)
		}
		if want := `{"NumberReady":1,"NumberRequested":1,"PodType":"Deployment","Visibility":"Public","Name":"other"}`; strings.TrimSpace(string(body)) != want {
			t.Errorf("status-function: %s, want %s", body, want)
		}
		wantProblem(t, c, "GET", "/status-function/wrong", nil, nil, 404)
		_, body, err = c.Get(0, "/status-functions?level=detailed")
		var all []map[string]any
		if err != nil || json.Unmarshal(body, &all) != nil || len(all) != functions {
			t.Errorf("status-functions: %s %v", body, err)
		}
	})
	t.Run("health and ready as upstream", func(t *testing.T) {
		for path, want := range map[string]string{"/health": "OK", "/ready": "READY", "/HEALTH": "OK"} {
			status, body, err := c.Get(0, path)
			if err := wantStatus(status, 200, body, err); err != nil || string(body) != want {
				t.Errorf("%s: %q %v", path, body, err)
			}
		}
		get(t, "/metrics", 200)
	})
}

func dependenciesWakeFirstAndStayAwake() scenario {
	return scenario{[]fn{
		fn{name: "front", annotations: map[string]string{"DependsOn": "middle,unknown", "TimeoutSecondBeforeSetReplicasMin": "2"}},
		fn{name: "middle", annotations: map[string]string{"DependsOn": "base", "TimeoutSecondBeforeSetReplicasMin": "2"}},
		fn{name: "base", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "2"}, env: map[string]string{"START_DELAY_MS": "1000"}},
		fn{name: "ring1", annotations: map[string]string{"DependsOn": "ring2"}}, fn{name: "ring2", annotations: map[string]string{"DependsOn": "ring1"}},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		status, body, err := c.Get(0, "/function/front/?ms=12000")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Fatal(err)
		}
		first := func(f string) line {
			lines := rec.read(t, f)
			if len(lines) == 0 {
				t.Fatalf("%s never listened", f)
			}
			return lines[0]
		}
		base, middle, front := first("base"), first("middle"), first("front")
		if base.AtMs > middle.AtMs || middle.AtMs > front.AtMs {
			t.Errorf("listening in the order base %d, middle %d, front %d", base.AtMs, middle.AtMs, front.AtMs)
		}
		for _, f := range []string{"base", "middle"} {
			if n := len(rec.read(t, f)); n != 1 {
				t.Errorf("%s lived more than once while front was busy: %d", f, n)
			}
		}
		status, body, err = c.Get(0, "/function/ring1/")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Errorf("a function in a ring of dependencies: %v", err)
		}
		for _, f := range []string{"front", "middle", "base"} {
			c.Eventually(30*time.Second, f+" sleeps", asleep(c, f))
		}
	}}
}
