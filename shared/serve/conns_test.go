package serve

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

// dialled is a client's connection of which each step is the test's.
type dialled struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (d dialled) ask(path string) {
	d.t.Helper()
	if _, err := fmt.Fprintf(d, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		d.t.Fatal(err)
	}
}

// answered says whether an answer comes; else the connection was closed.
func (d dialled) answered() bool {
	d.t.Helper()
	_ = d.SetReadDeadline(time.Now().Add(20 * time.Second))
	res, err := http.ReadResponse(d.in, nil)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return true
}

func TestBeyondTheLimitTheLongestIdleConnectionMakesRoomAndElseTheNewOneGoes(t *testing.T) {
	t.Parallel()
	held := newGate()
	s := New(Options{Name: "test", MaxConns: 2, Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			held.ServeHTTP(w, r)
		}
	})}) // held until its connection is closed
	run(t, s, 0)
	dial := func() dialled {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return dialled{t, c, bufio.NewReader(c)}
	}
	idle := func(n int) {
		t.Helper()
		testkit.Eventually(t, 20*time.Second, fmt.Sprintf("%d are idle", n), func() bool {
			return len(s.conns.those(func(c *conn) bool { return c.state == http.StateIdle })) == n
		})
	}
	first, second := dial(), dial()
	for i, d := range []dialled{first, second} {
		if d.ask("/"); !d.answered() {
			t.Fatalf("connection %d is not answered", i)
		}
		idle(i + 1)
	}
	third := dial()
	if first.answered() {
		t.Error("the connection that was idle for longest is open")
	}
	if third.ask("/held"); !second.open() {
		t.Error("another was closed too")
	}
	<-held.in
	second.ask("/held")
	<-held.in
	if fourth := dial(); fourth.answered() {
		t.Error("one more than all that are in use was answered")
	}
	if open, away := s.Conns(); open != 2 || away != 2 {
		t.Errorf("%d open, %d turned away", open, away)
	}
	_ = second.Close()
	testkit.Eventually(t, 20*time.Second, "the place of one that went is free", func() bool {
		open, _ := s.Conns()
		return open == 1
	})
	fifth := dial()
	if fifth.ask("/"); !fifth.answered() {
		t.Error("there is a place, and it is not answered")
	}
}

// open says that nothing has come and the peer has not closed.
func (d dialled) open() bool {
	_ = d.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := d.in.Peek(1)
	return errors.Is(err, os.ErrDeadlineExceeded)
}
