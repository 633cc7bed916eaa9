// Package forward sends a request on to a replica and streams the answer back. It is the only importer of httputil: what
// replaces ReverseProxy later replaces the inside of this package.
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
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/problem"
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

	transport *http.Transport
	proxy     *httputil.ReverseProxy
	log       *slog.Logger
}

// New returns a forwarder that logs to log the calls it had to answer for.
func New(log *slog.Logger) *Forwarder {
	f := &Forwarder{transport: newTransport(), Stalled: time.Minute, BodyIdle: 30 * time.Second, log: log}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      f,
		FlushInterval:  -1,
		ModifyResponse: answered,
		ErrorHandler:   f.refused,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BufferPool:     &buffers{},
	}
	return f
}

// Close closes idle connections.
func (f *Forwarder) Close() { f.transport.CloseIdleConnections() }

// Call is one request to forward.
type Call struct {
	// Path and Query are raw, as the function shall see them; Mark keeps the question mark of an empty query.
	Path, Query string
	Mark        bool
	// Prefix is what the caller's path had before Path: X-Forwarded-Prefix. Empty: nothing is said of it.
	Prefix string
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
	began   time.Time
	lease   *replica.Lease
	refused []string // names and instances of replicas that could not be connected to
	slow    []string // the same, of those that did not answer in time, since all were tried last
	inbound context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	cors    bool         // the answer carries our Access-Control-Allow-Origin; the function's is dropped
	decided atomic.Bool  // headers came, or the time was up: whichever was first
	read    atomic.Int64 // bytes taken from the caller's body
	readAt  atomic.Int64 // unix nanoseconds of the last of them
	whole   atomic.Bool  // the body was read to its end
	pace    *pace        // of the body; nil: there is none
	tooSlow atomic.Bool  // the body was cut for its pace
}

const never = time.Duration(1<<63 - 1)

type exchangeKey struct{}

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// Serve forwards and answers. After headers went out, a broken answer aborts the caller's connection (it panics with
// http.ErrAbortHandler, as net/http wants).
func (f *Forwarder) Serve(w http.ResponseWriter, r *http.Request, c Call) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	x := &exchange{Call: c, began: time.Now(), lease: c.First, inbound: r.Context(), cancel: cancel}
	defer func() {
		x.decided.Store(true)
		x.timer.Stop()
		x.lease.End()
	}()
	if r.ContentLength != 0 {
		inbound := r.Body
		x.pace = &pace{control: http.NewResponseController(w), idle: f.BodyIdle}
		r.Body = io.NopCloser(inbound) // closed below: see finishBody
		if r.ProtoMajor == 1 {
			// Without it net/http swallows what is left of the body when the answer begins, and the function gets half of it.
			_ = http.NewResponseController(w).EnableFullDuplex() // only a wrapped writer cannot
		}
		defer func() { x.finishBody(w, r, inbound) }()
	}
	if r.ProtoMajor == 1 {
		guarded := &guardedWriter{ResponseWriter: w, control: http.NewResponseController(w), stalled: f.Stalled}
		defer guarded.clear()
		w = guarded
	}
	_, x.cors = w.Header()["Access-Control-Allow-Origin"]
	x.timer = time.AfterFunc(never, x.timeUp)
	x.timer.Reset(x.HeaderTimeout) // not before x.timer is set: timeUp may set it again
	f.proxy.ServeHTTP(w, r.WithContext(context.WithValue(ctx, exchangeKey{}, x)))
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

