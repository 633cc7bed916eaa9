package forward_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

// A caller whose body stops holds a replica no longer than it may, is told, and the function sees the request break. What is too slow,
// pace_test.go says.
func TestABodyThatDoesNotMoveIsCut(t *testing.T) {
	t.Parallel()
	saw := make(chan error, 1)
	b := setup(t, serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		saw <- err
	}))
	b.forward.BodyIdle = 200 * time.Millisecond
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST /function/fib HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\nbegin")
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusRequestTimeout || !resp.Close || !strings.Contains(string(body), "body-too-slow") {
		t.Errorf("%s %s", resp.Status, body)
	}
	if err := <-saw; err == nil {
		t.Error("the function took a part of the body for the whole")
	}
	b.idle(t)
}

// A body that moves may take its time, and a connection is as it was for the request behind it.
func TestASlowBodyThatMovesIsForwarded(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	}))
	b.noteDeadlines()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for range 2 {
		fmt.Fprint(c, "POST /function/fib HTTP/1.1\r\nHost: e\r\nContent-Length: 10000\r\n\r\n")
		for range 10 {
			fmt.Fprint(c, strings.Repeat("x", 1000))
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "10000 <nil>" {
			t.Errorf("%s %s", resp.Status, body)
		}
		if !b.paced(t) {
			t.Error("a body that has come leaves a deadline behind: an idle connection is not a slow body")
		}
	}
}

// Once the answer has begun, both sides may be silent.
func TestATalkInBothDirectionsMayBeSilent(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		first := make([]byte, 1) // the edge reads the body by then
		if _, err := io.ReadFull(r.Body, first); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(first)
		w.(http.Flusher).Flush()
		_, _ = io.Copy(w, r.Body)
	}))
	b.noteDeadlines()
	from, to := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/function/fib", io.MultiReader(strings.NewReader("1"), from))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := testkit.Client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if !b.paced(t) {
		t.Error("an answer that has begun leaves the deadline of the body in force")
	}
	if _, err := to.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	_ = to.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "1late" {
		t.Errorf("%q %v", body, err)
	}
}

func TestMethodsAndBodies(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Saw", fmt.Sprint(r.Method, " ", r.ContentLength, " ", len(body), " ", r.TransferEncoding))
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hello")
	}))
	for _, c := range []struct{ method, body, want string }{
		{"GET", "", "GET 0 0 []"},
		{"HEAD", "", "HEAD 0 0 []"},
		{"OPTIONS", "", "OPTIONS 0 0 []"},
		{"POST", "", "POST 0 0 []"},
		{"DELETE", "body", "DELETE 4 4 []"},
		{"GET", "body", "GET 4 4 []"},
		{"PUT", "body", "PUT 4 4 []"},
		{"PATCH", "body", "PATCH 4 4 []"},
	} {
		resp, _ := b.send(t, c.method, fmt.Sprintf("%s /function/fib HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", c.method, len(c.body), c.body))
		if got := resp.Header.Get("X-Saw"); got != c.want {
			t.Errorf("%s: the function saw %q, want %q", c.method, got, c.want)
		}
		if resp.ContentLength != 5 {
			t.Errorf("%s: length %d", c.method, resp.ContentLength)
		}
	}
	resp, _ := b.send(t, "POST", "POST /function/fib HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	if got := resp.Header.Get("X-Saw"); got != "POST -1 3 [chunked]" {
		t.Errorf("chunked: %q", got)
	}
	b.idle(t)
}

func TestALargeBodyIsStreamedByteExact(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil { // it answers while it reads
			t.Error(err)
		}
		_, _ = io.Copy(w, r.Body)
	}))
	body := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(body)
	resp, err := testkit.Client.Post(b.url+"/function/fib", "application/octet-stream", io.MultiReader(bytes.NewReader(body))) // no length known
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	h := sha256.New()
	if n, err := io.Copy(h, resp.Body); err != nil || n != int64(len(body)) {
		t.Fatalf("%d bytes back: %v", n, err)
	}
	if sum := sha256.Sum256(body); !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Error("the bytes differ")
	}
}

func TestABodyOverTheLimitIs413(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	inner := b.handler
	b.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 100)
		inner.ServeHTTP(w, r)
	})
	resp, body := b.send(t, "POST", "POST /function/fib HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n"+strings.Repeat("x", 128)+"\r\n0\r\n\r\n")
	if resp.StatusCode != 413 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	b.idle(t)
}

func TestABodyThatCannotBeReadIsTheCallersFault(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"a bad size": "zz\r\nhello\r\n0\r\n\r\n", "a bad trailer": "5\r\nhello\r\n0\r\nno field\r\n\r\n", "no end of a chunk": "5\r\nhelloXX0\r\n\r\n",
	} {
		b := setup(t, serve(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
		for range 4 { // more than it takes to suspect a replica whose calls break
			resp, problem := b.send(t, "POST", "POST /function/fib HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
			if resp.StatusCode != 400 || !resp.Close {
				t.Errorf("%s: %d %s, closes: %v", name, resp.StatusCode, problem, resp.Close)
			}
		}
		b.idle(t)
		if n := b.set.Suspicions(); n != 0 {
			t.Errorf("%s: the replica is suspected for it", name)
		}
	}
}

func TestASlowUploadIsNotATimeout(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	b.timeout = time.Second
	r, w := io.Pipe()
	go func() {
		for range 6 {
			_, _ = io.WriteString(w, "x")
			time.Sleep(b.timeout / 4) // a slow caller
		}
		_ = w.Close()
	}()
	resp, err := testkit.Client.Post(b.url+"/function/fib", "text/plain", r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(body) != "xxxxxx" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

func TestAnEarlyAnswerEndsTheCallThoughTheBodyIsNotSent(t *testing.T) {
	t.Parallel()
	b := setup(t, raw(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
		_, _ = io.Copy(io.Discard, r)
	}))
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(c, "POST /function/fib HTTP/1.1\r\nHost: e\r\nContent-Length: 1000000\r\n\r\npart")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != 401 || string(body) != "no" {
		t.Fatalf("%d %q %v", resp.StatusCode, body, err)
	}
	b.idle(t)
}

// deadlines notes how long a caller's body may be silent: when and how often that is set, pace_test.go says.
type deadlines struct {
	http.ResponseWriter
	b *bundle
}

func (d deadlines) SetReadDeadline(t time.Time) error {
	d.b.mu.Lock()
	d.b.deadlines = append(d.b.deadlines, t)
	d.b.mu.Unlock()
	return http.NewResponseController(d.ResponseWriter).SetReadDeadline(t)
}

func (d deadlines) Unwrap() http.ResponseWriter { return d.ResponseWriter }

func (b *bundle) noteDeadlines() {
	inner := b.handler
	b.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner.ServeHTTP(deadlines{w, b}, r) })
}

// paced says whether the body of the last request had a deadline, and has none any more. It forgets them.
func (b *bundle) paced(t *testing.T) bool {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.deadlines
	b.deadlines = nil
	return len(all) > 1 && !all[0].IsZero() && all[len(all)-1].IsZero()
}
