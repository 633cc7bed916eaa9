package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
)

// outsideAddress is an address of this machine that is not loopback: a caller through it is outside.
func outsideAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			return ip.IP.String()
		}
	}
	return ""
}

// raw sends a request line as it is, so that no client normalises the path, and returns the status.
func raw(t *testing.T, address, method, target string, header ...string) int {
	t.Helper()
	return statusOf(t, address, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n%s\r\n", method, target, strings.Join(append(header, ""), "\r\n")))
}

// statusOf the answer to a request as it is; 0: the connection was closed without one.
func statusOf(t *testing.T, address, request string) int {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		t.Errorf("dialing %s: %v", address, err)
		return 0
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	_, _ = io.WriteString(conn, request)
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

var accessFunctions = []fn{
	{name: "open", annotations: map[string]string{"ReplicasMin": "1", "PathsStartWithVisibility": "Private:/admin,Public:/shown", "SubscribeEvents": "Private:inside"}},
	{name: "closed", annotations: map[string]string{"ReplicasMin": "1", "DefaultVisibility": "Private", "PathsStartWithVisibility": "Public:/shown"}},
}

func privateIsPrivateHoweverItIsSpelt() scenario {
	return scenario{accessFunctions, func(t *testing.T, c *cluster.Cluster, rec records) {
		outside := outsideAddress(t)
		if outside == "" {
			t.Skip("this machine has no address but loopback: nobody can be outside")
		}
		readyReplicas(c, "open", 1)
		readyReplicas(c, "closed", 1)
		port := c.Ports()["edge-0"]["public"]
		out, in := fmt.Sprintf("%s:%d", outside, port), fmt.Sprintf("127.0.0.1:%d", port)

		private := []string{
			"/function/closed/", "/function/closed", "/function/closed/x", "/FUNCTION/closed/x", "/function/open/admin", "/function/open/admin/x",
			"/function/open/ADMIN", "/function/open/Admin/x", "/function/open//admin", "/function/open///admin/x", "/function/open/./admin", "/function/open/shown/../admin",
			"/function/open/%61dmin", "/function/open/%41DMIN", "/function/open/x/%2e%2e/admin", "/function/open/%2e/admin", "/function/open/%2fadmin", "/function/open/%2Fadmin/x",
			"/function/open/x%2f..%2fadmin", "/function/open/shown/%2e%2e/admin", "/function/open/shown%2f..%2fadmin", "/function/open/%5cadmin", "/function/open/administration",
			"/async-function/closed/x", "/async-function/open/admin", "/async-function/open//admin", "/async-function/open/%61dmin", "/ASYNC-FUNCTION/open/Admin",
			"/publish-event/inside", "/publish-event/inside/x", "/explain/open", "/cluster",
			"/async-function-callback/closed/01890000-0000-7000-8000-000000000000/success",
		}
		forged := [][]string{
			nil, {"X-Forwarded-For: 127.0.0.1"}, {"X-Forwarded-For: 127.0.0.1, 127.0.0.1"}, {"X-Forwarded-For: ::1"}, {"X-Real-Ip: 127.0.0.1"},
			{"Forwarded: for=127.0.0.1"}, {"X-Forwarded-For: 127.0.0.1", "Connection: X-Forwarded-For"}, {"X-SlimFaas-Job: x"}, {"Host: 127.0.0.1:5001"},
		}
		before := len(rec.started(t, "open")) + len(rec.started(t, "closed"))
		for _, target := range private {
			method := "GET"
			if strings.Contains(target, "callback") || strings.Contains(target, "publish") {
				method = "POST"
			}
			for _, headers := range forged {
				if len(headers) == 1 && strings.HasPrefix(headers[0], "Host:") && target != "/function/closed/x" && target != "/explain/open" {
					continue // two Host headers are refused by the server; once is enough
				}
				got := raw(t, out, method, target, headers...)
				if got != 404 && got != 400 {
					t.Errorf("from outside %s %s %v answered %d, want 404", method, target, headers, got)
				}
			}
		}
		if after := len(rec.started(t, "open")) + len(rec.started(t, "closed")); after != before {
			t.Errorf("%d calls from outside reached a private path", after-before)
		}
		for _, target := range []string{"/function/open/x", "/function/open/shown/x", "/function/closed/shown", "/function/open/x/y/"} {
			if got := raw(t, out, "GET", target); got != 200 {
				t.Errorf("from outside the public %s answered %d, want 200", target, got)
			}
		}
		for target, want := range map[string]int{
			"/function/closed/x": 200, "/function/open/admin": 200, "/async-function/closed/x": 202, "/publish-event/inside/x": 204, "/explain/open": 200, "/cluster": 200,
		} {
			if got := raw(t, in, "GET", target); got != want {
				t.Errorf("from inside %s answered %d, want %d", target, got, want)
			}
		}
	}}
}

func TestTrustedProxySpeaksForItsCallers(t *testing.T) {
	outside := outsideAddress(t)
	if outside == "" {
		t.Skip("this machine has no address but loopback: nobody can be outside")
	}
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{
		Queues: 1, Functions: rec.yaml(slices.Concat(accessFunctions, doorFunctions)...),
		Env: []string{"EDGE_TRUSTED_PROXIES=" + outside + "/32,127.0.0.1/32", "EDGE_API_KEYS_FILE=" + keysFile(t)},
	})
	t.Run("keys are asked for at the door", func(t *testing.T) { keysAreAskedForAtTheDoor(t, c.With(t), rec, outside) })
	readyReplicas(c, "closed", 1)
	port := c.Ports()["edge-0"]["public"]
	proxy := fmt.Sprintf("%s:%d", outside, port)
	for _, tc := range []struct {
		forwarded string
		want      int
	}{
		{"127.0.0.2", 200},              // an internal caller behind the proxy
		{"203.0.113.9", 404},            // a stranger behind the proxy
		{"127.0.0.2, 203.0.113.9", 404}, // a stranger who claims to speak for somebody internal
		{"203.0.113.9, 127.0.0.2", 200}, // the nearest that is no proxy decides
		{"garbage", 404},                // nobody
		{"127.0.0.2, " + outside, 200},  // through two proxies
		{"127.0.0.22 , not an address", 404},
	} {
		if got := raw(t, proxy, "GET", "/function/closed/x", "X-Forwarded-For: "+tc.forwarded); got != tc.want {
			t.Errorf("X-Forwarded-For %q through the proxy: %d, want %d", tc.forwarded, got, tc.want)
		}
	}
	if got := raw(t, fmt.Sprintf("127.0.0.1:%d", port), "GET", "/function/closed/x", "X-Forwarded-For: 203.0.113.9"); got != 404 {
		t.Errorf("a stranger through a trusted proxy on loopback: %d, want 404", got)
	}
}

func brokenAnnotationHurtsOnlyItsFunction() scenario {
	return scenario{[]fn{
		{name: "good"},
		{name: "broken", annotations: map[string]string{"ReplicasMin": "many", "Configuration": "{nonsense"}},
	}, func(t *testing.T, c *cluster.Cluster, _ records) {
		status, body, err := c.Get(0, "/function/good/")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Fatal(err)
		}
		c.Eventually(10*time.Second, "explain says what is wrong", func() error {
			status, body, err := c.Get(0, "/explain/broken")
			if err := wantStatus(status, 200, body, err); err != nil {
				return err
			}
			for _, want := range []string{"SlimFaas/ReplicasMin", "many", "SlimFaas/Configuration"} {
				if !strings.Contains(string(body), want) {
					return fmt.Errorf("explain does not mention %s: %s", want, body)
				}
			}
			return nil
		})
		if log := c.Log("scaler-0"); !strings.Contains(log, "SlimFaas/ReplicasMin") || !strings.Contains(log, "broken") {
			t.Errorf("the scaler's log does not name the function and the key")
		}
		status, body, err = c.Get(0, "/function/broken/")
		if err != nil || status == 200 || status >= 600 {
			t.Errorf("calling the broken one: %d %s %v", status, body, err)
		}
	}}
}

