package integration

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// What the internet sends to an edge: E1 to E4, E6, E14, E15 and E16 of docs/reliability.md, on one edge, which must be as before
// afterwards.

// TestChaosInput sends it.
func TestChaosInput(t *testing.T) {
	n := newNemesis(t)
	rec := newRecords(t)
	function := &misbehaving{}
	function.listen(t)
	parsers := newParsers(t)
	functions := []fn{
		{name: "echo", annotations: map[string]string{"ReplicasMin": "1"}},
		{name: "crowded", env: map[string]string{"START_DELAY_MS": "1000"}},
		{name: "misbehaving", debugURL: function.url, annotations: map[string]string{"Configuration": `{"DefaultSync":{"HttpTimeout":2}}`}},
	}
	for name, url := range parsers.urls {
		functions = append(functions, fn{name: name, debugURL: url})
	}
	c := cluster.Start(t, cluster.Options{Queues: 1, Functions: rec.yaml(functions...)})
	c.Eventually(20*time.Second, "a function that answers", func() error {
		status, body, err := c.Get(0, "/function/echo/")
		return wantStatus(status, 200, body, err)
	})
	pid := c.PID("edge-0")
	before, beforeKB := goroutines(t, c), resident(t, pid)
	t.Run("parts", func(t *testing.T) {
		t.Run("E3SlowHeaders", func(t *testing.T) {
			t.Parallel() // it waits most of its time
			slowHeaders(t, c.With(t), n)
		})
		t.Run("E4SlowBodiesAndReaders", func(t *testing.T) {
			if !n.full {
				t.Skip("a minute and more, and 1 GiB: the limits have tests of their own in edge/internal/forward")
			}
			t.Parallel()
			slowBodiesAndReaders(t, c.With(t), newNemesis(t))
		})
		t.Run("E2Smuggling", func(t *testing.T) {
			t.Parallel() // so does it
			smuggle(t, c.With(t), newNemesis(t), parsers)
		})
		t.Run("InTurn", func(t *testing.T) {
			t.Parallel()
			c := c.With(t)
			t.Run("E1Malformed", func(t *testing.T) { malformedRequests(t, c, n, rec) })
			t.Run("E6Floods", func(t *testing.T) { http2Floods(t, c, n) })
			t.Run("E9E11Misbehaving", func(t *testing.T) { misbehavingFunctions(t, c, n, function) })
			t.Run("E14Crowd", func(t *testing.T) { crowd(t, c, n, rec) })
			t.Run("E15UnknownNames", func(t *testing.T) { unknownNames(t, c, n) })
		})
	})
	c.Eventually(10*time.Second, "the edge is as before", func() error {
		if now := goroutines(t, c); now > before+20 {
			return fmt.Errorf("%.0f goroutines, %.0f before", now, before)
		}
		return nil
	})
	if now := c.PID("edge-0"); now != pid {
		t.Errorf("the edge has died: process %d, was %d", now, pid)
	}
	t.Logf("figure memory edge after harm %.0f MiB, before %.0f MiB", resident(t, pid), beforeKB)
	if raw, err := os.ReadFile(filepath.Join(c.State, "logs", "edge-0.log")); err != nil || bytes.Contains(raw, []byte("panic")) {
		t.Errorf("the edge's log: %v, or it speaks of a panic", err)
	}
}

func goroutines(t *testing.T, c *cluster.Cluster) float64 {
	t.Helper()
	n, err := edgeGauge(c, "go_goroutines")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// seriesOf is how many the edge exposes.
func seriesOf(t *testing.T, c *cluster.Cluster) (n int) {
	t.Helper()
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", c.Ports()["edge-0"]["admin"]))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if !strings.HasPrefix(lines.Text(), "#") {
			n++
		}
	}
	return n
}

