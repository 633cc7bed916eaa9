package serve

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
)

// Watch closes something when the caller of a request goes away, as context.AfterFunc on the request's context would, at a tenth of
// the cost: it is told by the connection itself. The zero Watch is ready, for one request.
type Watch struct {
	at     *conn
	closer io.Closer
	gone   atomic.Bool
}

// Start watching. false: it cannot be told of this caller (HTTP/2, TLS, another server, an upgrade, or a body that is still to be
// read), and nothing is watched.
func (w *Watch) Start(r *http.Request, closer io.Closer) bool {
	if r.ProtoMajor != 1 || r.TLS != nil || r.ContentLength != 0 || r.Header["Upgrade"] != nil {
		return false
	}
	c := of(r)
	if c == nil {
		return false
	}
	w.at, w.closer = c, closer
	c.watch.Store(w)
	if c.failed.Load() { // before it was watched
		c.tell()
	}
	return true
}

// Stop watching. false: the caller has gone, and the close has been, or is being, called.
func (w *Watch) Stop() bool { return w.at.watch.CompareAndSwap(w, nil) }

// Gone says that the caller has.
func (w *Watch) Gone() bool { return w.gone.Load() }

// tell who watches that nothing more comes.
func (c *conn) tell() {
	w := c.watch.Load()
	if w == nil {
		return
	}
	w.gone.Store(true) // before Stop can say false
	if c.watch.CompareAndSwap(w, nil) {
		_ = w.closer.Close()
	}
}

// noticed an error of reading. A deadline is the server's own way of ending a read.
func (c *conn) noticed(err error) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.failed.Store(true)
		c.tell()
	}
}
