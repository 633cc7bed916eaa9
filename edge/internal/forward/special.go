package forward

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/route"
)

// newProxy is the way of what package upstream cannot carry: upgrades, trailers of requests, Expect, gRPC.
func (f *Forwarder) newProxy(log *slog.Logger) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      f,
		FlushInterval:  -1,
		ModifyResponse: func(resp *http.Response) error { return exchangeOf(resp.Request).answered(resp.Header) },
		ErrorHandler:   func(w http.ResponseWriter, r *http.Request, err error) { f.refused(w, exchangeOf(r), err) },
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BufferPool:     &f.buffers,
	}
}

type exchangeKey struct{}

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// special forwards what package upstream cannot carry.
func (f *Forwarder) special(w http.ResponseWriter, r *http.Request, x *exchange) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer x.await(cancel)()
	f.proxy.ServeHTTP(w, r.WithContext(context.WithValue(ctx, exchangeKey{}, x)))
}

// rewrite makes the outgoing request; the address is set per attempt.
func rewrite(p *httputil.ProxyRequest) {
	x := exchangeOf(p.In)
	p.SetURL(&url.URL{Scheme: "http", Host: x.lease.Address})
	setRaw(p.Out.URL, x.Path, x.Query, x.Mark)
	for name := range p.Out.Header {
		if message.Ours(name) {
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
	transport := f.transport
	if isGRPC(req) {
		transport = f.http2
	}
	resp, err = transport.RoundTrip(out)
	if err != nil {
		return nil, notSent(), err
	}
	return resp, false, nil
}
