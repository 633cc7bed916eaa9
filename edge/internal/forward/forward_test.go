package forward_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
	"github.com/slimfaas/slimfaas/edge/internal/forward"
	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/function"
	house "github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// bundle is an edge of nothing but the forwarder, in front of replicas.
type bundle struct {
	url     string
	addr    string
	set     *replica.Set
	record  *wire.FunctionRecord
	fn      *replica.Function
	tracker *load.Tracker
	timeout time.Duration
	keep    bool
	forward *forward.Forwarder
	handler http.Handler // what the edge serves: replaceable before the first request

	mu        sync.Mutex
	deadlines []time.Time // guarded by mu; see noteDeadlines
}

// setup puts the forwarder in front of replicas at the addresses.
func setup(t *testing.T, addresses ...string) *bundle {
	t.Helper()
	b := &bundle{tracker: load.NewTracker(), timeout: 5 * time.Second}
	set := replica.NewSet(b.tracker)
	rec := &wire.FunctionRecord{Name: "fib", Version: &wire.Version{Epoch: 1, Seq: 1}}
	for i, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(port)
		rec.Replicas = append(rec.Replicas, &wire.Replica{
			Name: fmt.Sprint("fn-fib-", i), Host: host, Ports: []uint32{uint32(n)}, State: wire.ReplicaState_REPLICA_STATE_READY,
		})
	}
	set.Apply(rec, &function.Specification{NumberParallelRequestPerPod: 10})
	b.set, b.record = set, rec
	b.fn, _ = set.Get("fib")
	f := forward.New(slog.New(slog.DiscardHandler))
	b.forward = f
	t.Cleanup(f.Close)
	b.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rt := route.Parse(r.RequestURI)
		first, ok := b.fn.Choose(load.Sync, nil)
		if !ok {
			http.Error(w, "no replica", http.StatusTeapot)
			return
		}
		f.Serve(w, r, forward.Call{
			Began: time.Now(),
			Path:  rt.Rest, Query: rt.Query, Mark: rt.Mark, First: first, HeaderTimeout: b.timeout, KeepForwarded: b.keep,
			Next: func(tried func(*replica.Replica) bool) (*replica.Lease, bool) { return b.fn.Choose(load.Sync, tried) },
		})
	})
	srv := house.New(house.Options{Name: "test", Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.handler.ServeHTTP(w, r)
	})})
	if err := srv.Listen(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Run(ctx, 0) // says that it has cut what is open
	}()
	t.Cleanup(func() { stop(); <-ended })
	b.addr = srv.Addr().String()
	b.url = "http://" + b.addr
	return b
}

// serve starts a function and returns its address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// raw starts a function that is handed its connections.
func raw(t *testing.T, h func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				h(c, bufio.NewReader(c))
			}()
		}
	}()
	return l.Addr().String()
}

// readHead reads a request's head and returns its lines.
func readHead(r *bufio.Reader) []string {
	var lines []string
	for {
		line, err := r.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); err != nil || line == "" {
			return lines
		}
		lines = append(lines, line)
	}
}

// refusing is an address nobody listens on.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// send writes raw bytes to the edge and returns the answer.
func (b *bundle) send(t *testing.T, method, request string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	return resp, string(body)
}

// idle waits until nothing is open.
func (b *bundle) idle(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, 5*time.Second, "no call is counted any more", func() bool { return b.tracker.Open() == 0 })
}