func badInputIsAProblemAndCostsNothing() scenario {
	return scenario{[]fn{{name: "idle"}}, func(t *testing.T, c *cluster.Cluster, _ records) {
		wantProblem(t, c, "GET", "/function/unknown/x", nil, nil, 404)
		wantProblem(t, c, "POST", "/async-function/unknown/x", nil, nil, 404)
		wantProblem(t, c, "POST", "/wake-function/unknown", nil, nil, 404)
		wantProblem(t, c, "GET", "/status-function/unknown", nil, nil, 404)
		wantProblem(t, c, "GET", "/explain/unknown", nil, nil, 404)
		wantProblem(t, c, "GET", "/async-calls/01890000-0000-7000-8000-000000000000", nil, nil, 404)
		wantProblem(t, c, "GET", "/async-calls/not-an-id", nil, nil, 404)
		wantProblem(t, c, "GET", "/no/such/route", nil, nil, 404)
		json := http.Header{"Content-Type": {"application/json"}}
		wantProblem(t, c, "PUT", "/scale/idle", json, []byte(`{"Replicas":`), 400)
		wantProblem(t, c, "PUT", "/scale/idle", json, []byte(`{"Replicas":-1,"ForSeconds":10}`), 400)
		wantProblem(t, c, "PUT", "/scale/idle", json, []byte(`{"Replicas":1000000,"ForSeconds":10}`), 400)
		wantProblem(t, c, "PUT", "/scale/idle", json, []byte(`{"Replicas":1,"ForSeconds":0}`), 400)
		wantProblem(t, c, "PUT", "/scale/idle", json, []byte(`{"Replcas":1}`), 400)
		wantProblem(t, c, "PUT", "/scale/unknown", json, []byte(`{"Replicas":1,"ForSeconds":10}`), 404)
		wantProblem(t, c, "POST", "/async-function/idle/x", nil, make([]byte, 1<<20+1), 413)
		if got := raw(t, strings.TrimPrefix(c.URL(0), "http://"), "GET", "/function/idle/", "X-Big: "+strings.Repeat("x", 40<<10)); got != 431 {
			t.Errorf("headers over the limit: %d, want 431", got)
		}
		var many []string
		for i := range 150 {
			many = append(many, fmt.Sprintf("X-H%d: 1", i))
		}
		if got := raw(t, strings.TrimPrefix(c.URL(0), "http://"), "GET", "/function/idle/", many...); got != 431 {
			t.Errorf("150 headers: %d, want 431", got)
		}
		for _, m := range []string{"TRACE", "FOO", "CONNECT", "get"} {
			if got := raw(t, strings.TrimPrefix(c.URL(0), "http://"), m, "/function/idle/x"); got != 405 && got != 400 {
				t.Errorf("%s: %d, want 405", m, got)
			}
		}
		if n := c.Replicas("idle"); n != 0 {
			t.Errorf("bad input woke the function: %d replicas", n)
		}
		if a := enqueue(c, 0, "idle", "0-0", ""); a.Outcome != history.OK {
			t.Errorf("a good call after all that: %+v", a)
		}
	}}
}
