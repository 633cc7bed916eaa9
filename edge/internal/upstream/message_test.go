package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

func TestHeads(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		head Head
		want string
	}{
		"plain":             {Head{Method: "GET", Target: "/a?b", Host: "h:1"}, "GET /a?b HTTP/1.1\r\nHost: h:1\r\n"},
		"bytes stay":        {Head{Method: "GET", Target: "//a/../%2e%2F;x?&&=%%", Host: "h"}, "GET //a/../%2e%2F;x?&&=%% HTTP/1.1\r\nHost: h\r\n"},
		"no path":           {Head{Method: "GET", Target: "", Host: "h"}, "GET / HTTP/1.1\r\nHost: h\r\n"},
		"query only":        {Head{Method: "GET", Target: "?a", Host: "h"}, "GET /?a HTTP/1.1\r\nHost: h\r\n"},
		"ends of lines":     {Head{Method: "GET", Target: "/a b\r\nX: y\x7f", Host: "h"}, "GET /a%20b%0D%0AX:%20y%7F HTTP/1.1\r\nHost: h\r\n"},
		"length":            {Head{Method: "GET", Target: "/", Host: "h", Length: 5}, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n"},
		"no length":         {Head{Method: "GET", Target: "/", Host: "h", Length: -1}, "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"},
		"POST without body": {Head{Method: "POST", Target: "/", Host: "h"}, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n"},
	} {
		if got := string(appendHead(nil, c.head)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := string(AppendField(nil, "X-A", "one\r\nX-B: two")); got != "X-A: one  X-B: two\r\n" {
		t.Errorf("a field became %q", got)
	}
}

// FuzzHead: whatever the target, it stays one request of one line and the fields it was given.
func FuzzHead(f *testing.F) {
	f.Add("/a?b", "value")
	f.Add("/a HTTP/1.1\r\nX: y\r\n\r\nGET /b", "v\r\nX: y")
	f.Fuzz(func(t *testing.T, target, value string) {
		b := AppendField(appendHead(nil, Head{Method: "GET", Target: target, Host: "h"}), "X-Value", value)
		if lines := bytes.Count(b, []byte("\r\n")); lines != 3 || bytes.Count(b, []byte("\n")) != 3 {
			t.Fatalf("%q has %d lines", b, lines)
		}
		if line, _, _ := bytes.Cut(b, []byte("\r\n")); bytes.Count(line, []byte(" ")) != 2 {
			t.Fatalf("request line %q", line)
		}
	})
}

// sink is a connection that keeps what is written.
type sink struct {
	net.Conn
	bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }
func (s *sink) Read(p []byte) (int, error)  { return s.Buffer.Read(p) }

func TestBodies(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("0123456789abcdef", 10000)
	for name, c := range map[string]struct {
		body    io.Reader
		length  int64
		want    string // after chunks are taken apart
		readErr error
	}{
		"known":          {strings.NewReader("hello"), 5, "hello", nil},
		"chunked":        {strings.NewReader("hello"), -1, "hello", nil},
		"chunked, large": {strings.NewReader(large), -1, large, nil},
		"known, large":   {strings.NewReader(large), int64(len(large)), large, nil},
		"by bytes":       {iotest.OneByteReader(strings.NewReader("hello")), -1, "hello", nil},
		"end with data":  {iotest.DataErrReader(strings.NewReader("hello")), -1, "hello", nil},
		"empty":          {strings.NewReader(""), -1, "", nil},
		"short":          {strings.NewReader("hell"), 5, "hell", io.ErrUnexpectedEOF},
		"broken":         {io.MultiReader(strings.NewReader("he"), iotest.ErrReader(io.ErrClosedPipe)), 5, "he", io.ErrClosedPipe},
	} {
		s := &sink{}
		readErr, writeErr := (&Conn{Conn: s}).SendBody(c.body, c.length, make([]byte, 32<<10))
		if !errors.Is(readErr, c.readErr) || writeErr != nil {
			t.Errorf("%s: %v, %v", name, readErr, writeErr)
		}
		got := s.String()
		if c.length < 0 {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + got)))
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(r.Body)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = string(content)
		}
		if got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(c.want))
		}
	}
	if readErr, _ := (&Conn{Conn: &sink{}}).SendBody(strings.NewReader("hello"), 4, make([]byte, 100)); readErr == nil {
		t.Error("a body longer than its length is no error")
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, wire string
		status       int // 0: refused
		body         string
		informed     int
		reusable     bool
	}{
		"length":           {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", 0, true},
		"chunked":          {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 200, "hi", 0, true},
		"until the end":    {"GET", "HTTP/1.1 200 OK\r\n\r\nhi", 200, "hi", 0, false},
		"told to close":    {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", 0, false},
		"HTTP/1.0":         {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", 0, false},
		"head":             {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", 200, "", 0, true},
		"no content":       {"GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", 0, true},
		"more than one":    {"GET", "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 204, "", 0, false},
		"hints":            {"GET", "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", 2, true},
		"unasked upgrade":  {"GET", "HTTP/1.1 101 Switching Protocols\r\n\r\n", 0, "", 0, false},
		"no status":        {"GET", "HTTP/1.1 099 Odd\r\n\r\n", 0, "", 0, false},
		"no HTTP":          {"GET", "SSH-2.0-OpenSSH_9.2\r\n", 0, "", 0, false},
		"two lengths":      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", 0, "", 0, false},
		"large head":       {"GET", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2000) + "\r\n\r\n", 0, "", 0, false},
		"hints for ever":   {"GET", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", 100), 0, "", -1, false},
		"large body":       {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + strings.Repeat("x", 5000), 200, strings.Repeat("x", 5000), 0, true},
		"head is all read": {"GET", "HTTP/1.1 200 OK\r\nContent-Le", 0, "", 0, false},
	} {
		s := &sink{}
		s.WriteString(c.wire)
		conn := &Conn{Conn: s, maxHeader: 1000}
		conn.r = bufio.NewReaderSize((*headLimit)(conn), 16)
		informed := 0
		resp, err := conn.Answer(c.method, func(*http.Response) { informed++ })
		if c.status == 0 {
			if err == nil {
				t.Errorf("%s: answered with %d", name, resp.StatusCode)
			}
			continue
		}
		if err != nil || resp.StatusCode != c.status || informed != c.informed {
			t.Errorf("%s: %v, %v, informed %d times", name, resp, err, informed)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != c.body {
			t.Errorf("%s: body %q, %v", name, body, err)
		}
		if got := conn.Reusable(resp); got != c.reusable {
			t.Errorf("%s: reusable is %v", name, got)
		}
	}
}

func TestConnectionsAreUsedAgainUntilTheyAreOldOrClosed(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.RemoteAddr)
	}))
	defer server.Close()
	address := server.Listener.Addr().String()
	pool := NewPool(Options{MaxIdle: 1, IdleTimeout: time.Minute, MaxHeader: 10000})
	defer pool.Close()
	get := func() *Conn {
		c, err := pool.Get(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ask := func(c *Conn) (peer string) {
		if _, err := c.Send(Head{Method: "GET", Target: "/", Host: address}, func(b []byte) []byte { return b }); err != nil {
			t.Fatal(err)
		}
		resp, err := c.Answer("GET", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || !c.Reusable(resp) {
			t.Fatal(err)
		}
		return string(body)
	}
	first, second := get(), get()
	if first.Used() || ask(first) == ask(second) {
		t.Fatal("two at once share a connection")
	}
	used := first.LocalAddr().String()
	first.Put()
	second.Put() // one too many
	if pool.Idle() != 1 {
		t.Fatalf("%d are idle", pool.Idle())
	}
	if first = get(); !first.Used() || first.LocalAddr().String() != used || ask(first) != used {
		t.Error("an idle connection is not used again")
	}
	first.Put()
	server.CloseClientConnections()
	testkit.Eventually(t, 5*time.Second, "the connection's end has come", func() bool { return !first.quiet() })
	if fresh := get(); fresh.Used() {
		t.Error("a connection that its function had closed is given")
	} else {
		ask(fresh)
		fresh.Put()
	}
	pool.options.IdleTimeout = 0
	if fresh := get(); fresh.Used() {
		t.Error("a connection that was idle for too long is given")
	} else {
		_ = fresh.Close()
	}
}
