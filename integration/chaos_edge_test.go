package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// balancer is as dumb as one can be: each connection goes to the next of the targets that takes it, and stays there. It knows
// nothing of readiness or HTTP.
type balancer struct {
	listener net.Listener
	targets  []string
	next     atomic.Uint32
	conns    sync.WaitGroup
}

// balance listens until the test's end.
func balance(t *testing.T, targets ...string) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{listener: l, targets: targets}
	b.conns.Go(b.accept)
	t.Cleanup(func() {
		_ = l.Close()
		b.conns.Wait()
	})
	return b
}

func (b *balancer) url() string { return "http://" + b.listener.Addr().String() }

func (b *balancer) accept() {
	for {
		in, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.conns.Go(func() { b.carry(in) })
	}
}

func (b *balancer) carry(in net.Conn) {
	defer in.Close()
	for range 2 * len(b.targets) {
		out, err := net.DialTimeout("tcp", b.targets[int(b.next.Add(1))%len(b.targets)], time.Second)
		if err != nil {
			continue
		}
		defer out.Close()
		var both sync.WaitGroup
		pass := func(to, from net.Conn) {
			_, _ = io.Copy(to, from)
			_ = to.(*net.TCPConn).CloseWrite() // half-closed connections are none of a balancer's business
		}
		both.Go(func() { pass(out, in) })
		both.Go(func() { pass(in, out) })
		both.Wait()
		return
	}
}

// TestChaosEdgesEndOneByOne (E13): one of two edges behind a balancer is told to end, and comes back, again and again; no call fails
// and none is lost.
func TestChaosEdgesEndOneByOne(t *testing.T) {
	rounds, perSecond, between := 3, 100, 500*time.Millisecond
	if os.Getenv("SLIMFAAS_FULL") != "" {
		rounds, perSecond, between = 20, 200, 2500*time.Millisecond // at least 10,000 calls
	}
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Queues: 1, Edges: 2, Functions: rec.yaml(fn{name: "work", annotations: map[string]string{"ReplicasMin": "2"}})})
	b := balance(t, c.URL(0)[len("http://"):], c.URL(1)[len("http://"):])
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 2 * time.Second}}
	defer client.CloseIdleConnections()
	call := func() error {
		res, err := client.Get(b.url() + "/function/work/?ms=20")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return wantStatus(res.StatusCode, 200, body, err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		sent, failed, first := steadily(t.Context(), perSecond, stop, call)
		t.Logf("%d calls, %d failed", sent, failed)
		if failed > 0 {
			done <- fmt.Errorf("%d of %d calls failed, the first: %w", failed, sent, first)
			return
		}
		done <- nil
	}()
	for round := range rounds {
		endEdge(c, round%2)
		pace(between)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if cut := rec.cut(t, "work"); len(cut) > 0 {
		t.Errorf("%d calls were cut, the first: %+v", len(cut), cut[0])
	}
}

// endEdge tells an edge to end, and waits until it is back.
func endEdge(c *cluster.Cluster, n int) {
	before := c.PID(fmt.Sprintf("edge-%d", n))
	c.Signal(fmt.Sprintf("edge-%d", n), syscall.SIGTERM)
	edgeReturns(c, n, before)
}

// edgeReturns waits until an edge runs again, as another process than before, and is ready.
func edgeReturns(c *cluster.Cluster, n, before int) {
	name := fmt.Sprintf("edge-%d", n)
	c.Eventually(45*time.Second, name+" is back and ready", func() error {
		if now := c.PID(name); now == 0 || now == before {
			return errNotYet
		}
		status, body, err := c.Get(n, "/ready")
		return wantStatus(status, http.StatusOK, body, err)
	})
}
