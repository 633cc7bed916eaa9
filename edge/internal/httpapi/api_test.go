package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/access"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	outsider  = "203.0.113.5:4000"
	insider   = "10.0.0.1:4000" // the address of a replica
	proxy     = "192.0.2.1:4000"
	loopback  = "127.0.0.1:4000"
	untrusted = "10.0.0.9:4000" // the address of an untrusted function's replica
)

type bundle struct {
	api    *httpapi.API
	set    *replica.Set
	synced bool
	woken  []string
	called []string // rest of the paths that reached the sync handler
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{set: replica.NewSet(load.NewTracker()), synced: true}
	put := func(name string, spec function.Specification, rec *wire.FunctionRecord) {
		rec.Name, rec.Version = name, &wire.Version{Epoch: 1, Seq: 1}
		b.set.Apply(rec, &spec)
	}
	ready := &wire.Replica{Name: "r", Host: "10.0.0.1", Ports: []uint32{1}, State: wire.ReplicaState_REPLICA_STATE_READY}
	put("fibonacci", function.Specification{PathsStartWithVisibility: []function.PathRule{
		{Path: "/compute", Visibility: function.Public}, {Path: "/private", Visibility: function.Private},
		{Path: "/noprefix", Visibility: function.Public}, {Path: "/Admin", Visibility: function.Private},
	}}, &wire.FunctionRecord{Namespace: "default", Wanted: 2, Kind: "Deployment", Replicas: []*wire.Replica{
		ready, {Name: "s", Host: "10.0.0.2", Ports: []uint32{1}, State: wire.ReplicaState_REPLICA_STATE_STARTING},
	}})
	put("secret", function.Specification{DefaultVisibility: function.Private}, &wire.FunctionRecord{Kind: "StatefulSet"})
	put("shady", function.Specification{DefaultTrust: function.Untrusted}, &wire.FunctionRecord{Replicas: []*wire.Replica{
		{Name: "u", Host: "10.0.0.9", Ports: []uint32{1}, State: wire.ReplicaState_REPLICA_STATE_READY},
	}})
	put("my.dotted", function.Specification{}, &wire.FunctionRecord{})
	b.api = httpapi.New(httpapi.Options{
		Functions: b.set, MaxBody: 100, Cors: gate.NewCors("*"),
		Access: access.Rules{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
		Synced: func() bool { return b.synced },
	})
	b.api.Handle(route.Function, func(w http.ResponseWriter, _ *http.Request, in *httpapi.Request) {
		b.called = append(b.called, in.Function.Name()+" "+in.Rest)
		_, _ = io.WriteString(w, "called")
	})
	b.api.Handle(route.Cluster, func(w http.ResponseWriter, _ *http.Request, _ *httpapi.Request) { _, _ = io.WriteString(w, "cluster") })
	b.api.HandleWake(func(f *replica.Function) { b.woken = append(b.woken, f.Name()) })
	b.api.HandleHealth(func() error {
		if !b.synced {
			return io.EOF
		}
		return nil
	}, http.NotFoundHandler())
	return b
}

// do sends a request as a peer; headers are "Name: value".
func do(h http.Handler, peer, method, target string, headers ...string) *httptest.ResponseRecorder {
	raw := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: e\r\n%s\r\n", method, target, strings.Join(append(headers, ""), "\r\n"))
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
	if err != nil {
		panic(err)
	}
	r.RemoteAddr = peer
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Cases A1–A4, A24 and the paths of point 7 of the issue: what an outsider may not reach is not reached by any spelling.
func TestWhoReachesWhat(t *testing.T) {
	t.Parallel()
	b := setup(t)
	public, internal := b.api.Public(), b.api.Internal()
	for _, c := range []struct {
		peer, method, target string
		headers              []string
		status               int
	}{
		{outsider, "GET", "/function/fibonacci/compute", nil, 200},
		{outsider, "GET", "/function/fibonacci/noprefix", nil, 200},
		{outsider, "GET", "/function/fibonacci/download", nil, 200},
		{outsider, "GET", "/function/wrong/download", nil, 404},
		{outsider, "TRACE", "/function/fibonacci/x", nil, 405},
		{outsider, "GET", "/function/fibonacci.default/download", nil, 200},
		{outsider, "GET", "/function/fibonacci.default/private", nil, 404},
		{outsider, "GET", "/function/fibonacci.other/download", nil, 404},
		{outsider, "GET", "/function/my.dotted/x", nil, 200},
		{outsider, "GET", "/function/fibonacci/private", nil, 404},
		{outsider, "GET", "/function/fibonacci/private/deep", nil, 404},
		{outsider, "GET", "/FUNCTION/fibonacci/PRIVATE", nil, 404},
		{outsider, "GET", "/function/fibonacci//private", nil, 404},
		{outsider, "GET", "/function/fibonacci/%2Fprivate", nil, 404},
		{outsider, "GET", "/function/fibonacci/%70rivate", nil, 404},
		{outsider, "GET", "/function/fibonacci/x/../private", nil, 404},
		{outsider, "GET", "/function/fibonacci/x/%2e%2e/private", nil, 404},
		{outsider, "GET", "/function/fibonacci/./private", nil, 404},
		{outsider, "GET", "/function/fibonacci/x%2f..%2fprivate", nil, 404},
		{outsider, "GET", "/function/fibonacci/x\\..\\private", nil, 404},
		{outsider, "GET", "/function/fibonacci/admin", nil, 404},
		{outsider, "GET", "/function/secret", nil, 404},
		{outsider, "GET", "http://other/function/secret/x", nil, 404},
		{outsider, "GET", "/function/secret", []string{"X-Forwarded-For: 10.0.0.1"}, 404},
		{outsider, "GET", "/function/secret", []string{"X-Forwarded-For: 127.0.0.1", "Forwarded: for=10.0.0.1", "X-Real-IP: 10.0.0.1"}, 404},
		{insider, "GET", "/function/secret", nil, 200},
		{"[::ffff:10.0.0.1]:1", "GET", "/function/secret", nil, 200},
		{"10.0.0.12:1", "GET", "/function/secret", nil, 404},
		{"110.0.0.1:1", "GET", "/function/secret", nil, 404},
		{untrusted, "GET", "/function/secret", nil, 404},
		{loopback, "GET", "/function/secret", nil, 404}, // not internal unless configured
		{proxy, "GET", "/function/secret", []string{"X-Forwarded-For: 10.0.0.1"}, 200},
		{proxy, "GET", "/function/secret", []string{"X-Forwarded-For: 10.0.0.1, 203.0.113.5"}, 404},
		{proxy, "GET", "/function/secret", nil, 404},
		{outsider, "GET", "/cluster", nil, 404},
		{insider, "GET", "/cluster", nil, 404}, // not on the public listener
	} {
		if w := do(public, c.peer, c.method, c.target, c.headers...); w.Code != c.status {
			t.Errorf("%s %s %s %v: %d, want %d", c.peer, c.method, c.target, c.headers, w.Code, c.status)
		} else if c.status >= 400 && !strings.HasPrefix(w.Header().Get("Content-Type"), "application/problem+json") {
			t.Errorf("%s: %s", c.target, w.Header().Get("Content-Type"))
		}
	}
	unknown, private := do(public, outsider, "GET", "/function/wrong"), do(public, outsider, "GET", "/function/secret")
	if unknown.Body.String() != private.Body.String() {
		t.Error("a private function is told from an unknown one")
	}
	for peer, status := range map[string]int{outsider: 404, insider: 200, loopback: 200, untrusted: 404} {
		if w := do(internal, peer, "GET", "/cluster"); w.Code != status {
			t.Errorf("/cluster on the internal listener for %s: %d, want %d", peer, w.Code, status)
		}
		if w := do(internal, peer, "GET", "/function/secret"); w.Code != status {
			t.Errorf("/function/secret on the internal listener for %s: %d, want %d", peer, w.Code, status)
		}
	}
	b.api.InternalOnPublic = true
	for peer, status := range map[string]int{outsider: 404, insider: 200, loopback: 404} {
		if w := do(public, peer, "GET", "/cluster"); w.Code != status {
			t.Errorf("/cluster on the public listener for %s: %d, want %d", peer, w.Code, status)
		}
	}
}

func TestThePathReachesTheFunctionAsSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	do(b.api.Public(), outsider, "GET", "/function/fibonacci/a//b/../c%2Fd/?x")
	if len(b.called) != 1 || b.called[0] != "fibonacci /a//b/../c%2Fd/" {
		t.Errorf("%q", b.called)
	}
}

// Cases D1–D7 as far as this edge answers them; GET wakes too (interface.md).
func TestStatusAndWake(t *testing.T) {
	t.Parallel()
	b := setup(t)
	public := b.api.Public()
	w := do(public, outsider, "GET", "/status-function/fibonacci")
	if want := `{"NumberReady":1,"NumberRequested":2,"PodType":"Deployment","Visibility":"Public","Name":"fibonacci"}`; w.Body.String() != want ||
		w.Header().Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("%s %s", w.Header().Get("Content-Type"), w.Body)
	}
	if w := do(public, outsider, "GET", "/status-function/wrong"); w.Code != 404 {
		t.Errorf("unknown: %d", w.Code)
	}
	var all []map[string]any
	w = do(public, outsider, "GET", "/status-functions?level=detailed")
	if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil || len(all) != 4 || all[2]["Name"] != "secret" || all[2]["Visibility"] != "Private" || all[2]["PodType"] != "StatefulSet" {
		t.Errorf("%v %s", err, w.Body)
	}
	for _, method := range []string{"GET", "POST"} {
		if w := do(public, outsider, method, "/wake-function/fibonacci"); w.Code != 204 || w.Body.Len() != 0 {
			t.Errorf("wake by %s: %d %s", method, w.Code, w.Body)
		}
	}
	if w := do(public, outsider, "POST", "/wake-function/wrong"); w.Code != 404 {
		t.Errorf("waking the unknown: %d", w.Code)
	}
	if w := do(public, outsider, "PUT", "/wake-function/fibonacci"); w.Code != 405 || w.Header().Get("Allow") != "GET, POST" {
		t.Errorf("wake by PUT: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	if w := do(public, outsider, "POST", "/wake-functions"); w.Code != 204 {
		t.Errorf("waking all: %d", w.Code)
	}
	if len(b.woken) != 6 {
		t.Errorf("woken %q", b.woken)
	}
	if w := do(public, outsider, "GET", "/status-functions-stream"); w.Code != 501 {
		t.Errorf("stream: %d", w.Code)
	}
	empty := httpapi.New(httpapi.Options{Functions: replica.NewSet(load.NewTracker()), MaxBody: 1, Synced: func() bool { return true }})
	if w := do(empty.Public(), outsider, "GET", "/status-functions"); w.Body.String() != "[]" {
		t.Errorf("no functions: %s", w.Body)
	}
}

func TestARequestThatComesBeforeTheTableWaitsForIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var read atomic.Bool
		after := 4 * time.Second
		set := replica.NewSet(load.NewTracker())
		api := httpapi.New(httpapi.Options{
			Functions: set, MaxBody: 1, Synced: read.Load,
			AwaitSynced: func(ctx context.Context) error {
				select {
				case <-time.After(after):
					set.Apply(&wire.FunctionRecord{Name: "f", Version: &wire.Version{Epoch: 1, Seq: 1}}, &function.Specification{Hosts: []string{"f.example"}})
					read.Store(true)
				case <-ctx.Done():
				}
				return ctx.Err()
			},
		})
		var called []string
		api.Handle(route.Function, func(_ http.ResponseWriter, _ *http.Request, in *httpapi.Request) { called = append(called, in.Rest) })
		api.HandleHealth(func() error { return io.EOF }, http.NotFoundHandler())
		began := time.Now()
		if w := do(api.Public(), outsider, "GET", "/ready"); w.Code != 503 || time.Since(began) != 0 {
			t.Errorf("/ready: %d after %v", w.Code, time.Since(began))
		}
		if w := do(api.Public(), outsider, "GET", "/function/f/x"); w.Code != 200 || time.Since(began) != after {
			t.Errorf("in time: %d after %v", w.Code, time.Since(began))
		}
		read.Store(false)
		after, began = time.Minute, time.Now()
		for _, patience := range []time.Duration{time.Second, 0} { // five since the start
			if w := do(api.Public(), outsider, "GET", "/function/g/x"); w.Code != 503 || time.Since(began) != patience {
				t.Errorf("too late: %d after %v", w.Code, time.Since(began))
			}
			began = time.Now()
		}
		if len(called) != 1 {
			t.Errorf("called %q", called)
		}
	})
}