func TestTheFunctionSeesWhatTheCallerSent(t *testing.T) {
	t.Parallel()
	b := setup(t, raw(t, func(c net.Conn, r *bufio.Reader) {
		head := strings.Join(readHead(r), "\n")
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(head), head)
	}))
	for target, want := range map[string]string{
		"/function/fib":                      "/",
		"/function/fib/a/b/":                 "/a/b/",
		"/function/fib//a//b?":               "//a//b?",
		"/function/fib/%2Fx%3F%25%zz":        "", // net/http refuses the bad escape
		"/function/fib/%2Fx%3F%25?q=a+b;c/":  "/%2Fx%3F%25?q=a+b;c/",
		"/function/fib/a|b{c}\"^`/%2f":       "/a|b{c}\"^`/%2f",
		"/function/fib/../x/./y":             "/../x/./y",
		"/function/fib//h{/%2f?x=%zz&y=[]":   "//h{/%2f?x=%zz&y=[]",
		"/function/fib/caf\xc3\xa9/%C3%A9?é": "/caf\xc3\xa9/%C3%A9?é",
	} {
		resp, body := b.send(t, "GET", "GET "+target+" HTTP/1.1\r\nHost: edge\r\n\r\n")
		if want == "" {
			if resp.StatusCode != 400 {
				t.Errorf("%s: %d", target, resp.StatusCode)
			}
			continue
		}
		line, _, _ := strings.Cut(body, "\n")
		if want = "GET " + want + " HTTP/1.1"; line != want {
			t.Errorf("%s: the function saw %q, want %q", target, line, want)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	seen := make(chan *http.Request, 1)
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		w.Header().Set("SlimFaas-Element-Id", "forged")
		w.Header().Set("X-SlimFaas-Other", "forged")
		w.Header().Set("Alt-Svc", "h3=\":443\"")
		w.Header().Set("Connection", "x-hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Set("Location", "http://elsewhere/")
		w.WriteHeader(http.StatusFound)
	}))
	request := "GET /function/fib HTTP/1.1\r\nHost: my.host:99\r\nConnection: x-private, SlimFaas-Try-Number\r\nX-Private: 1\r\nKeep-Alive: 3\r\n" +
		"slimfaas-try-number: 1\r\nX-SLIMFAAS-Job: a\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=10.0.0.1\r\n" +
		"Idempotency-Key: k\r\nAuthorization: bearer value1\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n"
	resp, _ := b.send(t, "GET", request)
	got := <-seen
	for _, name := range []string{"X-Private", "Keep-Alive", "Slimfaas-Try-Number", "X-Slimfaas-Job", "Forwarded", "Accept-Encoding", "User-Agent"} {
		if v, ok := got.Header[name]; ok {
			t.Errorf("the function saw %s: %q", name, v)
		}
	}
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "my.host:99", "Idempotency-Key": "k",
		"Authorization": "bearer value1",
	} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	if got.Host == "my.host:99" || !strings.HasPrefix(got.Host, "127.0.0.1:") {
		t.Errorf("Host %q, want the replica's host and port", got.Host)
	}
	if v := got.Header["X-Two"]; len(v) != 2 {
		t.Errorf("X-Two %q", v)
	}
	if resp.StatusCode != 302 || resp.Header.Get("Location") != "http://elsewhere/" {
		t.Errorf("a redirect was not passed on: %d %q", resp.StatusCode, resp.Header)
	}
	for _, name := range []string{"Slimfaas-Element-Id", "X-Slimfaas-Other", "Alt-Svc", "X-Hop"} {
		if v, ok := resp.Header[name]; ok {
			t.Errorf("the caller saw %s: %q", name, v)
		}
	}
	if v := resp.Header["Set-Cookie"]; len(v) != 2 {
		t.Errorf("Set-Cookie %q", v)
	}

	b.keep = true // the peer is a trusted proxy
	b.send(t, "GET", request)
	got = <-seen
	if v := got.Header.Get("X-Forwarded-For"); v != "10.0.0.1, 127.0.0.1" || got.Header.Get("X-Forwarded-Proto") != "https" || got.Header.Get("Forwarded") == "" {
		t.Errorf("a trusted proxy's headers were not kept: %v", got.Header)
	}
	if _, ok := got.Header["Cookie"]; ok {
		t.Error("a cookie of one caller was replayed")
	}
}

func TestADeadReplicaIsPassedOver(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	alive := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		_, _ = io.Copy(w, r.Body)
	})
	b := setup(t, refusing(t), refusing(t), alive)
	for range 10 {
		resp, err := testkit.Client.Post(b.url+"/function/fib", "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != 200 || string(body) != "body" {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	if calls.Load() != 10 {
		t.Errorf("%d calls", calls.Load())
	}
	b.idle(t)
}