// malformed are requests that are wrong in one way each, or odd. %s is an id in the path by which the function's record finds them.
var malformed = []string{
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nContent-Length: +5\r\n\r\nhello",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nContent-Length: -1\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nContent-Length: 1e3\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nContent-Length: 99999999999999999999\r\n\r\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: gzip\r\n\r\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nX-A:\x0b1\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost : e\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nX-A: a\x00b\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nX-A: a\rb\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nHost: f\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e/f\r\n\r\n",
	"GET /function/echo/%s%%zz HTTP/1.1\r\nHost: e\r\n\r\n",
	"G(T /function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nExpect: the unexpected\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
	"CONNECT /function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"CONNECT e:443 HTTP/1.1\r\nHost: e\r\nX-Id: %s\r\n\r\n",
	"TRACE /function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"BREW /function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"get /function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"PRI /function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /function/echo/%s HTTP/1.2\r\nHost: e\r\n\r\n",
	"GET /function/echo/%s HTTP/3.0\r\nHost: e\r\n\r\n",
	"GET /function/echo/%s\r\n\r\n",
	"GET  /function/echo/%s  HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET http://user:pass@other/function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET * HTTP/1.1\r\nHost: e\r\nX-Id: %s\r\n\r\n",
	"GET /function/echo/../echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET //function//echo//%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /function/%%65cho/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /function/echo%%2f%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /function/echo%%00/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /function/echo\\%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\r\nHost: e\r\nX-Fold: a\r\n b\r\n\r\n",
	"GET /function/echo/%s HTTP/1.1\nHost: e\n\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n5;" + "ext=aaaaaaaa" + "\r\nhello\r\n0\r\n\r\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
	"POST /function/echo/%s HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
	"POST /function/echo/%s HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"POST /async-function/echo/%s HTTP/1.1\r\nHost: e\r\nSlimFaas-Delay: soon\r\nContent-Length: 0\r\n\r\n",
	"POST /publish-event/%s HTTP/1.1\r\nHost: e\r\nContent-Length: 3\r\n\r\na",
	"GET /async-calls/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /async-calls/%s\xff HTTP/1.1\r\nHost: e\r\n\r\n",
	"GET /dead-letters/echo\xff/%s HTTP/1.1\r\nHost: e\r\n\r\n",
	"POST /wake-function/\xff%s HTTP/1.1\r\nHost: e\r\nContent-Length: 0\r\n\r\n",
	"POST /publish-event/\xff%s HTTP/1.1\r\nHost: e\r\nContent-Length: 0\r\n\r\n",
	"POST /async-function/echo/%s\xff?q=\xfe HTTP/1.1\r\nHost: e\r\nContent-Length: 0\r\nX-Latin-1: caf\xe9\r\nIdempotency-Key: \xff\r\n\r\n",
	"POST /async-function/echo/%s HTTP/1.1\r\nHost: e\r\nContent-Length: 0\r\nSlimFaas-Delay: \xff\r\nTraceparent: \xff\r\nTracestate: \xff\r\n\r\n",
	"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 %s",
	"\r\n\r\n\r\nGET /function/echo/%s HTTP/1.1\r\nHost: e\r\n\r\n",
}

// malformedRequests: those above, and as many mutations as it takes. Whatever is refused has not reached the function.
func malformedRequests(t *testing.T, c *cluster.Cluster, n nemesis, rec records) {
	type sent struct {
		id, request string
	}
	work := make(chan sent)
	var refused sync.Map // id → request and answer
	var count, silent atomic.Int64
	var senders sync.WaitGroup
	for range 16 {
		senders.Go(func() {
			for s := range work {
				answer := exchange(t, c, s.request)
				switch {
				case len(answer) == 0:
					silent.Add(1)
				case bytes.HasPrefix(answer, []byte("HTTP/1.1 500")):
					t.Errorf("%q was answered %q: a mistake of the caller's, and not ours", s.request, answer)
				case bytes.HasPrefix(answer, []byte("HTTP/1.")) && (answer[9] == '4' || bytes.Contains(answer, []byte("urn:slimfaas:"))) &&
					!bytes.HasPrefix(answer[9:], []byte("502")) && !bytes.Contains(answer, []byte("The body cannot be read")): // those began
					refused.Store(s.id, fmt.Sprintf("%q was answered %q", s.request, answer))
					count.Add(1)
				}
			}
		})
	}
	total := n.runs(400, 10_000)
	for i := range total {
		id := fmt.Sprintf("id%016x", n.Uint64()) // so long that no mutation makes one request's into another's
		request := fmt.Sprintf(malformed[i%len(malformed)], id)
		if i >= len(malformed) {
			request = n.mutate(request)
		}
		work <- sent{id, request}
	}
	close(work)
	senders.Wait()
	t.Logf("%d requests, %d refused, %d closed without a word", total, count.Load(), silent.Load())
	if count.Load() < int64(total/4) {
		t.Error("few were refused: the requests are not what they should be")
	}
	for _, l := range rec.started(t, "echo") {
		if at := strings.Index(l.URI, "id"); at >= 0 && len(l.URI) >= at+18 {
			if what, ok := refused.Load(l.URI[at : at+18]); ok {
				t.Errorf("the function was called with %s %s, though %s", l.Method, l.URI, what)
			}
		}
	}
}

