package serve

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Watch closes something when the caller of a request goes away, as context.AfterFunc on the request's context would, at a tenth of
// the cost. The zero Watch is ready, for one request.
//
// net/http hears of a caller's leaving from a read on a goroutine of its own, which it begins and breaks off with each request: a twelfth
// of what a proxied call costs. Where a watch has begun before that read, the read is not made. Two looks of the server later, if the
// request is still under way, the watch waits on the connection itself. So a caller who leaves within the first moments is heard of when
// they are over, and any other at once.
type Watch struct {
	at     *conn
	closer io.Closer
	gone   atomic.Bool
	alone  atomic.Bool // net/http does not read, and will not during this request
	state  atomic.Int32
	stood  chan struct{} // closed when standing is over; set before state says that it is
}

// States of a watch, in this order.
const (
	fresh int32 = iota
	seen        // by one look
	standing
	stopped
)

// lookEvery is how often the server looks for watches that have to stand.
const lookEvery = 50 * time.Millisecond

// Start watching. false: it cannot be told of this caller (HTTP/2, TLS, another server, an upgrade, or a body that is still to be
// read), and nothing is watched. It may be started again once it was stopped.
func (w *Watch) Start(r *http.Request, closer io.Closer) bool {
	if r.ProtoMajor != 1 || r.TLS != nil || r.ContentLength != 0 || r.Header["Upgrade"] != nil {
		return false
	}
	c := of(r)
	if c == nil {
		return false
	}
	w.at, w.closer = c, closer
	w.state.Store(fresh)
	c.watch.Store(w)
	if c.failed.Load() || c.closed.Load() { // before it was watched
		c.tell()
	}
	return true
}

// Stop watching. false: the caller has gone, and the close has been, or is being, called.
func (w *Watch) Stop() bool {
	c := w.at
	mine := c.watch.CompareAndSwap(w, nil)
	if w.state.Swap(stopped) == standing {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // fails on a closed one, at which nobody stands any more
		<-w.stood
		_ = c.SetReadDeadline(time.Time{})
	}
	return mine
}

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

// Forgo says that the handler of this request waits for nothing that its caller's leaving should end, but for some seconds at most: the
// request's context does not tell of it then.
func Forgo(r *http.Request) {
	if c := of(r); c != nil && r.ProtoMajor == 1 && r.TLS == nil {
		c.forgone.Store(true)
	}
}

// serverReads says whether net/http's own reading during a request, which is of one byte, is to be made.
func (c *conn) serverReads() bool {
	if w := c.watch.Load(); w != nil {
		w.alone.Store(true)
		return false
	}
	return !c.forgone.Load()
}

// look at a watch: one that was there before, and has nobody else to read for it, is to stand from now on.
func (w *Watch) look() (stand bool) {
	if !w.alone.Load() || w.state.CompareAndSwap(fresh, seen) || w.state.Load() != seen {
		return false
	}
	w.stood = make(chan struct{})
	if !w.state.CompareAndSwap(seen, standing) {
		return false // it was stopped just now
	}
	return true
}

// stand at the connection until something comes, which is left there, or it ends. Stop ends it.
func (w *Watch) stand() {
	defer close(w.stood)
	raw, err := w.at.SyscallConn()
	if err != nil {
		return // of TCP: there is one
	}
	ended := false
	var one [1]byte
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ended = err == nil && n == 0 || err != nil && err != syscall.EAGAIN && err != syscall.EINTR //nolint:errorlint // it is the errno itself
		return ended || err == nil
	})
	if ended {
		err = io.EOF
	}
	if err != nil {
		w.at.noticed(err)
	}
}

// standGuard lets the watches of requests that last stand, until ctx ends.
func (s *conns) standGuard(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, w := range s.lasting() {
			go w.stand() // Stop waits for it
		}
	}
}

// lasting are the watches that have to stand from now on.
func (s *conns) lasting() (all []*Watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := s.active.next; c != &s.active; c = c.next {
		if w := c.watch.Load(); w != nil && w.look() {
			all = append(all, w)
		}
	}
	return all
}