// rewrite makes the outgoing request; the address is set per attempt.
func rewrite(p *httputil.ProxyRequest) {
	x := exchangeOf(p.In)
	p.SetURL(&url.URL{Scheme: "http", Host: x.lease.Address})
	setRaw(p.Out.URL, x.Path, x.Query, x.Mark)
	for name := range p.Out.Header {
		if ours(name) {
			delete(p.Out.Header, name)
		}
	}
	// net/http replays requests that carry these under their canonical names; on the wire the case means nothing.
	for canonical, hidden := range map[string]string{"Idempotency-Key": "idempotency-key", "X-Idempotency-Key": "x-idempotency-key"} {
		if v, ok := p.Out.Header[canonical]; ok {
			delete(p.Out.Header, canonical)
			p.Out.Header[hidden] = v
		}
	}
	if x.KeepForwarded {
		p.Out.Header["X-Forwarded-For"] = p.In.Header["X-Forwarded-For"]
	}
	p.SetXForwarded()
	prefix := x.Prefix
	if x.KeepForwarded {
		prefix = route.JoinPrefix(p.In.Header.Get("X-Forwarded-Prefix"), prefix)
	}
	delete(p.Out.Header, "X-Forwarded-Prefix")
	if prefix != "" {
		p.Out.Header["X-Forwarded-Prefix"] = []string{prefix}
	}
	if x.KeepForwarded {
		for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
			if v, ok := p.In.Header[name]; ok {
				p.Out.Header[name] = v
			}
		}
	}
}

// setRaw puts the raw path into u so that exactly its bytes are sent.
func setRaw(u *url.URL, path, query string, mark bool) {
	u.RawQuery, u.ForceQuery = query, mark && query == ""
	u.Opaque, u.Path, u.RawPath = "", path, ""
	if decoded, err := url.PathUnescape(path); err == nil {
		u.Path, u.RawPath = decoded, path
	}
	if u.EscapedPath() == path {
		return
	}
	if u.Opaque = path; strings.HasPrefix(path, "//") {
		u.Opaque = "//" + u.Host + path // net/url takes what follows // for a host: absolute form, which every server reads
	}
}

// ours says whether a header is SlimFaas's own.
func ours(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "slimfaas-") || strings.HasPrefix(name, "x-slimfaas-")
}

// RoundTrip sends the request to the exchange's replica, to another one if that cannot be connected to.
func (f *Forwarder) RoundTrip(req *http.Request) (*http.Response, error) {
	x := exchangeOf(req)
	for again := 0; ; {
		resp, unsent, err := f.attempt(req, x)
		if err == nil {
			return resp, nil
		}
		if cause := context.Cause(req.Context()); cause != nil {
			return nil, cause
		}
		var dialing *dial.Error
		switch {
		case errors.As(err, &dialing) && x.read.Load() == 0:
			if !x.another(dialing.Timeout()) {
				return nil, errors.Join(errAllRefused, err)
			}
		case unsent && x.read.Load() == 0 && again < idlePerReplica:
			again++ // an idle connection that its function had closed; there may be more of them
		default:
			return nil, err
		}
	}
}

// attempt sends the request once. unsent: it failed before a byte was written.
func (f *Forwarder) attempt(req *http.Request, x *exchange) (resp *http.Response, unsent bool, err error) {
	notSent := func() bool { return false }
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, ok := info.Conn.(*dial.Conn); ok {
			notSent = conn.Request(info.Reused)
		}
	}})
	out := req.WithContext(ctx)
	target := *req.URL
	out.URL = &target
	if strings.HasPrefix(target.Opaque, "//") {
		target.Opaque = "//" + x.lease.Address + target.Opaque[2+len(target.Host):]
	}
	target.Host = x.lease.Address
	// Never without a body: net/http replays body-less requests of safe methods when a reused connection breaks, and a
	// function may have acted by then. One that turns out empty is not framed on the wire.
	switch {
	case req.Body != nil && req.Body != http.NoBody:
		out.Body = &watchedBody{r: req.Body, x: x}
	case req.Method == http.MethodGet || req.Method == http.MethodHead || req.Method == http.MethodOptions:
		out.Body = emptyBody{}
	}
	resp, err = f.transport.RoundTrip(out)
	if err != nil {
		return nil, notSent(), err
	}
	return resp, false, nil
}

