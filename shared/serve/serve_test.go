package serve

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func start(t *testing.T, o Options, drain time.Duration) (url string, stop context.CancelFunc, ended chan error) {
	t.Helper()
	o.Name, o.Log = "test", slog.New(slog.DiscardHandler)
	s := New(o)
	stop, ended = run(t, s, drain)
	return "http://" + s.Addr().String(), stop, ended
}

// run a server until it is stopped, or the test ends; ended is told how.
func run(t *testing.T, s *Server, drain time.Duration) (stop context.CancelFunc, ended chan error) {
	t.Helper()
	if err := s.Listen(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { ended <- s.Run(ctx, drain) })
	t.Cleanup(func() { stop(); running.Wait() })
	return stop, ended
}

func client(t *testing.T, h2 bool) *http.Client {
	var p http.Protocols
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{Protocols: &p}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// gate is a handler that says when a request is in it and holds it until told.
type gate struct{ in, out chan struct{} }

func newGate() gate { return gate{in: make(chan struct{}), out: make(chan struct{})} }

func (g gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.in <- struct{}{}
	select {
	case <-g.out:
		_, _ = io.WriteString(w, r.Proto)
	case <-r.Context().Done():
	}
}

func TestDrainLetsOpenRequestsEnd(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		g := newGate()
		url, stop, ended := start(t, Options{Handler: g}, 30*time.Second)
		c := client(t, h2)
		got := make(chan string, 1)
		go func() {
			answer, err := c.Get(url)
			if err != nil {
				got <- err.Error()
				return
			}
			body, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			got <- string(body)
		}()
		<-g.in
		stop()
		for { // the listener is closed while the request goes on
			conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				break
			}
			conn.Close()
		}
		select {
		case err := <-ended:
			t.Fatalf("h2 %v: ended with a request open: %v", h2, err)
		default:
		}
		close(g.out)
		if answer := <-got; !strings.HasPrefix(answer, "HTTP/") {
			t.Errorf("h2 %v: the open request got %q", h2, answer)
		}
		if err := <-ended; err != nil {
			t.Errorf("h2 %v: %v", h2, err)
		}
	}
}

func TestDrainCutsAfterItsTimeAndEndsTheHandlers(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		g := newGate()
		left := make(chan struct{})
		url, stop, ended := start(t, Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			g.ServeHTTP(w, r)
			close(left)
		})}, 10*time.Millisecond)
		c := client(t, h2)
		go func() {
			if answer, err := c.Get(url); err == nil {
				answer.Body.Close()
			}
		}()
		<-g.in
		stop()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "draining test") {
			t.Errorf("h2 %v: %v", h2, err)
		}
		<-left
	}
}

func TestAPortThatIsTakenIsAnErrorOfListen(t *testing.T) {
	t.Parallel()
	url, _, _ := start(t, Options{Handler: http.NotFoundHandler()}, 0)
	s := New(Options{Name: "second", Log: slog.New(slog.DiscardHandler)})
	if err := s.Listen(t.Context(), strings.TrimPrefix(url, "http://")); err == nil || !strings.Contains(err.Error(), "second") {
		t.Errorf("got %v", err)
	}
	s.Close()
}

func TestHeadersOverTheLimitGet431(t *testing.T) {
	t.Parallel()
	url, _, _ := start(t, Options{Handler: http.NotFoundHandler()}, 0)
	request, _ := http.NewRequest("GET", url, nil)
	request.Header.Set("X-Big", strings.Repeat("x", 24<<10))
	answer, err := client(t, false).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", answer.StatusCode)
	}
}

func TestTokensTellRolesApart(t *testing.T) {
	t.Parallel()
	h := RequireToken(map[string]string{"edge": "e-token", "scaler": "s-token", "nobody": ""}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, Role(r.Context()))
	}))
	url, _, _ := start(t, Options{Handler: h}, 0)
	c := client(t, true)
	for _, x := range []struct {
		header, role string
		status       int
	}{
		{"Bearer e-token", "edge", 200},
		{"bearer s-token", "scaler", 200},
		{"Bearer ", "", 401},
		{"", "", 401},
		{"Basic e-token", "", 401},
		{"Bearer e-toke", "", 401},
	} {
		request, _ := http.NewRequest("GET", url, nil)
		request.Header.Set("Authorization", x.header)
		answer, err := c.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != x.status || (x.role != "" && string(body) != x.role) {
			t.Errorf("%q: status %d, body %q", x.header, answer.StatusCode, body)
		}
	}
}

func TestAdminAnswersAndCheckReadyReadsIt(t *testing.T) {
	t.Parallel()
	var ready error
	url, _, _ := start(t, Options{Handler: Admin{Ready: func() error { return ready }}.Handler()}, 0)
	addr := strings.TrimPrefix(url, "http://")
	_, port, _ := net.SplitHostPort(addr)
	for _, a := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		if err := CheckReady(t.Context(), a); err != nil {
			t.Error(err)
		}
	}
	ready = errors.New("the table has not been read")
	if err := CheckReady(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "NOT_READY: the table has not been read") {
		t.Errorf("got %v", err)
	}
	for path, status := range map[string]int{"/health": 200, "/metrics": 404, "/debug/pprof/": 404} {
		answer, err := client(t, false).Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != status {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
	}
}

func TestUnencryptedLinksStayOnThisMachine(t *testing.T) {
	t.Parallel()
	for addr, loopback := range map[string]bool{
		"127.0.0.1:3263": true, "127.8.0.1:1": true, "[::1]:3263": true, "localhost:3263": true,
		":3263": false, "0.0.0.0:3263": false, "[::]:1": false, "10.0.0.1:1": false, "localhost.example.com:1": false, "127.0.0.1": false,
	} {
		if Loopback(addr) != loopback {
			t.Errorf("Loopback(%q) = %v", addr, !loopback)
		}
		if err := RefuseInsecure(addr, false); (err == nil) != loopback {
			t.Errorf("RefuseInsecure(%q, false) = %v", addr, err)
		}
		if err := RefuseInsecure(addr, true); err != nil {
			t.Errorf("RefuseInsecure(%q, true) = %v", addr, err)
		}
	}
}
