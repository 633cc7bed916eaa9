// Package forward sends a request on to a replica and streams the answer back: plain requests over package upstream, those that
// it cannot carry by way of httputil.ReverseProxy.
//
// A request goes to one replica once. It is tried on another, or again, only when not a byte of it was written: the dial
// failed, or an idle connection turned out to be closed.
package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/upstream"
	"github.com/slimfaas/slimfaas/shared/serve"
)

var (
	errNoHeaders  = errors.New("no answer headers in time")
	errAllRefused = errors.New("no replica could be connected to")
)

// Forwarder forwards requests. Safe for concurrent use.
type Forwarder struct {
	// Stalled is how long an HTTP/1 caller may take none of the answer before its connection is cut: it holds a replica
	// meanwhile. HTTP/2 has its own guard in package serve. Set it before the first call.
	Stalled time.Duration
	// BodyIdle is how long a caller's body may not move before the answer has begun; then it is cut, as is one that moves more slowly
	// than 512 bytes a second. Set it before the first call.
	BodyIdle time.Duration

	pool      *upstream.Pool
	transport *http.Transport // of what the pool cannot carry
	http2     *http.Transport // of gRPC
	proxy     *httputil.ReverseProxy
	buffers   buffers
	log       *slog.Logger
}

// New returns a forwarder that logs to log the calls it had to answer for.
func New(log *slog.Logger) *Forwarder {
	f := &Forwarder{
		Stalled: time.Minute, BodyIdle: 30 * time.Second,
		pool: newPool(), transport: newTransport(), http2: newHTTP2(), log: log,
	}
	f.proxy = f.newProxy(log)
	return f
}

// Close closes idle connections.
func (f *Forwarder) Close() {
	f.pool.Close()
	f.transport.CloseIdleConnections()
	f.http2.CloseIdleConnections()
}

// Call is one request to forward.
type Call struct {
	// Path and Query are raw, as the function shall see them; Mark keeps the question mark of an empty query.
	Path, Query string
	Mark        bool
	// Prefix is what the caller's path had before Path: X-Forwarded-Prefix. Empty: nothing is said of it.
	Prefix string
	// Began is when the call did.
	Began time.Time
	// First is the replica to use; Forward ends it.
	First *replica.Lease
	// Next gives another replica than those tried, which it may refuse.
	Next func(tried func(*replica.Replica) bool) (*replica.Lease, bool)
	// HeaderTimeout bounds the wait for the answer's headers, counted from the last byte of the request's body.
	HeaderTimeout time.Duration
	// KeepForwarded keeps the X-Forwarded-* headers of the peer, a trusted proxy.
	KeepForwarded bool
}

// exchange is a Call under way.
type exchange struct {
	Call
	lease   *replica.Lease
	refused []string // names and instances of replicas that could not be connected to
	slow    []string // the same, of those that did not answer in time, since all were tried last
	inbound context.Context
	watch   serve.Watch             // for the caller's leaving, where it can be
	guard   guardedWriter           // to an HTTP/1 caller
	body    io.ReadCloser           // the caller's; nil: there is none
	cancel  context.CancelCauseFunc // nil in a plain exchange without a body
	timer   *time.Timer             // the same
	cors    bool                    // the answer carries our Access-Control-Allow-Origin; the function's is dropped
	decided atomic.Bool             // headers came, or the time was up: whichever was first
	read    atomic.Int64            // bytes taken from the caller's body
	readAt  atomic.Int64            // unix nanoseconds of the last of them
	whole   atomic.Bool             // the body was read to its end
	pace    *pace                   // of the body; nil: there is none
	tooSlow atomic.Bool             // the body was cut for its pace
	// unreadable: the caller's body broke off, or is framed wrongly.
	unreadable atomic.Bool
}

const never = time.Duration(1<<63 - 1)

// Serve forwards and answers. After headers went out, a broken answer aborts the caller's connection (it panics with
// http.ErrAbortHandler, as net/http wants).
func (f *Forwarder) Serve(w http.ResponseWriter, r *http.Request, c Call) {
	x := &exchange{Call: c, lease: c.First, inbound: r.Context()}
	defer func() { x.lease.End() }()
	if r.ContentLength != 0 {
		x.body = r.Body
		x.pace = &pace{control: http.NewResponseController(w), idle: f.BodyIdle}
		r.Body = io.NopCloser(x.body) // closed below: see finishBody
		if r.ProtoMajor == 1 {
			// Without it net/http swallows what is left of the body when the answer begins, and the function gets half of it.
			_ = http.NewResponseController(w).EnableFullDuplex() // only a wrapped writer cannot
		}
		defer func() { x.finishBody(w, r) }()
	}
	_, x.cors = w.Header()["Access-Control-Allow-Origin"]
	if r.ProtoMajor == 1 {
		x.guard = guardedWriter{ResponseWriter: w, stalled: f.Stalled}
		defer x.guard.clear()
		w = &x.guard
	}
	if plain(r) {
		f.plain(w, r, x)
	} else {
		f.special(w, r, x)
	}
}

// await the answer's headers for HeaderTimeout, and cancel where they do not come. The caller ends it.
func (x *exchange) await(cancel context.CancelCauseFunc) (end func()) {
	x.cancel = cancel
	x.timer = time.AfterFunc(never, x.timeUp)
	x.timer.Reset(x.HeaderTimeout) // not before x.timer is set: timeUp may set it again
	return func() {
		x.decided.Store(true)
		x.timer.Stop()
	}
}

// timeUp cancels an exchange whose function has not answered for HeaderTimeout since it has the whole request.
func (x *exchange) timeUp() {
	if last := x.readAt.Load(); last != 0 {
		if left := x.HeaderTimeout - time.Since(time.Unix(0, last)); left > 0 && !x.decided.Load() {
			x.timer.Reset(left)
			return
		}
	}
	if x.decided.CompareAndSwap(false, true) {
		x.cancel(errNoHeaders)
	}
}

// another replaces the lease by one of a replica not tried yet. Where there is none, those that were slow to take the connection
// are tried again for a while; those that refused it are not.
func (x *exchange) another(slow bool) bool {
	x.lease.Unreachable(!slow)
	mine := x.lease.Life()
	if slow {
		x.slow = append(x.slow, mine)
	} else {
		x.refused = append(x.refused, mine)
	}
	skip := func(r *replica.Replica) bool {
		id := r.Life()
		return slices.Contains(x.refused, id) || slices.Contains(x.slow, id)
	}
	next, ok := x.Next(skip)
	if !ok && len(x.slow) > 0 && time.Since(x.Began) < dial.AgainFor-dial.Timeout {
		x.slow = x.slow[:0]
		if slow {
			return true // this one
		}
		next, ok = x.Next(skip)
	}
	if !ok {
		return false
	}
	x.lease.End()
	x.lease = next
	return true
}

// answered is called with the answer's headers, 101 included.
func (x *exchange) answered(header http.Header) error {
	if x.timer != nil && !x.decided.CompareAndSwap(false, true) {
		return errNoHeaders // the time was up just now
	}
	if x.timer != nil {
		x.timer.Stop()
	}
	x.pace.end()
	x.lease.Answered()
	x.lease.Stream()
	for name := range header {
		if message.Ours(name) || name == "Alt-Svc" || x.cors && name == "Access-Control-Allow-Origin" {
			delete(header, name)
		}
	}
	return nil
}
