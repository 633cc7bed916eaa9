package serve

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is a connection that knows whether a request has come on it. The standard library takes one for idle until it has read and
// parsed the next request, and a server that shuts down closes those: a request that came a moment earlier would be lost, or begun
// and never answered, and its caller, who cannot know which, may not send it again.
type conn struct {
	*net.TCPConn

	taken   atomic.Int64 // bytes read
	resting atomic.Int64 // what was taken when it became idle; under zero: it is not idle
	http2   atomic.Bool
	closed  atomic.Bool
	failed  atomic.Bool // reading ended
	forgone atomic.Bool // by the request under way: see Forgo
	watch   atomic.Pointer[Watch]

	// Of conns, and guarded by its mutex:
	state      http.ConnState
	came       time.Time
	prev, next *conn // in the ring of the idle or of the active; nil: it is in none
	parting    bool  // it is being closed to make room
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 1 && !c.serverReads() {
		return 0, nil
	}
	n, err := c.TCPConn.Read(p)
	c.taken.Add(int64(n))
	if err != nil {
		c.noticed(err)
	}
	return n, err //nolint:wrapcheck // it is the connection
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.closed.Store(true)
	defer c.tell()
	return c.TCPConn.Close() //nolint:wrapcheck // it is the connection
}

// note what the server says of it.
func (c *conn) note(state http.ConnState) {
	if c.forgone.Load() {
		c.forgone.Store(false)
	}
	if state == http.StateIdle {
		c.resting.Store(c.taken.Load())
	} else {
		c.resting.Store(-1)
	}
}

// untouched: it is idle, and nothing has come since.
func (c *conn) untouched() bool { return c.resting.Load() == c.taken.Load() && !c.waiting() }

// waiting: bytes have come that nobody has read yet.
func (c *conn) waiting() (yes bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var one [1]byte
	_ = raw.Control(func(fd uintptr) { // fails on a closed one, on which nothing waits
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		yes = err == nil && n > 0
	})
	return yes
}

// under finds it below TLS; nil: it is another kind of connection.
func under(c net.Conn) *conn {
	if secure, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = secure.NetConn()
	}
	ours, _ := c.(*conn)
	return ours
}

type connKey struct{}

// known puts the connection into the context of its requests.
func known(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, under(c))
}

// of a request; nil: none of ours.
func of(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}
