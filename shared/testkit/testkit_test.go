package testkit

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// echo answers line by line what it gets.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

func dial(t *testing.T, p *Proxy) (conn net.Conn, say func(within time.Duration) error) {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	in := bufio.NewReader(conn)
	return conn, func(within time.Duration) error {
		_ = conn.SetDeadline(time.Now().Add(within))
		if _, err := conn.Write([]byte("hello\n")); err != nil {
			return err
		}
		_, err := in.ReadString('\n')
		return err
	}
}

func TestProxyDoesNoHarmUntilTold(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echo(t))
	_, say := dial(t, p)
	for range 100 {
		if err := say(5 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPauseHoldsBytesBackAndClosesNothing(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echo(t))
	conn, say := dial(t, p)
	p.Pause()
	if err := say(50 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("while paused: %v", err)
	}
	p.Resume()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("after the pause: %q, %v", line, err)
	}
}

func TestCutRefuseAndAccept(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echo(t))
	_, say := dial(t, p)
	if err := say(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	p.Refuse()
	if err := say(5 * time.Second); err != nil {
		t.Errorf("an open connection after Refuse: %v", err)
	}
	p.Cut()
	if err := say(5 * time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Cut: %v", err)
	}
	if conn, err := net.Dial("tcp", p.Addr()); err == nil {
		conn.Close()
		t.Error("a new connection is accepted after Refuse")
	}
	p.Accept(t)
	_, say = dial(t, p)
	if err := say(5 * time.Second); err != nil {
		t.Errorf("after Accept: %v", err)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echo(t))
	_, say := dial(t, p)
	p.Set(Faults{Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond})
	began := time.Now()
	if err := say(5 * time.Second); err != nil || time.Since(began) < 30*time.Millisecond {
		t.Errorf("delayed: %v after %v", err, time.Since(began))
	}
	p.Set(Faults{DropDown: true})
	if err := say(50 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answers dropped: %v", err)
	}
	p.Set(Faults{CutAfter: 10})
	_, say = dial(t, p)
	if err := say(5 * time.Second); err != nil {
		t.Errorf("before the cut: %v", err)
	}
	if err := say(5 * time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after 10 bytes: %v", err)
	}
}

func TestEventuallyAndStays(t *testing.T) {
	t.Parallel()
	n := 0
	Eventually(t, 5*time.Second, "three looks", func() bool { n++; return n == 3 })
	Stays(t, 20*time.Millisecond, "true", func() bool { return true })
}