// another replaces the lease by one of a replica not tried yet. Where there is none, those that were slow to take the connection
// are tried again for a while; those that refused it are not.
func (x *exchange) another(slow bool) bool {
	x.lease.Unreachable()
	mine := x.lease.Name + "\x00" + x.lease.Instance
	if slow {
		x.slow = append(x.slow, mine)
	} else {
		x.refused = append(x.refused, mine)
	}
	skip := func(r *replica.Replica) bool {
		id := r.Name + "\x00" + r.Instance
		return slices.Contains(x.refused, id) || slices.Contains(x.slow, id)
	}
	next, ok := x.Next(skip)
	if !ok && len(x.slow) > 0 && time.Since(x.began) < dial.AgainFor-dial.Timeout {
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
func answered(resp *http.Response) error {
	x := exchangeOf(resp.Request)
	if !x.decided.CompareAndSwap(false, true) {
		return errNoHeaders // the time was up just now
	}
	x.timer.Stop()
	x.pace.end()
	x.lease.Answered()
	x.lease.Stream()
	for name := range resp.Header {
		if ours(name) || name == "Alt-Svc" || x.cors && name == "Access-Control-Allow-Origin" {
			delete(resp.Header, name)
		}
	}
	return nil
}

// refused answers for a function that did not. Nothing has been written to the caller yet.
func (f *Forwarder) refused(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r)
	if x.inbound.Err() != nil && !x.tooSlow.Load() {
		panic(http.ErrAbortHandler) // the caller has gone; there is nobody to tell
	}
	var tooLarge *http.MaxBytesError
	p := problem.Problem{
		Type: "urn:slimfaas:bad-gateway", Title: "The function's answer broke", Status: http.StatusBadGateway,
		Detail: "The connection to the replica broke before its answer's headers. The function may have run; SlimFaas does not repeat a call of which a byte was sent.",
	}
	switch {
	case errors.As(err, &tooLarge):
		p = problem.Problem{
			Type: "urn:slimfaas:body-too-large", Title: "Body too large", Status: http.StatusRequestEntityTooLarge,
			Detail: "The body is larger than this edge forwards.",
		}
	case x.tooSlow.Load():
		w.Header().Set("Connection", "close")
		p = problem.Problem{
			Type: "urn:slimfaas:body-too-slow", Title: "The body came too slowly", Status: http.StatusRequestTimeout,
			Detail: "No byte of the body came for " + f.BodyIdle.String() + ", or less than 512 bytes a second. The function has seen the beginning of the request, and that it broke off.",
		}
	case errors.Is(err, errNoHeaders):
		p = problem.Problem{
			Type: "urn:slimfaas:timeout", Title: "The function did not answer in time", Status: http.StatusGatewayTimeout,
			Detail: "No answer headers within " + x.HeaderTimeout.String() + " (DefaultSync.HttpTimeout of SlimFaas/Configuration).",
		}
	case errors.Is(err, errAllRefused):
		p = problem.Problem{
			RetryAfter: time.Second,
			Type:       "urn:slimfaas:unreachable", Title: "No replica took the connection", Status: http.StatusServiceUnavailable,
			Detail: "Every ready replica refused the connection, or did not take it in time; nothing was sent. GET /explain tells what is known of them.",
		}
	}
	f.log.Info("call not answered by its function", "fn", x.lease.Function.Name(), "replica", x.lease.Name, "status", p.Status, "err", err)
	problem.Write(w, p)
}

// guardedWriter bounds each write to an HTTP/1 caller. An answer that is silent for hours is not touched: only writes are timed.
type guardedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stalled time.Duration
	set     time.Time // of the deadline in force; zero: none
}

func (g *guardedWriter) Write(p []byte) (int, error) {
	if now := time.Now(); now.Sub(g.set) > min(time.Second, g.stalled/4) { // not with every chunk of a fast answer
		if g.control.SetWriteDeadline(now.Add(g.stalled)) == nil {
			g.set = now
		}
	}
	return g.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController: flush, hijack, deadlines.
func (g *guardedWriter) Unwrap() http.ResponseWriter { return g.ResponseWriter }

// clear leaves the connection as it was, for its next request.
func (g *guardedWriter) clear() {
	if !g.set.IsZero() {
		_ = g.control.SetWriteDeadline(time.Time{}) // fails when the connection is gone
	}
}

// buffers keeps copy buffers of 32 KiB.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
