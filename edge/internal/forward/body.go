package forward

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// slowest is how many bytes of a body a caller must send per second, on average and after BodyIdle of grace.
const slowest = 512

// watchedBody notes what is read of the caller's body. Its Close is left to the server: a failed dial closes the body of the
// attempt, and the next one needs it.
type watchedBody struct {
	r io.Reader
	x *exchange
}

func (b *watchedBody) Read(p []byte) (int, error) {
	x := b.x
	x.pace.before(x.read.Load())
	n, err := b.r.Read(p)
	x.read.Add(int64(n))
	x.readAt.Store(time.Now().UnixNano())
	switch {
	case errors.Is(err, io.EOF):
		x.whole.Store(true)
		x.pace.end()
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.tooSlow.Store(true) // said here: net/http ends the request's context now, as if the caller had gone
	case err != nil:
		x.unreadable.Store(true)
	}
	return n, err
}

func (b *watchedBody) Close() error { return nil }

// pace cuts a caller whose body does not move, or moves too slowly, while its function waits for it: it holds a replica meanwhile.
// Once the answer has begun the two talk, and may be silent.
type pace struct {
	control *http.ResponseController
	idle    time.Duration

	mu    sync.Mutex // guards all below
	began time.Time  // of the first read
	set   time.Time  // of the deadline in force; zero: none
	over  bool
}

// before the next read, when so many bytes have come.
func (p *pace) before(read int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.began.IsZero() {
		p.began = now
	}
	if p.over || now.Sub(p.set) < min(time.Second, p.idle/4) { // not with every piece of a fast body
		return
	}
	if p.control.SetReadDeadline(due(p.began, now, read, p.idle)) == nil {
		p.set = now
	}
}

// due is until when the next piece of a body must come that began then and of which so much has come.
func due(began, now time.Time, read int64, idle time.Duration) time.Time {
	moves, fast := now.Add(idle), began.Add(idle+time.Duration(read/slowest)*time.Second)
	if fast.Before(moves) {
		return fast
	}
	return moves
}

// end lets the body, and the connection's next request, come as they like.
func (p *pace) end() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over && !p.set.IsZero() {
		_ = p.control.SetReadDeadline(time.Time{}) // fails when the connection is gone
	}
	p.over = true
}

// finishBody closes the caller's body: with full duplex nobody else does (golang/go#68560). One that the function did not read
// to its end may hold a read that only the caller could finish, so that is ended first; the connection is not used again.
func (x *exchange) finishBody(w http.ResponseWriter, r *http.Request) {
	x.pace.end()
	if r.ProtoMajor == 1 && !x.whole.Load() {
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // fails on an upgraded connection, which has no body
	}
	_ = x.body.Close()
}

type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }
