package serve

import (
	"errors"
	"net"
	"sync/atomic"
	"time"
)

const (
	// silence: when no connection has come for this long, none waits in the backlog.
	silence = 2 * time.Millisecond
	// lastCallFor bounds how long an ending listener goes on where connections never stop coming.
	lastCallFor = 100 * time.Millisecond
)

// errEnded is Accept's answer after the last call.
var errEnded = errors.New("the listener has ended")

// lastCall is a listener that ends politely: closing one resets every connection that the kernel has completed and nobody has
// accepted yet, of which a caller behind a balancer learns as an answer that never came.
type lastCall struct {
	*net.TCPListener
	ending atomic.Bool
	until  time.Time // set before ending
}

// end lets Accept hand out what waits, and then close.
func (l *lastCall) end() {
	l.until = time.Now().Add(lastCallFor)
	l.ending.Store(true)
	_ = l.SetDeadline(time.Now()) // an Accept under way looks again; where it fails Accept does, too
}

// Accept implements net.Listener.
func (l *lastCall) Accept() (net.Conn, error) {
	c, err := l.accept()
	if err != nil {
		return nil, err
	}
	return &conn{TCPConn: c}, nil
}

func (l *lastCall) accept() (*net.TCPConn, error) {
	c, err := l.AcceptTCP()
	if err == nil || !l.ending.Load() {
		return c, err //nolint:wrapcheck // it is the listener
	}
	if now := time.Now(); now.Before(l.until) && l.SetDeadline(now.Add(silence)) == nil {
		if c, err = l.AcceptTCP(); err == nil {
			_ = l.SetDeadline(now) // the next one looks again
			return c, nil
		}
	}
	_ = l.Close()
	return nil, errEnded
}
