package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// parsers are functions that read HTTP in three ways: Go's, Python's, and one that takes nothing that could be read in two ways.
type parsers struct {
	names []string
	urls  map[string]string

	mu   sync.Mutex
	seen map[string]int // "parser target" → how often; guarded by mu
	bad  []string       // what the strict one refused; guarded by mu
}

func (p *parsers) note(parser, target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[parser+" "+target]++
}

func newParsers(t *testing.T) *parsers {
	t.Helper()
	p := &parsers{urls: map[string]string{}, seen: map[string]int{}}
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path != "/health" {
			p.note("golang", r.RequestURI)
		}
	}))
	t.Cleanup(plain.Close)
	p.add("golang", plain.URL)
	strict, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := strict.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { p.strictly(conn) })
		}
	})
	t.Cleanup(func() {
		_ = strict.Close()
		conns.Wait()
	})
	p.add("strict", "http://"+strict.Addr().String())
	if python, err := exec.LookPath("python3"); err == nil {
		p.add("python", p.python(t, python))
	} else {
		t.Log("there is no python3: its parser is left out")
	}
	return p
}

func (p *parsers) add(name, url string) {
	p.names = append(p.names, name)
	p.urls[name] = url
}

// strictly reads requests and closes at the first that is not as RFC 9112 writes it.
func (p *parsers) strictly(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
		target, err := strictRequest(r)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !os.IsTimeout(err) { // the edge cuts what its caller spoils
				p.mu.Lock()
				p.bad = append(p.bad, err.Error())
				p.mu.Unlock()
			}
			return
		}
		if target != "/health" {
			p.note("strict", target)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

// strictRequest reads one request to its end. io.EOF where none begins.
func strictRequest(r *bufio.Reader) (target string, err error) {
	if _, err := r.Peek(1); err != nil {
		return "", err //nolint:wrapcheck // told apart by the caller
	}
	line := func() (string, error) {
		s, err := r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("in a line: %w", io.ErrUnexpectedEOF)
		}
		body, ok := strings.CutSuffix(s, "\r\n")
		if !ok || strings.ContainsAny(body, "\r\n\x00") {
			return "", fmt.Errorf("the line %q", s)
		}
		return body, nil
	}
	first, err := line()
	if err != nil {
		return "", err
	}
	parts := strings.Split(first, " ")
	if len(parts) != 3 || parts[2] != "HTTP/1.1" || parts[0] != strings.ToUpper(parts[0]) || !strings.HasPrefix(parts[1], "/") {
		return "", fmt.Errorf("the request line %q", first)
	}
	length, chunked := -1, false
	for {
		field, err := line()
		if err != nil {
			return "", err
		}
		if field == "" {
			break
		}
		name, value, ok := strings.Cut(field, ": ")
		if !ok || name == "" || strings.ContainsAny(name, " \t\"(),/:;<=>?@[\\]{}") || value != strings.TrimSpace(value) {
			return "", fmt.Errorf("the field %q", field)
		}
		switch strings.ToLower(name) {
		case "content-length":
			n, err := strconv.Atoi(value)
			if err != nil || length >= 0 || chunked || strconv.Itoa(n) != value {
				return "", fmt.Errorf("the field %q", field)
			}
			length = n
		case "transfer-encoding":
			if value != "chunked" || chunked || length >= 0 {
				return "", fmt.Errorf("the field %q", field)
			}
			chunked = true
		}
	}
	if !chunked {
		if _, err := io.CopyN(io.Discard, r, int64(max(length, 0))); err != nil {
			return "", fmt.Errorf("in a body: %w", io.ErrUnexpectedEOF)
		}
		return parts[1], nil
	}
	for {
		size, err := line()
		if err != nil {
			return "", err
		}
		n, err := strconv.ParseUint(size, 16, 31)
		if err != nil || strconv.FormatUint(n, 16) != size {
			return "", fmt.Errorf("the chunk size %q", size)
		}
		if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
			return "", fmt.Errorf("in a chunk: %w", io.ErrUnexpectedEOF)
		}
		if end, err := line(); err != nil || end != "" {
			return "", fmt.Errorf("behind a chunk: %q, %w", end, err)
		}
		if n == 0 {
			return parts[1], nil
		}
	}
}

