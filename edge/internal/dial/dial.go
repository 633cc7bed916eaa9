// Package dial makes the connections to functions, for sync calls and for deliveries alike: only to addresses a function may
// have, and counting what is written, so that "nothing was sent" is known and not guessed.
package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	return &Conn{Conn: conn}, nil
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
}

// Request notes that a request begins on the connection, reused or new, and returns a function that says whether it has been
// left unsent: not a byte was written since.
func (c *Conn) Request(reused bool) (unsent func() bool) {
	before := c.written.Load()
	c.reused.Store(reused)
	return func() bool { return c.written.Load() == before }
}

// Quiet says that nothing has come on an idle connection, neither its end nor bytes nobody asked for.
func (c *Conn) Quiet() bool { return !closedByPeer(c.Conn) }

// Write writes, but nothing on an idle connection that its function has closed (ErrIdleClosed): such a write would succeed, the
// request would be lost, and nobody could tell whether the function had seen it.
func (c *Conn) Write(p []byte) (int, error) {
	if c.reused.Swap(false) && closedByPeer(c.Conn) {
		return 0, ErrIdleClosed
	}
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// Ask makes a request, which write writes to the connection, and reads the first bytes of its answer. idle: the connection was, and
// nothing is written where Quiet says no (ErrIdleClosed). wrote is why the request was not written, or not whole, and read why
// nothing was read behind it.
//
// All is done in one wait for the connection. Otherwise the read tries first, of which nothing can come at that moment, and that is
// a system call. The wait is sure to hear of what comes after the look, for it listens from before that on; of what came before,
// only the look can tell.
func (c *Conn) Ask(idle bool, write func(net.Conn) error, answer []byte) (n int, wrote, read error) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("asking over a %T, which is no socket", c.Conn), nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err, nil
	}
	began := false
	err = raw.Read(func(fd uintptr) (done bool) {
		if !began {
			began = true
			still := quiet(fd)
			if idle && !still {
				wrote = ErrIdleClosed
			} else {
				wrote = write(c)
			}
			if wrote != nil || still {
				return wrote != nil
			}
		}
		for {
			n, read = syscall.Read(int(fd), answer)
			if read != syscall.EINTR { //nolint:errorlint // an Errno itself
				break
			}
		}
		if read == syscall.EAGAIN { //nolint:errorlint // as above
			return false
		}
		if n = max(n, 0); read == nil && n == 0 {
			read = io.EOF
		}
		return true
	})
	if err != nil && !began {
		wrote = err
	} else if err != nil {
		n, read = 0, err
	}
	return n, wrote, read
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
	still := false
	if err := raw.Control(func(fd uintptr) { still = quiet(fd) }); err != nil {
		return true
	}
	return !still
}

// quiet says that nothing can be read from the socket, not even its end.
func quiet(fd uintptr) bool {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return errors.Is(err, syscall.EAGAIN)
}