// A lost packet, or a machine too busy to take the connection in half a second, is no reason to fail a call.
func TestAReplicaSlowToTakeConnectionsIsTriedAgain(t *testing.T) {
	t.Parallel()
	listener, free := testkit.FullListener(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }), ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	time.AfterFunc(2*dial.Timeout, func() {
		defer close(served)
		free()
		_ = srv.Serve(listener)
	})
	defer func() { _ = srv.Close(); <-served }()
	b := setup(t, refusing(t), listener.Addr().String())
	began := time.Now()
	resp, err := testkit.Client.Post(b.url+"/function/fib", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(body) != "body" {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if took := time.Since(began); took < dial.Timeout {
		t.Errorf("answered after %v: the connection was taken at once", took)
	}
	b.idle(t)
}

// An idle connection that the function has closed is no reason to fail a call, whatever its method and body.
func TestAClosedIdleConnectionCostsNothing(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{})
	b := setup(t, raw(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.CopyN(io.Discard, r, int64(r.Buffered()))
		_ = c.Close() // without a word about it
		closed <- struct{}{}
	}))
	for i := range 100 {
		method := []string{"GET", "POST", "DELETE", "HEAD", "PUT"}[i%5]
		body := strings.Repeat("x", i%3)
		resp, answer := b.send(t, method, fmt.Sprintf("%s /function/fib HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", method, len(body), body))
		if resp.StatusCode != 200 {
			t.Fatalf("call %d, %s: %d %s", i, method, resp.StatusCode, answer)
		}
		<-closed
	}
}

func TestACallIsNeverSentTwice(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "POST", "DELETE", "HEAD", "OPTIONS"} {
		var requests atomic.Int32
		address := raw(t, func(c net.Conn, r *bufio.Reader) {
			for n := 0; ; n++ {
				if len(readHead(r)) == 0 {
					return
				}
				if n > 0 || requests.Load() > 0 {
					requests.Add(1)
					return // took the second request of the connection and died with it
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
		b := setup(t, address)
		request := method + " /function/fib HTTP/1.1\r\nHost: e\r\nIdempotency-Key: k\r\nX-Idempotency-Key: k\r\nContent-Length: 0\r\n\r\n"
		b.send(t, method, request)
		resp, _ := b.send(t, method, request)
		if resp.StatusCode != 502 || requests.Load() != 1 {
			t.Errorf("%s: %d after %d requests, want 502 after 1", method, resp.StatusCode, requests.Load())
		}
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		address string
		timeout time.Duration
		status  int
		kind    string
	}{
		{"every replica refuses", refusing(t), 5 * time.Second, 503, "unreachable"},
		{"closed before the headers", raw(t, func(_ net.Conn, r *bufio.Reader) { readHead(r) }), 5 * time.Second, 502, "bad-gateway"},
		{"no HTTP", raw(t, func(c net.Conn, r *bufio.Reader) {
			readHead(r)
			_, _ = io.WriteString(c, "nonsense\r\n\r\n")
		}), 5 * time.Second, 502, "bad-gateway"},
		{"headers without end", raw(t, func(c net.Conn, r *bufio.Reader) {
			readHead(r)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 128<<10))
		}), 5 * time.Second, 502, "bad-gateway"},
		{"no headers in time", raw(t, func(c net.Conn, r *bufio.Reader) {
			readHead(r)
			_, _ = io.ReadAll(r) // until the edge gives up
		}), 50 * time.Millisecond, 504, "timeout"},
		{"an upgrade nobody asked for", raw(t, func(c net.Conn, r *bufio.Reader) {
			readHead(r)
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		}), 5 * time.Second, 502, "bad-gateway"},
	} {
		b := setup(t, c.address)
		b.timeout = c.timeout
		resp, body := b.send(t, "GET", "GET /function/fib HTTP/1.1\r\nHost: e\r\n\r\n")
		if resp.StatusCode != c.status || resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, "urn:slimfaas:"+c.kind) {
			t.Errorf("%s: %d %s", c.name, resp.StatusCode, body)
		}
		if (c.status == 503) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("%s: Retry-After %q", c.name, resp.Header.Get("Retry-After"))
		}
		b.idle(t)
	}
}

// The caller must see that an answer is not whole, over HTTP/1.1 and HTTP/2.
// A function may answer without reading the body; a caller that then sends nothing more must not hold the call.
// A caller that takes nothing of the answer holds a replica; it is cut, and one that pauses between answers is not.