const pythonFunction = `
import http.server, sys, threading
said = threading.Lock()
def say(text): # in one piece, whatever other threads say
    with said:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
class F(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                self.rfile.read(n)
                self.rfile.readline()
                if n == 0:
                    break
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/health":
            say(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = answer
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), F)
say("port %d" % server.server_port)
server.serve_forever()
`

// python starts the function in Python and returns where it listens.
func (p *parsers) python(t *testing.T, interpreter string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), interpreter, "-c", pythonFunction)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	url := "http://127.0.0.1:" + strings.TrimPrefix(lines.Text(), "port ")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines.Scan() {
			p.note("python", lines.Text())
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return url
}

// smuggled is a request inside another, or behind the end that some find in it. Names of functions are of one length, and so are ids:
// lengths are the same for all.
const smuggled = "GET /function/{F}/smuggled-{I} HTTP/1.1\r\nHost: e\r\n\r\n"

// smuggling are requests whose end can be found in two places. whole: they are right in their way, and must arrive, once.
func smuggling() (all []struct {
	request string
	whole   bool
}) {
	add := func(whole bool, request string, args ...any) {
		all = append(all, struct {
			request string
			whole   bool
		}{fmt.Sprintf(request, args...), whole})
	}
	const head = "POST /function/{F}/{I} HTTP/1.1\r\nHost: e\r\n"
	length := len(fill(smuggled, "strict", strings.Repeat("0", 18)))
	both := "0\r\n\r\n" + smuggled
	add(true, head+"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s", length+5, both)
	add(true, head+"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n%s", length+5, both)
	add(true, head+"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", length, smuggled)
	add(true, head+"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", length, smuggled)
	for _, odd := range []string{
		"Transfer-Encoding : chunked", " Transfer-Encoding: chunked", "Transfer-Encoding: xchunked", "Transfer-Encoding:\tchunked",
		"Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity, chunked", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding\r\n : chunked", "Transfer-Encoding:\r\n chunked",
		"X: y\nTransfer-Encoding: chunked", "X: y\rTransfer-Encoding: chunked", "X: y\x00\r\nTransfer-Encoding: chunked",
		"Transfer-Encoding: \"chunked\"", "TRANSFER-ENCODING: CHUNKED", "Transfer-Encoding: chunked;q=1", "Transfer_Encoding: chunked",
		"Transfer-Encoding: chunked\x00", "Transfer-Encoding: chunked\x0b", "Transfer-Encoding: ,chunked", "Transfer-Encoding:",
		"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked", "Connection: close, Content-Length", "Content-Encoding: chunked",
		"Content-Length: 0", "Content-Length: 5", "content-length: +5", "Content-Length: 0x5", "Content-Length : 5", "Content-Length: 5, 5", "Content-Length: ",
		"Content-Length:\x0b5", "Content_Length: 5", "Expect: 100-continue", "Upgrade: websocket\r\nConnection: Upgrade",
	} {
		add(false, head+"%s\r\nContent-Length: %d\r\n\r\n%s", odd, length+5, both)
		add(false, head+"Content-Length: %d\r\n%s\r\n\r\n%s", length+5, odd, both)
	}
	for _, size := range []string{
		"1;a=\nX", "0x1", " 1", "1 ", "+1", "-1", "1\r", "1;a=\"\r\n\"", "01", "00000000000000000001", "1\n", "1\x00", "ffffffffffffffff", "10000000000000000", "1_0", "",
	} {
		add(false, head+"Transfer-Encoding: chunked\r\n\r\n%s\r\nZ\r\n0\r\n\r\n%s", size, smuggled)
	}
	for _, trailer := range []string{"Content-Length: 99", "Transfer-Encoding: chunked", "Host: other", "X: y\nZ: z", "no field", " folded"} {
		add(false, head+"Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\nZ\r\n0\r\n%s\r\n\r\n%s", trailer, smuggled)
	}
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH"} {
		add(true, "%s /function/{F}/{I} HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", method, length, smuggled)
		add(true, "%s /function/{F}/{I} HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", method, length, smuggled)
	}
	add(false, "POST /function/{F}/{I} HTTP/1.0\r\nHost: e\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n%s", length+5, both)
	add(true, "POST /function/{F}/{I}%%0d%%0aContent-Length:%%200%%0d%%0a%%0d%%0aGET%%20/a HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", length, smuggled)
	// Over HTTP/2, whose frames say where a body ends.
	const post, scheme = 0x83, 0x86
	for _, field := range [][2]string{
		{"content-length", "4"}, {"transfer-encoding", "chunked"}, {"x", "y\r\ntransfer-encoding: chunked"}, {"x\r\ntransfer-encoding", "chunked"},
		{"connection", "transfer-encoding"}, {"host", "e\r\ncontent-length: 0"}, {"x: y\r\ncontent-length", "0"}, {"te", "chunked"},
	} {
		header := []byte{post, scheme}
		for _, f := range [][2]string{{":path", "/function/{F}/{I}"}, {":authority", "e"}, field} {
			header = append(append(append(append(header, 0, byte(len(f[0]))), f[0]...), byte(len(f[1]))), f[1]...)
		}
		all = append(all, struct {
			request string
			whole   bool
		}{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(frame(4, 0, 0, nil)) + "HEADERS" + string(header) + "DATA" + both, false})
	}
	return all
}

// fill puts names in; the frames of HTTP/2 are made then, when lengths are known.
func fill(request, function, id string) string {
	replace := strings.NewReplacer("{F}", function, "{I}", id).Replace
	head, rest, ok := strings.Cut(request, "HEADERS")
	if !ok {
		return replace(request)
	}
	header, body, _ := strings.Cut(rest, "DATA")
	const placed = "/function/{F}/{I}"
	path := replace(placed)
	header = strings.Replace(header, string([]byte{byte(len(placed))})+placed, string([]byte{byte(len(path))})+path, 1)
	return head + string(frame(1, 4, 1, []byte(header))) + string(frame(0, 1, 1, []byte(replace(body))))
}

// smuggle sends each to each function, on a connection of its own with a proper request behind it. No function may see a request that
// nobody sent it, or one twice.
func smuggle(t *testing.T, c *cluster.Cluster, n nemesis, p *parsers) {
	type sent struct{ parser, id, request string }
	work := make(chan sent)
	var senders sync.WaitGroup
	var mu sync.Mutex
	wanted := map[string]string{} // "parser target prefix" → the request
	for range 32 {
		senders.Go(func() {
			for s := range work {
				conn, err := net.DialTimeout("tcp", strings.TrimPrefix(c.URL(0), "http://"), 5*time.Second)
				if err != nil {
					t.Errorf("the edge takes no connection: %v", err)
					continue
				}
				_ = conn.SetDeadline(time.Now().Add(3 * time.Second)) // some wait for more
				_, _ = io.WriteString(conn, s.request)
				if !strings.HasPrefix(s.request, "PRI ") {
					_, _ = fmt.Fprintf(conn, "GET /function/%s/after-%s HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n", s.parser, s.id)
				}
				answer, _ := io.ReadAll(io.LimitReader(conn, 16<<10))
				_ = conn.Close()
				if answers := bytes.Count(answer, []byte("HTTP/1.1 ")) - bytes.Count(answer, []byte("HTTP/1.1 100 ")); answers > 2 {
					t.Errorf("%q was answered %d times: %q", s.request, answers, answer)
				}
			}
		})
	}
	total := 0
	for range n.runs(1, 20) {
		for _, parser := range p.names {
			for _, s := range smuggling() {
				id := fmt.Sprintf("i%016xz", n.Uint64())
				request := fill(s.request, parser, id)
				if s.whole {
					mu.Lock()
					wanted[parser+" /"+id] = request
					mu.Unlock()
				}
				total++
				work <- sent{parser, id, request}
			}
		}
	}
	close(work)
	senders.Wait()
	check := func() (wrong []string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		arrived := map[string]bool{}
		for what, times := range p.seen {
			if strings.Contains(what, "smuggled") || times > 1 {
				wrong = append(wrong, fmt.Sprintf("%q was seen %d times", what, times))
			}
			if parser, target, ok := strings.Cut(what, " "); ok && len(target) >= 19 {
				arrived[parser+" "+target[:19]] = true
			}
		}
		for what, request := range wanted {
			if !arrived[what] {
				wrong = append(wrong, fmt.Sprintf("%s has not arrived: %q", what, request))
			}
		}
		return wrong
	}
	c.Eventually(5*time.Second, "functions have seen what was sent to them, and nothing else", func() error {
		if wrong := check(); len(wrong) > 0 {
			return fmt.Errorf("%d wrong, the first: %s", len(wrong), wrong[0])
		}
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, bad := range p.bad {
		t.Errorf("a function was sent %s", bad)
	}
	t.Logf("%d requests to %v, %d seen", total, p.names, len(p.seen))
}