// mutate a few bytes.
func (n nemesis) mutate(request string) string {
	b := []byte(request)
	odd := []string{"\x00", "\r", "\n", "\r\n", " ", ":", "%", "/", "\\", "..", "\xff", "\t", ";", "\r\n\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 3\r\n", "HTTP/1.1"}
	for range 1 + n.IntN(4) {
		at := n.IntN(len(b))
		switch n.IntN(4) {
		case 0:
			b[at] ^= 1 << n.IntN(8)
		case 1:
			b = append(b[:at:at], b[min(len(b), at+1+n.IntN(8)):]...)
		case 2:
			b = append(b[:at:at], append([]byte(odd[n.IntN(len(odd))]), b[at:]...)...)
		default:
			end := min(len(b), at+1+n.IntN(20))
			b = append(b[:end:end], append(bytes.Clone(b[at:end]), b[end:]...)...)
		}
		if len(b) == 0 {
			return "x"
		}
	}
	return string(b)
}

// exchange sends bytes on a connection of their own and returns what comes back before it is closed, at most 4 KiB.
func exchange(t *testing.T, c *cluster.Cluster, request string) []byte {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(c.URL(0), "http://"), 5*time.Second)
	if err != nil {
		t.Errorf("the edge takes no connection: %v", err)
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(conn, request)
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(io.LimitReader(conn, 4<<10))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%q is not answered and not closed", request)
	}
	return answer
}

// slowHeaders: connections that send a byte now and then are closed when their time is up; callers notice nothing.
func slowHeaders(t *testing.T, c *cluster.Cluster, n nemesis) {
	const limit = 5 * time.Second // serve.HeaderTimeout
	conns := connect(t, c, n.runs(200, 2000), "GET /function/echo/ HTTP/1.1\r\nHo")
	began := time.Now()
	var open atomic.Int64
	open.Store(int64(len(conns)))
	var late atomic.Int64
	var work sync.WaitGroup
	for _, conn := range conns {
		work.Go(func() {
			_ = conn.SetReadDeadline(began.Add(limit + 10*time.Second))
			_, err := io.Copy(io.Discard, conn)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() || time.Since(began) > limit+time.Second {
				late.Add(1)
			}
			open.Add(-1)
		})
	}
	sending, calls := time.NewTicker(time.Second), 0
	defer sending.Stop()
	for open.Load() > 0 {
		status, body, err := c.Get(0, "/function/echo/")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Errorf("meanwhile: %v", err)
			break
		}
		calls++
		select {
		case <-sending.C:
			for _, conn := range conns {
				_, _ = io.WriteString(conn, "s")
			}
		default:
			pace(5 * time.Millisecond)
		}
	}
	work.Wait()
	t.Logf("%d connections, %d closed later than %v; %d calls meanwhile", len(conns), late.Load(), limit+time.Second, calls)
	if late.Load() > 0 && n.full {
		t.Errorf("%d were closed late", late.Load())
	}
}

