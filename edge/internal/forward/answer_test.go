package forward_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

func TestAnswersAreStreamedAsTheyCome(t *testing.T) {
	t.Parallel()
	more := make(chan struct{})
	b := setup(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		_, _ = io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-more
		_, _ = io.WriteString(w, "second")
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
	}))
	resp, err := testkit.Client.Get(b.url + "/function/fib")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first" {
		t.Fatalf("%q %v", first, err)
	}
	if b.tracker.Open() != 1 {
		t.Error("an open stream is not counted")
	}
	close(more)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "second" {
		t.Fatalf("%q %v", rest, err)
	}
	if resp.Trailer.Get("X-Announced") != "1" || resp.Trailer.Get("X-Late") != "2" {
		t.Errorf("trailers %v", resp.Trailer)
	}
	b.idle(t)
}

func TestEarlyHintsAreRelayed(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusOK)
	}))
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, "GET", b.url+"/function/fib", nil)
	resp, err := testkit.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || len(hints) != 1 || hints[0] != "103</a.css>" {
		t.Errorf("%d, hints %q", resp.StatusCode, hints)
	}
}

func TestWebSocketsGoThroughAndCountAsOpen(t *testing.T) {
	t.Parallel()
	b := setup(t, raw(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, r)
	}))
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(c, "GET /function/fib/ws HTTP/1.1\r\nHost: e\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	if head := readHead(r); head[0] != "HTTP/1.1 101 Switching Protocols" {
		t.Fatalf("%q", head)
	}
	fmt.Fprint(c, "ping")
	echo := make([]byte, 4)
	if _, err := io.ReadFull(r, echo); err != nil || string(echo) != "ping" {
		t.Fatalf("%q %v", echo, err)
	}
	if b.tracker.Open() != 1 {
		t.Error("an upgraded connection is not counted")
	}
	_ = c.Close()
	b.idle(t)
}

func TestTheCallersAbortCancelsTheFunction(t *testing.T) {
	t.Parallel()
	in, cut := make(chan struct{}), make(chan struct{})
	b := setup(t, serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(in)
		<-r.Context().Done()
		close(cut)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", b.url+"/function/fib", nil)
	go func() {
		<-in
		cancel()
	}()
	if _, err := testkit.Client.Do(req); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	select {
	case <-cut:
	case <-time.After(5 * time.Second):
		t.Fatal("the function was not cancelled")
	}
	b.idle(t)
}

func TestATruncatedAnswerIsVisible(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		b := setup(t, raw(t, func(c net.Conn, r *bufio.Reader) {
			readHead(r)
			_, _ = io.WriteString(c, head)
		}))
		var p2 http.Protocols
		p2.SetUnencryptedHTTP2(true)
		for _, transport := range []*http.Transport{{}, {Protocols: &p2}} {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", b.url+"/function/fib", nil)
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err == nil {
				t.Errorf("%s, %s: a broken answer looks whole: %q", name, resp.Proto, body)
			}
			transport.CloseIdleConnections()
		}
		b.idle(t)
	}
}

func TestACallerThatStopsReadingIsCut(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		chunk := make([]byte, 1<<20)
		for range 1 << 10 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	b.forward.Stalled = 50 * time.Millisecond
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /function/fib HTTP/1.1\r\nHost: e\r\n\r\n")
	if _, err := c.Read(make([]byte, 1)); err != nil { // the answer has begun
		t.Fatal(err)
	}
	b.idle(t)
}

func TestASilentStreamIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			_, _ = io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			time.Sleep(120 * time.Millisecond) // a stream with nothing to say
		}
	}))
	b.forward.Stalled = 50 * time.Millisecond
	for range 2 {
		resp, err := testkit.Client.Get(b.url + "/function/fib")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != "xxx" {
			t.Errorf("%q %v", body, err)
		}
	}
}
