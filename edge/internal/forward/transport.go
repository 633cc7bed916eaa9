package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// Limits of the connections to functions.
const (
	connectTimeout = 500 * time.Millisecond
	// idleTimeout is shorter than what servers use themselves (2 s and up), so that we close first: a request that meets a
	// connection its function is just closing cannot be sent again.
	idleTimeout       = 1500 * time.Millisecond
	idlePerReplica    = 64
	maxResponseHeader = 64 << 10 // bytes, of all 1xx and the answer together
)

// dialError is a connection that was not made: nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "connecting: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// newTransport makes the connections to functions: no proxy of the environment, no cookies, no redirects, no compression of
// its own.
func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second, Control: onlyReplicas}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, &dialError{err}
			}
			return &countedConn{Conn: conn}, nil
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    idlePerReplica,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		ReadBufferSize:         16 << 10,
		WriteBufferSize:        16 << 10,
	}
}

// onlyReplicas refuses, after resolution, addresses no replica has: link-local (cloud metadata among them), multicast,
// unspecified.
func onlyReplicas(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("reading the address %q: %w", address, err)
	}
	a := ap.Addr().Unmap()
	if a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return fmt.Errorf("address %s is not one a function may have", a)
	}
	return nil
}

// countedConn counts what was written, so that "nothing was sent" is known, not guessed.
type countedConn struct {
	net.Conn
	written atomic.Int64
	reused  atomic.Bool // the next write is the first of a request on a connection that was idle
}

var errIdleClosed = errors.New("the function closed the idle connection")

// Write writes, but nothing on an idle connection that its function has closed: such a write would succeed, the request would be
// lost, and nobody could tell whether the function had seen it.
func (c *countedConn) Write(p []byte) (int, error) {
	if c.reused.Swap(false) && closedByPeer(c.Conn) {
		return 0, errIdleClosed
	}
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// closedByPeer looks, without waiting and without taking anything, whether an idle connection has come to its end, or carries
// bytes nobody asked for.
func closedByPeer(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true // closed on our side
	}
	var peek error
	var one [1]byte
	if err := raw.Control(func(fd uintptr) {
		_, _, peek = syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	}); err != nil {
		return true
	}
	return !errors.Is(peek, syscall.EAGAIN)
}