// slowBodiesAndReaders: who sends his body a byte a second, or takes none of his answer, is cut; who sends and takes 10 KB a second,
// as a bad line does, is not.
func slowBodiesAndReaders(t *testing.T, c *cluster.Cluster, n nemesis) {
	const idle, stalled = 30 * time.Second, time.Minute // forward.New
	var work sync.WaitGroup
	var late, kept atomic.Int64
	began := time.Now()
	judge := func(conn net.Conn, limit time.Duration, answer string) {
		_ = conn.SetReadDeadline(began.Add(limit + 20*time.Second))
		raw, err := io.ReadAll(io.LimitReader(conn, 1<<10))
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout():
			kept.Add(1)
		case time.Since(began) > limit+15*time.Second: // a pace is looked at now and then
			late.Add(1)
		case !strings.HasPrefix(string(raw), answer):
			t.Errorf("cut with %q, want %q", raw, answer)
		}
	}
	slow := connect(t, c, n.runs(50, 500), "POST /function/echo/ HTTP/1.1\r\nHost: e\r\nContent-Length: 100000\r\n\r\n")
	stop := make(chan struct{})
	work.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				for _, conn := range slow {
					_, _ = io.WriteString(conn, "s")
				}
			case <-stop:
				return
			}
		}
	})
	var cut sync.WaitGroup
	for _, conn := range slow {
		cut.Go(func() { judge(conn, idle, "HTTP/1.1 408") })
	}
	for _, conn := range connect(t, c, n.runs(10, 100), "GET /function/echo/?bytes=16777216 HTTP/1.1\r\nHost: e\r\n\r\n") {
		cut.Go(func() {
			pace(stalled + 10*time.Second) // takes nothing
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			got, err := io.Copy(io.Discard, conn)
			if err == nil && got > 16<<20 {
				kept.Add(1)
			}
		})
	}
	for range 4 {
		work.Go(func() { // 600 KB at 10 KB/s up, and as much down
			r, w := io.Pipe()
			go func() {
				defer w.Close()
				for range 60 {
					if _, err := w.Write(make([]byte, 10<<10)); err != nil {
						return
					}
					pace(time.Second)
				}
			}()
			res, err := cluster.Client.Post(c.URL(0)+"/function/echo/?bytes=614400", "application/octet-stream", r)
			if err != nil {
				t.Errorf("a slow but honest caller: %v", err)
				return
			}
			defer res.Body.Close()
			for total := 0; ; pace(time.Second) {
				n, err := io.ReadFull(res.Body, make([]byte, 10<<10))
				if total += n; err != nil {
					if total != 614400 || res.StatusCode != 200 {
						t.Errorf("a slow but honest caller: %d, %d bytes, %v", res.StatusCode, total, err)
					}
					return
				}
			}
		})
	}
	cut.Wait()
	close(stop)
	work.Wait()
	if late.Load() > 0 || kept.Load() > 0 {
		t.Errorf("%d were cut late, %d not at all", late.Load(), kept.Load())
	}
}

