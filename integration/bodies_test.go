package integration

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// body is random bytes that can be made again.
type body struct {
	key  string
	size int64
	seed uint64
}

func (b body) reader() io.Reader {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], b.seed)
	return io.LimitReader(rand.NewChaCha8(seed), b.size)
}

// want is what the recorder writes when it got every byte.
func (b body) want() string {
	sum := sha256.New()
	_, _ = io.Copy(sum, b.reader())
	return fmt.Sprintf("%x %d", sum.Sum(nil), b.size)
}

// bodies sends large bodies through a stack.
type bodies struct {
	t   *testing.T
	c   *cluster.Cluster
	rec records
}

// post a body to an edge; a length of -1 sends it chunked.
func (x bodies) post(ctx context.Context, edge int, b body, from io.Reader, length int64, query string, header ...string) (status int, id string, answer string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, x.c.URL(edge)+"/async-function/large/in?hash=1&key="+b.key+query, from)
	if err != nil {
		return 0, "", "", err
	}
	req.ContentLength = length
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := cluster.Client.Do(req)
	if err != nil {
		return 0, "", "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, res.Header.Get("SlimFaas-Element-Id"), string(text), err
}

func (x bodies) accepted(edge int, b body, length int64, query string, header ...string) (id string) {
	x.t.Helper()
	status, id, answer, err := x.post(x.t.Context(), edge, b, b.reader(), length, query, header...)
	if err != nil || status != http.StatusAccepted {
		x.t.Errorf("%s: %d %s %v", b.key, status, answer, err)
	}
	return id
}

// delivered waits until the function has got a body, and wants every byte of it, once.
func (x bodies) delivered(b body) (l line) {
	x.t.Helper()
	x.c.Eventually(60*time.Second, b.key+" is delivered", func() error {
		for _, l = range x.rec.started(x.t, "large") {
			if keyOf(l) == b.key && !strings.HasPrefix(l.Body, "broken") {
				return nil
			}
		}
		return errNotYet
	})
	if want := b.want(); l.Body != want {
		x.t.Errorf("%s: the function got %s, want %s", b.key, l.Body, want)
	}
	if got := l.Header.Get("Content-Length"); got != strconv.FormatInt(b.size, 10) {
		x.t.Errorf("%s: Content-Length %q, want %d", b.key, got, b.size)
	}
	return l
}

// begun waits until the function reads a body.
func (x bodies) begun(key string) {
	x.t.Helper()
	x.c.Eventually(20*time.Second, key+" is on its way to the function", func() error {
		if slices.ContainsFunc(x.rec.read(x.t, "large"), func(l line) bool { return l.Phase == "body" && keyOf(l) == key }) {
			return nil
		}
		return errNotYet
	})
}

func (x bodies) succeeded(id string) (s lifeStatus) {
	x.t.Helper()
	return life{x.t, x.c, x.rec, "large"}.ended(id, "Succeeded")
}

// figure of a node's metrics.
func figure(c *cluster.Cluster, node, name string) (float64, error) {
	res, err := cluster.Client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", c.Ports()[node]["admin"]))
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s does not show %s", node, name)
}

// uploading waits until every node says that uploads have so many bytes at least, or none.
func (x bodies) uploading(limit time.Duration, least float64) {
	x.t.Helper()
	x.c.Eventually(limit, fmt.Sprintf("uploads of %.0f bytes", least), func() error {
		for _, node := range x.c.Queues() {
			for _, name := range []string{"slimfaas_queue_upload_bytes", "slimfaas_queue_uploads"} {
				got, err := figure(x.c, node, name)
				switch {
				case err != nil:
					return err
				case least == 0 && got != 0, name == "slimfaas_queue_upload_bytes" && got < least:
					return fmt.Errorf("%s: %s %.0f", node, name, got)
				}
			}
		}
		return nil
	})
}

// half sends the first half of a body, calls between, and sends the rest.
func (x bodies) half(ctx context.Context, edge int, b body, between func()) (status int, id string, err error) {
	x.t.Helper()
	from, to := io.Pipe()
	var sending sync.WaitGroup
	sending.Go(func() {
		defer to.Close() // also when between gives the test up
		source := b.reader()
		if _, err := io.CopyN(to, source, b.size/2); err != nil {
			return
		}
		between()
		_, err := io.Copy(to, source)
		_ = to.CloseWithError(err)
	})
	defer sending.Wait()
	defer from.Close()
	status, id, _, err = x.post(ctx, edge, b, from, -1, "")
	return status, id, err
}

// raced says whether the programs are built with the race detector, which makes them slow and large.
func raced() bool { return strings.Contains(cluster.Bin(), "race") }

// mib is so many MiB; a twentieth of it, and 4 at least, with the race detector, which makes every byte cost a hundredfold.
func mib(n int64) int64 {
	if raced() {
		n = max(n/20, 4)
	}
	return n << 20
}

// lessForEdge1 lets edge-1 take bodies up to lessBody, so that one over a limit need not be over the default one.
const (
	lessBody     = 4 << 20
	lessForEdge1 = `if [ "$EDGE_NAME" = edge-1 ]; then export EDGE_MAX_ASYNC_BODY=4194304; fi`
)

// TestLargeBodies: what is larger than one command of the Raft log goes through it in parts, survives what small calls survive, and
// is in no program's memory.
func TestLargeBodies(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Edges: 2, Prelude: map[string]string{"edge": lessForEdge1}, Functions: rec.yaml(fn{name: "large", annotations: map[string]string{
		"ReplicasMin": "1", "NumberParallelRequest": "8", "NumberParallelRequestPerPod": "8",
		"Configuration": `{"DefaultAsync":{"HttpTimeout":60,"TimeoutRetries":[1,1,1]}}`,
	}})})
	x := bodies{t, c, rec}
	t.Run("at once", func(t *testing.T) {
		for name, part := range map[string]func(bodies){"over the limit": bodyOverTheLimit, "under a key": bodyUnderAKey, "many": manyBodies} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				part(bodies{t, c.With(t), rec})
			})
		}
	})
	x.uploading(5*time.Second, 0) // what was refused was dropped at once
	t.Run("the edge dies", func(t *testing.T) { bodyOfADeadEdge(bodies{t, c.With(t), rec}) })
	t.Run("the leader dies", func(t *testing.T) { bodyUnderADyingLeader(bodies{t, c.With(t), rec}) })
	x.uploading(10*time.Second, 0)
	for _, node := range c.Agreed(20 * time.Second) {
		if n := node.Functions["large"]; n.Unfinished() != 0 || n.Dead != 0 || node.Hash == "" {
			t.Errorf("%s: %+v, hash %q", node.Node, n, node.Hash)
		}
	}
	bodiesLeaveTheDisk(x)
}

// manyBodies goes with and without Content-Length, at the same time, and looks how much memory that takes and how long small calls
// wait meanwhile.
func manyBodies(x bodies) {
	size := mib(60)
	stop := make(chan struct{})
	var watching sync.WaitGroup
	peaks := map[string]int{}
	watching.Go(func() { x.watchMemory(peaks, stop) })
	var waits []time.Duration
	watching.Go(func() { waits = x.smallCalls(stop) })

	began := time.Now()
	var sending sync.WaitGroup
	all := make([]body, 4)
	if raced() {
		size, all = 2<<20, all[:2]
	}
	ids := make([]string, len(all))
	for i := range all {
		all[i] = body{fmt.Sprintf("many-%d", i), size + int64(i), uint64(i)}
		length := all[i].size
		if i%2 == 1 {
			length = -1
		}
		sending.Go(func() { ids[i] = x.accepted(0, all[i], length, "") })
	}
	sending.Wait()
	took := time.Since(began)
	for i, b := range all {
		x.delivered(b)
		x.succeeded(ids[i])
	}
	x.t.Logf("figure bodies: %d of %d MiB at once, all accepted after %v, all delivered after %v", len(all), size>>20, took, time.Since(began))
	close(stop)
	watching.Wait()
	if slices.Sort(waits); len(waits) > 0 {
		x.t.Logf("figure bodies: %d small calls meanwhile, median %v, longest %v", len(waits), waits[len(waits)/2], waits[len(waits)-1])
	}
	for name, peak := range peaks {
		bound := 200 // of a queue node: two layers, the log's last entries, and as much garbage as alive
		if strings.HasPrefix(name, "edge") {
			bound = 80
		}
		x.t.Logf("figure bodies: RssAnon of %s at most %d MiB (bound %d)", name, peak, bound)
		if peak > bound && !raced() {
			x.t.Errorf("%s took %d MiB", name, peak)
		}
	}
}

// watchMemory notes the most that each program takes, in MiB.
func (x bodies) watchMemory(peaks map[string]int, stop <-chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, name := range append(x.c.Queues(), "edge-0", "edge-1") {
			raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", x.c.PID(name)))
			_, rest, _ := strings.Cut(string(raw), "RssAnon:")
			if fields := strings.Fields(rest); len(fields) > 0 {
				kib, _ := strconv.Atoi(fields[0])
				peaks[name] = max(peaks[name], kib>>10)
			}
		}
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}

// smallCalls sends one after the other through the edge that takes large ones, and says how long each took to its 202.
func (x bodies) smallCalls(stop <-chan struct{}) (waits []time.Duration) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return waits
		default:
		}
		began := time.Now()
		b := body{fmt.Sprintf("small-%d", i), 100, uint64(i)}
		if status, _, answer, err := x.post(x.t.Context(), 0, b, b.reader(), b.size, ""); err != nil || status != http.StatusAccepted {
			x.t.Errorf("a small call: %d %s %v", status, answer, err)
			return waits
		}
		waits = append(waits, time.Since(began))
		pace(20 * time.Millisecond)
	}
}

// bodyOverTheLimit: 413, without Content-Length when one byte over the limit is read, with it before anything is.
func bodyOverTheLimit(x bodies) {
	const limit = lessBody
	ask := func(edge int, framing string) net.Conn {
		conn, err := net.Dial("tcp", strings.TrimPrefix(x.c.URL(edge), "http://"))
		if err != nil {
			x.t.Fatal(err)
		}
		x.t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(90 * time.Second))
		fmt.Fprintf(conn, "POST /async-function/large/in?key=over HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", framing)
		return conn
	}
	refused := func(what string, conn net.Conn) {
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || res.StatusCode != 413 || !res.Close {
			x.t.Fatalf("%s: %+v %v", what, res, err)
		}
		_ = res.Body.Close()
	}
	refused("declared, and not a byte of it sent", ask(1, fmt.Sprintf("Content-Length: %d", limit+1)))
	refused("declared to an edge with the default limit", ask(0, fmt.Sprintf("Content-Length: %d", 64<<20+1)))
	conn := ask(1, "Transfer-Encoding: chunked")
	chunk := append(append([]byte("10000\r\n"), make([]byte, 64<<10)...), "\r\n"...)
	for sent := 0; sent < limit; sent += 64 << 10 {
		if _, err := conn.Write(chunk); err != nil {
			x.t.Fatalf("at %d of %d: %v", sent, limit, err)
		}
	}
	// Not one byte more than this is ever sent, so an answer shows that no more was waited for.
	if _, err := conn.Write([]byte("1\r\nx")); err != nil {
		x.t.Fatal(err)
	}
	refused("one byte over the limit", conn)
}

func bodyUnderAKey(x bodies) {
	first := body{"keyed", 2 << 20, 5}
	id := x.accepted(0, first, first.size, "", "Idempotency-Key", "k")
	x.delivered(first)
	if again := x.accepted(1, first, -1, "", "Idempotency-Key", "k"); again != id {
		x.t.Errorf("a repeat got %s, want %s", again, id)
	}
	other := body{"keyed", 2 << 20, 6}
	if status, _, answer, err := x.post(x.t.Context(), 0, other, other.reader(), other.size, "", "Idempotency-Key", "k"); err != nil || status != 422 {
		x.t.Errorf("another body under the key: %d %s %v", status, answer, err)
	}
}

// bodyOfADeadEdge vanishes with its session, everywhere; a caller that goes takes its body with it at once.
func bodyOfADeadEdge(x bodies) {
	b := body{"cut", mib(40), 7}
	ctx, cancel := context.WithCancel(x.t.Context())
	if _, _, err := x.half(ctx, 0, b, func() {
		x.uploading(20*time.Second, float64(b.size/4))
		cancel()
	}); !errors.Is(err, context.Canceled) {
		x.t.Errorf("a caller that went: %v", err)
	}
	x.uploading(3*time.Second, 0)
	b.key = "killed"
	if _, _, err := x.half(x.t.Context(), 0, b, func() {
		x.uploading(20*time.Second, float64(b.size/4))
		x.c.Kill("edge-0")
	}); err == nil {
		x.t.Error("a dead edge answered")
	}
	x.uploading(15*time.Second, 0)
	x.c.Eventually(10*time.Second, "the edge is back", func() error {
		status, body, err := x.c.Get(0, "/ready")
		return wantStatus(status, 200, body, err)
	})
}

// bodyUnderADyingLeader: in the middle of an upload, between accept and delivery, and in the middle of a delivery.
func bodyUnderADyingLeader(x bodies) {
	kill := func() {
		x.c.Kill(x.c.QueueLeader(1))
	}
	waiting := body{"waiting", mib(20), 9}
	slowly := fmt.Sprintf("&every=%d", 3000/(waiting.size>>20))
	waitingID := x.accepted(0, waiting, waiting.size, slowly, "SlimFaas-Delay", "3s")
	b := body{"upload", mib(12), 8}
	status, id, err := x.half(x.t.Context(), 0, b, kill)
	if err != nil || status != http.StatusAccepted {
		x.t.Fatalf("the leader died in the middle of the upload: %d %v", status, err)
	}
	x.delivered(b)
	x.succeeded(id)
	x.settled()

	x.begun(waiting.key)
	kill()
	x.delivered(waiting)
	s := x.succeeded(waitingID)
	x.t.Logf("the leader died in the middle of a delivery: %d tries", s.Tries)
	if s.Tries > 2 {
		x.t.Errorf("%d tries", s.Tries)
	}
	x.settled()
}

// settled: all nodes run, and follow one leader.
func (x bodies) settled() {
	x.t.Helper()
	x.c.Eventually(20*time.Second, "all nodes follow one leader", func() error {
		_, err := x.c.Settled()
		return err
	})
}

// bodiesLeaveTheDisk: the file of each node has the space back, for others to use.
func bodiesLeaveTheDisk(x bodies) {
	fill := body{"fill", 9 << 20, 10} // what was dropped last is written with the next 8 MiB
	x.succeeded(x.accepted(0, fill, fill.size, ""))
	for _, node := range x.c.Queues() {
		file, err1 := figure(x.c, node, "slimfaas_queue_state_file_bytes")
		free, err2 := figure(x.c, node, "slimfaas_queue_state_file_free_bytes")
		if err := errors.Join(err1, err2); err != nil {
			x.t.Error(err)
		}
		x.t.Logf("figure bodies: state of %s %.0f MiB, %.0f of it free", node, file/(1<<20), free/(1<<20))
		if file-free > 32<<20 && !raced() { // too little went through
			x.t.Errorf("%s still uses %.0f MiB", node, (file-free)/(1<<20))
		}
	}
}