func TestAConnectionThatCarriedChunksIsClosed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const chunked = "Transfer-Encoding: chunked"
	for _, c := range []struct {
		headers []string
		closes  bool
	}{
		{nil, false}, {[]string{"Content-Length: 0"}, false}, {[]string{chunked}, true}, {[]string{"Content-Length: 4", chunked}, true},
	} {
		for _, target := range []string{"/function/fibonacci/x", "/nowhere", "/ready"} {
			if w := do(b.api.Public(), outsider, "POST", target, c.headers...); (w.Header().Get("Connection") == "close") != c.closes {
				t.Errorf("%s with %q: Connection: %q", target, c.headers, w.Header().Get("Connection"))
			}
		}
	}
}

func TestBeforeTheTableIsRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.synced = false
	public := b.api.Public()
	for _, target := range []string{"/function/wrong/x", "/wake-function/wrong", "/status-function/wrong"} {
		if w := do(public, outsider, "GET", target); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d, nobody knows yet whether it exists", target, w.Code)
		}
	}
	if w := do(public, outsider, "GET", "/ready"); w.Code != 503 || w.Body.String() != "NOT_READY" {
		t.Errorf("ready: %d %s", w.Code, w.Body)
	}
	if w := do(public, outsider, "GET", "/health"); w.Code != 200 || w.Body.String() != "OK" {
		t.Errorf("health: %d %s", w.Code, w.Body)
	}
	b.synced = true
	if w := do(public, outsider, "POST", "/READY"); w.Code != 200 || w.Body.String() != "READY" {
		t.Errorf("ready: %d %s", w.Code, w.Body)
	}
}

func TestPreflightsAndLimitsCostNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	public := b.api.Public()
	w := do(public, outsider, "OPTIONS", "/function/secret/x", "Origin: https://a", "Access-Control-Request-Method: PUT")
	if w.Code != 204 || w.Header().Get("Access-Control-Allow-Origin") != "*" || w.Header().Get("Access-Control-Allow-Methods") != "PUT" {
		t.Errorf("preflight: %d %v", w.Code, w.Header())
	}
	if w := do(public, outsider, "GET", "/function/secret/x", "Origin: https://a"); w.Header().Get("Access-Control-Allow-Origin") != "*" {
		t.Error("a browser cannot read our refusals")
	}
	if w := do(public, outsider, "POST", "/function/fibonacci/x", "Content-Length: 101"); w.Code != 413 {
		t.Errorf("declared length over the limit: %d", w.Code)
	}
	if len(b.called) != 0 {
		t.Errorf("a function was called: %q", b.called)
	}
	if w := do(public, outsider, "OPTIONS", "/function/fibonacci/x", "Origin: https://a"); w.Code != 200 {
		t.Errorf("a plain OPTIONS is the function's: %d", w.Code)
	}
}

// Through a real listener: what net/http itself does with odd requests is part of the surface.
func TestRawRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	srv := httptest.NewServer(b.api.Public())
	defer srv.Close()
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET /function/fibonacci/x HTTP/1.1\r\nHost: e\r\n\r\n", 200},
		{"GET http://u:p@other/function/fibonacci/x HTTP/1.1\r\nHost: e\r\n\r\n", 200},
		{"CONNECT e:443 HTTP/1.1\r\nHost: e\r\n\r\n", 405},
		{"CONNECT /function/fibonacci/x HTTP/1.1\r\nHost: e\r\n\r\n", 405},
		{"PRI * HTTP/2.0\r\n\r\n", 405},
		{"BREW /function/fibonacci/x HTTP/1.1\r\nHost: e\r\n\r\n", 405},
		{"GET /function/fibonacci/x HTTP/1.1\r\nHost: e\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n\r\n", 400},
		{"GET /function/fib%00 HTTP/1.1\r\nHost: e\r\n\r\n", 404},
		{"GET /function/fibonacci/" + strings.Repeat("a", 5000) + " HTTP/1.1\r\nHost: e\r\n\r\n", 414},
		{"GET /function/fibonacci/x HTTP/1.1\r\nHost: e\r\n" + strings.Repeat("X: y\r\n", 101) + "\r\n", 431},
		{"GET /function/fibonacci/x HTTP/1.1\r\nHost: e\r\nX: " + strings.Repeat("y", 17<<10) + "\r\n\r\n", 431},
	} {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, c.request)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		_ = conn.Close()
		if err != nil {
			t.Errorf("%.60q: %v", c.request, err)
			continue
		}
		if resp.StatusCode != c.status {
			t.Errorf("%.60q: %d, want %d", c.request, resp.StatusCode, c.status)
		}
	}
}