// frame of HTTP/2.
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	b = append(b, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// http2Floods: what is cheap to send and dear to take. Each connection is closed, or taken with patience; callers notice nothing.
func http2Floods(t *testing.T, c *cluster.Cluster, n nemesis) {
	const (
		headers, reset, settings, ping, continuation = 1, 3, 4, 6, 9
		endStream, endHeaders                        = 1, 4
	)
	// GET http / with :authority e.
	request := []byte{0x82, 0x86, 0x84, 0x41, 1, 'e'}
	many := n.runs(4000, 50_000)
	for name, flood := range map[string]func(i int) []byte{
		"rapid reset": func(i int) []byte {
			stream := uint32(2*i + 1)
			return append(frame(headers, endHeaders|endStream, stream, request), frame(reset, 0, stream, []byte{0, 0, 0, 8})...)
		},
		"continuation": func(i int) []byte {
			// A literal field that is not indexed, of 4 KiB.
			field := append([]byte{0, 1, 'x', 0x7f, 0x81, 0x1f}, bytes.Repeat([]byte{'a'}, 4096)...)
			if i == 0 {
				return frame(headers, endStream, 1, append(bytes.Clone(request), field...))
			}
			return frame(continuation, 0, 1, field)
		},
		"settings": func(int) []byte { return frame(settings, 0, 0, nil) },
		"ping":     func(int) []byte { return frame(ping, 0, 0, make([]byte, 8)) },
		"garbage": func(int) []byte {
			payload := make([]byte, n.IntN(64))
			for i := range payload {
				payload[i] = byte(n.Uint32())
			}
			return frame(byte(n.IntN(12)), byte(n.Uint32()), n.Uint32()>>uint(n.IntN(31)), payload)
		},
	} {
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(c.URL(0), "http://"), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = conn.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(settings, 0, 0, nil)...))
		var reader sync.WaitGroup
		reader.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		sent := 0
		for ; sent < many; sent++ {
			if _, err := conn.Write(flood(sent)); err != nil {
				break
			}
		}
		status, body, err := c.Get(0, "/function/echo/")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
		_ = conn.Close()
		reader.Wait()
		t.Logf("%s: %d of %d frames were taken", name, sent, many)
		if name == "continuation" && sent == many {
			t.Error("a head without an end is taken")
		}
	}
}

// crowd: many first calls at once wake one replica, and those for which there is no room are told when to come again.
func crowd(t *testing.T, c *cluster.Cluster, n nemesis, rec records) {
	many := n.runs(1500, 10_000)
	client := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxConnsPerHost: many}}
	defer client.CloseIdleConnections()
	var ok, full, other atomic.Int64
	var failure atomic.Value // a string: the last
	var calls sync.WaitGroup
	for range many {
		calls.Go(func() {
			res, err := client.Get(c.URL(0) + "/function/crowded/")
			if err != nil {
				other.Add(1)
				failure.Store(err.Error())
				return
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			switch {
			case res.StatusCode == 200:
				ok.Add(1)
			case res.StatusCode == 503 && res.Header.Get("Retry-After") != "":
				full.Add(1)
			default:
				other.Add(1)
				failure.Store(fmt.Sprintf("%d %v %s", res.StatusCode, res.Header, body))
			}
		})
	}
	calls.Wait()
	t.Logf("%d calls: %d answered, %d told to come again", many, ok.Load(), full.Load())
	if other.Load() > 0 || ok.Load() < 1000 {
		t.Errorf("%d answered, %d refused, %d failed, of those the last: %v", ok.Load(), full.Load(), other.Load(), failure.Load())
	}
	starts := 0
	for _, l := range rec.read(t, "crowded") {
		if l.Phase == "listen" {
			starts++
		}
	}
	if starts != 1 {
		t.Errorf("%d replicas were started, want one", starts)
	}
}

// unknownNames leave nothing behind.
func unknownNames(t *testing.T, c *cluster.Cluster, n nemesis) {
	pid := c.PID("edge-0")
	before := resident(t, pid)
	series := seriesOf(t, c)
	var work sync.WaitGroup
	many := n.runs(2000, 100_000)
	for w := range 8 {
		work.Go(func() {
			for i := w; i < many; i += 8 {
				path := []string{"/function/nobody%d/", "/async-function/nobody%d/", "/wake-function/nobody%d", "/status-function/nobody%d", "/nothing%d"}[i%5]
				status, body, err := c.Do(0, []string{"GET", "POST", "POST", "GET", "GET"}[i%5], fmt.Sprintf(path, i), nil, nil)
				if err := wantStatus(status, 404, body, err); err != nil {
					t.Errorf("%s: %v", path, err)
					return
				}
			}
		})
	}
	work.Wait()
	if now := seriesOf(t, c); now > series+10 {
		t.Errorf("%d metric series after %d unknown names, %d before", now, many, series)
	}
	if now := resident(t, pid); n.full && now > before+20 {
		t.Errorf("%.0f MiB after %d unknown names, %.0f before", now, many, before)
	}
}
