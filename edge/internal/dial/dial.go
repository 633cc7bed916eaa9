// Package dial makes the connections to functions, for sync calls and for deliveries alike: only to addresses a function may
// have, and counting what is written, so that "nothing was sent" is known and not guessed.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// Timeout bounds one attempt at a connection.
	Timeout = 500 * time.Millisecond
	// AgainFor is how long a replica that did not take a connection in time, and did not refuse it either, is tried again
	// when there is no other: a packet may have been lost, or one of the two machines be too busy.
	AgainFor = 3 * time.Second
)

// Error is a connection that was not made: nothing was sent.
type Error struct{ err error }

func (e *Error) Error() string { return "connecting: " + e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Timeout says that the replica did not answer within Timeout; false: it refused, or cannot be reached at all.
func (e *Error) Timeout() bool {
	var timing net.Error
	return errors.As(e.err, &timing) && timing.Timeout()
}

// ErrIdleClosed says that the function had closed the idle connection before a byte was written to it.
var ErrIdleClosed = errors.New("the function closed the idle connection")

// Context dials a replica, for http.Transport.DialContext. The connection is a *Conn; a failure is an *Error.
func Context(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: Timeout, KeepAlive: 15 * time.Second, Control: onlyReplicas}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, &Error{err}
	}
	c := &Conn{Conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn() // of TCP: there is one
	}
	c.look = func(fd uintptr) {
		_, _, c.seen = syscall.Recvfrom(int(fd), c.one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	}
	return c, nil
}

// Patiently dials like Context, and again for AgainFor while the replica does not answer: for calls that can go to no other.
func Patiently(ctx context.Context, network, address string) (net.Conn, error) {
	for began := time.Now(); ; {
		conn, err := Context(ctx, network, address)
		var dialing *Error
		if err == nil || !errors.As(err, &dialing) || !dialing.Timeout() || ctx.Err() != nil || time.Since(began) > AgainFor-Timeout {
			return conn, err
		}
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

// Conn is a connection to a replica.
type Conn struct {
	net.Conn
	written atomic.Int64
	reused  atomic.Bool // the next write is the first of a request on a connection that was idle

	// Of closedByPeer, which is called once or twice a request and allocates nothing. Whoever has the idle connection may use them.
	raw  syscall.RawConn // nil: nothing is known of it
	look func(fd uintptr)
	one  [1]byte
	seen error
}

// Request notes that a request begins on the connection, reused or new, and returns a function that says whether it has been
// left unsent: not a byte was written since.
func (c *Conn) Request(reused bool) (unsent func() bool) {
	before := c.written.Load()
	c.reused.Store(reused)
	return func() bool { return c.written.Load() == before }
}

// Quiet says that nothing has come on an idle connection, neither its end nor bytes nobody asked for.
func (c *Conn) Quiet() bool { return !c.closedByPeer() }

// Write writes, but nothing on an idle connection that its function has closed (ErrIdleClosed): such a write would succeed, the
// request would be lost, and nobody could tell whether the function had seen it.
func (c *Conn) Write(p []byte) (int, error) {
	if c.reused.Swap(false) && c.closedByPeer() {
		return 0, ErrIdleClosed
	}
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// closedByPeer looks, without waiting and without taking anything, whether an idle connection has come to its end, or carries
// bytes nobody asked for.
func (c *Conn) closedByPeer() bool {
	if c.raw == nil {
		return false
	}
	if err := c.raw.Control(c.look); err != nil {
		return true // closed on our side
	}
	return c.seen != syscall.EAGAIN //nolint:errorlint // it is the errno itself
}
