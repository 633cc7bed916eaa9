package testkit

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// FullListener listens on loopback with a full queue: further connections are not refused, their packets are dropped, as those
// of a machine that is far too busy. free gives it a queue of the usual length; call it at most once.
func FullListener(t testing.TB) (l net.Listener, free func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	queue := func(length int) {
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = syscall.Listen(int(fd), length) }); err != nil || failed != nil {
			t.Errorf("setting the length of the queue: %v, %v", err, failed)
		}
	}
	queue(0)
	var filling []net.Conn
	t.Cleanup(func() {
		_ = l.Close()
		for _, c := range filling {
			_ = c.Close()
		}
	})
	for range 8 {
		c, err := (&net.Dialer{Timeout: 300 * time.Millisecond}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			return l, func() { queue(128) }
		}
		filling = append(filling, c)
	}
	t.Fatal("the queue does not fill up")
	return nil, nil
}
