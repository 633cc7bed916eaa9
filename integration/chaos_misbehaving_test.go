package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// misbehaving is a function that answers with whatever bytes a call's path names, and notes which callers have gone.
type misbehaving struct {
	url  string
	gone atomic.Int64 // connections that were closed while it would have gone on
}

func (m *misbehaving) listen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				defer conn.Close()
				m.serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		conns.Wait()
	})
}

func (m *misbehaving) serve(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		slowly := func(text string, every time.Duration) bool {
			for i := range len(text) {
				if _, err := conn.Write([]byte{text[i]}); err != nil {
					m.gone.Add(1)
					return false
				}
				pace(every)
			}
			return true
		}
		say := func(format string, args ...any) { _, _ = fmt.Fprintf(conn, format, args...) }
		switch strings.TrimPrefix(r.URL.Path, "/") {
		case "never":
			_, _ = io.Copy(io.Discard, in) // until the edge has gone
			m.gone.Add(1)
			return
		case "header-slowly":
			if !slowly("HTTP/1.1 200 OK\r\nX-A: "+strings.Repeat("a", 1000), 200*time.Millisecond) {
				return
			}
		case "stream":
			say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			for {
				if _, err := io.WriteString(conn, "5\r\nhello\r\n"); err != nil {
					m.gone.Add(1)
					return
				}
				pace(20 * time.Millisecond)
			}
		case "dies-before":
			return
		case "dies-in-head":
			say("HTTP/1.1 200 OK\r\nContent-Le")
			return
		case "dies-in-length":
			say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n%s", strings.Repeat("x", 500))
			return
		case "dies-in-chunks":
			say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n%s", strings.Repeat("x", 500))
			return
		case "dies-between-chunks":
			say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			return
		case "says-more":
			say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
		case "informs":
			for range 10_000 {
				if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"); err != nil {
					return
				}
			}
			say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		case "trailers":
			say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n")
			for i := range 10_000 {
				if _, err := fmt.Fprintf(conn, "X-T%d: t\r\n", i); err != nil {
					return
				}
			}
			say("\r\n")
		case "no-http":
			say("SSH-2.0-OpenSSH_9.2\r\n\r\n")
			return
		case "two-lengths":
			say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")
		default:
			say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		}
	}
}

// misbehavingFunctions: a function that never answers is a 504 in time; one that dies is one retry or a 502, and in the middle of its
// answer the caller sees it; nothing of one call gets into another.
func misbehavingFunctions(t *testing.T, c *cluster.Cluster, n nemesis, function *misbehaving) {
	const deadline = 2 * time.Second // DefaultSync.HttpTimeout
	client := &http.Client{Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	get := func(path string) (status int, body string, took time.Duration, err error) {
		began := time.Now()
		res, err := client.Get(c.URL(0) + "/function/misbehaving/" + path)
		if err != nil {
			return 0, "", time.Since(began), err
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		return res.StatusCode, string(raw), time.Since(began), err
	}
	bystanders := func() time.Duration { // of calls of another function, the slowest hundredth
		var took []time.Duration
		for range n.runs(50, 1000) {
			began := time.Now()
			status, body, err := c.Get(0, "/function/echo/")
			if err := wantStatus(status, 200, body, err); err != nil {
				t.Errorf("a call of another function: %v", err)
			}
			took = append(took, time.Since(began))
		}
		return percentile(took, 99)
	}
	undisturbed := bystanders()
	var work sync.WaitGroup
	for _, path := range []string{"never", "header-slowly"} {
		for range n.runs(4, 50) {
			work.Go(func() {
				status, body, took, err := get(path)
				if err != nil || status != http.StatusGatewayTimeout || !strings.Contains(body, "urn:slimfaas:") {
					t.Errorf("%s: %d %s %v", path, status, body, err)
				}
				n.atMost(t, "e9_answer_of_"+path, took, deadline*11/10)
			})
		}
	}
	n.atMost(t, "e9_p99_of_another_function", bystanders(), 2*undisturbed+time.Millisecond)
	work.Wait()
	c.Eventually(time.Second, "their slots are free", func() error { return noneInFlight(c) })

	for range n.runs(10, 1000) {
		for path, want := range map[string]func(status int, body string, err error) bool{
			"dies-before":         func(status int, _ string, err error) bool { return err == nil && status == 502 },
			"dies-in-head":        func(status int, _ string, err error) bool { return err == nil && status == 502 },
			"no-http":             func(status int, _ string, err error) bool { return err == nil && status == 502 },
			"two-lengths":         func(status int, _ string, err error) bool { return err == nil && status == 502 },
			"dies-in-length":      func(_ int, _ string, err error) bool { return err != nil },
			"dies-in-chunks":      func(_ int, _ string, err error) bool { return err != nil },
			"dies-between-chunks": func(_ int, _ string, err error) bool { return err != nil },
			"says-more":           func(status int, body string, err error) bool { return err == nil && status == 200 && body == "hello" },
			"fine":                func(status int, body string, err error) bool { return err == nil && status == 200 && body == "hello" },
		} {
			if status, body, _, err := get(path); !want(status, body, err) {
				t.Errorf("%s: %d %q %v", path, status, body, err)
			}
		}
	}
	for _, path := range []string{"informs", "trailers"} { // capped: 502, or the end is visible; but never without an end
		if status, body, _, err := get(path); err == nil && status != 502 && body != "hello" {
			t.Errorf("%s: %d %q %v", path, status, body, err)
		}
	}

	// Streams whose callers leave end at the function, at once.
	gone := function.gone.Load()
	many := n.runs(20, 200)
	leave, cancel := context.WithCancel(t.Context())
	var streaming atomic.Int64
	for range many {
		work.Go(func() {
			req, err := http.NewRequestWithContext(leave, http.MethodGet, c.URL(0)+"/function/misbehaving/stream", nil)
			if err != nil {
				t.Error(err)
				return
			}
			res, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Errorf("a stream: %v", err)
				return
			}
			defer res.Body.Close()
			streaming.Add(1)
			if _, err := io.Copy(io.Discard, res.Body); !errors.Is(err, context.Canceled) {
				t.Errorf("a stream ended by itself: %v", err)
			}
		})
	}
	c.Eventually(10*time.Second, "all stream", func() error {
		if streaming.Load() < int64(many) {
			return errNotYet
		}
		return nil
	})
	pid := c.PID("edge-0")
	before := resident(t, pid)
	if n.full {
		pace(time.Minute)
	}
	if now := resident(t, pid); n.full && now > before+20 {
		t.Errorf("%d streams: %.0f MiB, %.0f before", many, now, before)
	}
	cancel()
	began := time.Now()
	c.Eventually(5*time.Second, "the function knows that its callers have gone", func() error {
		if now := function.gone.Load() - gone; now < int64(many) {
			return fmt.Errorf("%d of %d", now, many)
		}
		return nil
	})
	n.atMost(t, "e10_streams_cancelled", time.Since(began), time.Second)
	work.Wait()
	c.Eventually(time.Second, "their slots are free", func() error { return noneInFlight(c) })
}

func noneInFlight(c *cluster.Cluster) error {
	for _, gauge := range []string{`slimfaas_edge_in_flight{function="misbehaving"}`, `slimfaas_edge_streams{function="misbehaving"}`} {
		if n, err := edgeGauge(c, gauge); err != nil || n != 0 {
			return fmt.Errorf("%s %v, %w", gauge, n, err)
		}
	}
	return nil
}
