package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/edge/internal/upstream"
)

// plain says whether package upstream can carry the request.
func plain(r *http.Request) bool {
	return len(r.Trailer) == 0 && r.Header["Expect"] == nil && !isGRPC(r)
}

// isGRPC: such a call needs HTTP/2 all the way, with its trailers and with both sides talking at once. A caller that speaks it over
// HTTP/1 (gRPC-Web, Connect) needs nothing special.
func isGRPC(r *http.Request) bool {
	const media = "application/grpc"
	if r.ProtoMajor != 2 {
		return false
	}
	kind := r.Header.Get("Content-Type")
	return strings.HasPrefix(kind, media) && !strings.HasPrefix(kind[len(media):], "-web")
}

// plain forwards over a connection of the pool.
func (f *Forwarder) plain(w http.ResponseWriter, r *http.Request, x *exchange) {
	ctx := r.Context()
	if x.body != nil {
		with, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer x.await(cancel)()
		ctx = with
	}
	for f.once(ctx, w, r, x) {
	}
}

// once sends the request and passes the answer on. again: it has not been answered, and another replica, which x has now, may be
// sent it too.
func (f *Forwarder) once(ctx context.Context, w http.ResponseWriter, r *http.Request, x *exchange) (again bool) {
	conn, keep, err := f.sent(ctx, r, x)
	if err != nil {
		f.refused(w, x, err)
		return false
	}
	// A connection that is cut must not be used again, and one whose cut is under way neither.
	whole := false
	defer func() {
		if keep() && whole {
			conn.Put()
		} else {
			_ = conn.Close()
		}
	}()
	uploaded := func() bool { return true }
	if x.body != nil {
		uploaded = f.upload(w, r, x, conn)
		defer uploaded()
	}
	resp, err := conn.Answer(r.Method, func(info *http.Response) { inform(w, info) }) //nolint:bodyclose // its Close would read what is left; the connection is closed instead
	if err != nil && x.repeatable(r.Method, conn, x.reason(ctx, err)) && x.leaves(ctx) && x.another(false) {
		return true
	}
	if err == nil {
		err = x.answered(resp.Header)
	}
	if err != nil {
		f.refused(w, x, x.reason(ctx, err))
		return false
	}
	if !conn.Arrived(resp.ContentLength) {
		_ = conn.AnswerUntil(time.Time{}, time.Time{}) // fails on a connection that is closed, which the next read says
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		tunnel(ctx, w, resp, conn)
		return false
	}
	if err := f.relay(w, resp, conn); err != nil {
		panic(http.ErrAbortHandler)
	}
	whole = uploaded() && conn.Reusable(resp)
	return false
}

// repeatable says whether a request whose connection broke may go to another replica although it was sent (RFC 9110 §9.2.2, ADR 21):
// its method is idempotent and it has no body, and not a byte of an answer came. The replica must be one that goes away, too: see leaves.
func (x *exchange) repeatable(method string, conn *upstream.Conn, err error) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
	default:
		return false
	}
	broken := errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	return x.body == nil && broken && conn.Silent()
}

const (
	// toldWithin is how much later than its function an edge hears that a replica goes away: both learn it at the same moment, over
	// different ways.
	toldWithin = 150 * time.Millisecond
	lookEvery  = 5 * time.Millisecond
)

// leaves says whether the replica goes away, once the table has had time to say so.
func (x *exchange) leaves(ctx context.Context) bool {
	if !x.lease.Usable() {
		return true
	}
	late := time.NewTimer(toldWithin)
	defer late.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for !x.lease.Leaving() {
		select {
		case <-ctx.Done():
			return false
		case <-late.C:
			return false
		case <-look.C:
		}
	}
	return true
}

// sent gives a connection that the head of the request has been written to. The connection is closed when ctx ends, until keep is
// called, which says whether it was not.
func (f *Forwarder) sent(ctx context.Context, r *http.Request, x *exchange) (conn *upstream.Conn, keep func() bool, err error) {
	head := upstream.Head{Method: r.Method, Target: target(x), Length: r.ContentLength, Upgrade: upgradeOf(r)}
	for again := 0; ; {
		conn, err = f.pool.Get(ctx, x.lease.Address)
		if err != nil {
			var dialing *dial.Error
			switch {
			case ctx.Err() != nil:
				return nil, nil, context.Cause(ctx)
			case !errors.As(err, &dialing):
				return nil, nil, err
			case !x.another(dialing.Timeout()):
				return nil, nil, errors.Join(errAllRefused, err)
			}
			continue
		}
		if x.body == nil && x.watch.Start(r, conn) {
			keep = x.watch.Stop
		} else {
			attempt := conn
			keep = context.AfterFunc(ctx, func() { _ = attempt.Close() })
		}
		var deadline time.Time // with a body it is a timer's to say: see await
		if x.body == nil {
			deadline = x.Began.Add(x.HeaderTimeout)
		}
		_ = conn.AnswerUntil(x.Began, deadline) // fails on a connection that is closed, which the write says
		head.Host = x.lease.Address
		sent, err := conn.Send(head, func(b []byte) []byte { return x.fields(b, r) })
		if err == nil {
			return conn, keep, nil
		}
		keep()
		_ = conn.Close()
		if cause := x.over(ctx); cause != nil {
			return nil, nil, cause
		}
		if sent || again == idlePerReplica {
			return nil, nil, err
		}
		again++ // an idle connection that its function had closed; there may be more of them
	}
}

// over says what has ended the exchange; nil: nothing has.
func (x *exchange) over(ctx context.Context) error {
	if x.watch.Gone() {
		return context.Canceled // as the context will say in a moment
	}
	return context.Cause(ctx)
}

// reason of a failed exchange: what ended it, if something did, and not what that looked like on the connection.
func (x *exchange) reason(ctx context.Context, err error) error {
	if cause := x.over(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errNoHeaders
	}
	return err
}

// upload the caller's body while the answer is awaited and passed on: the two may talk. The function it returns ends that, and says
// whether the body went out whole.
func (f *Forwarder) upload(w http.ResponseWriter, r *http.Request, x *exchange, conn *upstream.Conn) (ended func() bool) {
	done, whole := make(chan struct{}), false
	go func() {
		defer close(done)
		buffer := f.buffers.take()
		defer f.buffers.give(buffer)
		readErr, writeErr := conn.SendBody(&watchedBody{r: r.Body, x: x}, r.ContentLength, *buffer)
		if readErr != nil {
			x.cancel(readErr)
		}
		whole = readErr == nil && writeErr == nil
	}()
	return func() bool {
		select {
		case <-done:
		default: // the function has answered without it, or is gone
			_ = conn.Close()
			x.finishBody(w, r)
			<-done
		}
		return whole
	}
}

// relay an answer as it comes: what the function has written goes on when nothing more of it is there.
func (f *Forwarder) relay(w http.ResponseWriter, resp *http.Response, conn *upstream.Conn) error {
	out, connection := w.Header(), resp.Header["Connection"]
	for name, values := range resp.Header {
		if hop(name) || listed(connection, name) {
			continue
		}
		if before := out[name]; len(before) > 0 {
			values = append(before[:len(before):len(before)], values...)
		}
		out[name] = values
	}
	if _, said := out["Content-Type"]; !said {
		out["Content-Type"] = nil // or net/http guesses one
	}
	for name := range resp.Trailer {
		out.Add("Trailer", name)
	}
	if guarded, ok := w.(*guardedWriter); ok && resp.ContentLength >= 0 && resp.ContentLength <= unguarded {
		guarded.off = true
	}
	announced := len(resp.Trailer)
	w.WriteHeader(resp.StatusCode)
	if resp.Body == http.NoBody {
		return nil
	}
	if err := f.relayBody(w, resp, conn); err != nil {
		return err
	}
	if len(resp.Trailer) == 0 {
		return nil
	}
	if err := flush(w); err != nil { // or a short body would get a length, and no trailers
		return err
	}
	for name, values := range resp.Trailer {
		if len(resp.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		out[name] = values
	}
	return nil
}

func (f *Forwarder) relayBody(w http.ResponseWriter, resp *http.Response, conn *upstream.Conn) error {
	if conn.Buffered() == 0 {
		if err := flush(w); err != nil {
			return err
		}
	}
	pooled := f.buffers.take()
	defer f.buffers.give(pooled)
	buffer := *pooled
	for left := resp.ContentLength; ; {
		n, err := resp.Body.Read(buffer)
		if n > 0 {
			if left > 0 {
				left -= int64(n)
			}
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
			if err == nil && left != 0 && conn.Buffered() == 0 {
				if err := flush(w); err != nil {
					return err
				}
			}
		}
		if err == io.EOF { //nolint:errorlint // a Reader gives EOF itself
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func flush(w http.ResponseWriter) error {
	if guarded, ok := w.(*guardedWriter); ok {
		guarded.arm()
		return guarded.controller().Flush()
	}
	return http.NewResponseController(w).Flush()
}

// inform the caller of what the function says before its answer.
func inform(w http.ResponseWriter, info *http.Response) {
	if info.StatusCode == http.StatusContinue {
		return // nobody asked
	}
	out := w.Header()
	kept := out.Clone()
	for name, values := range info.Header {
		if !hop(name) && !message.Ours(name) {
			out[name] = values
		}
	}
	w.WriteHeader(info.StatusCode)
	clear(out)
	for name, values := range kept {
		out[name] = values
	}
}

// target of the request line.
func target(x *exchange) string {
	if x.Query == "" && !x.Mark {
		return x.Path
	}
	return x.Path + "?" + x.Query
}

// fields are the header fields the function gets.
func (x *exchange) fields(b []byte, r *http.Request) []byte {
	connection := r.Header["Connection"]
	for name, values := range r.Header {
		if hop(name) || message.Ours(name) || forwarding(name) || listed(connection, name) {
			continue
		}
		for _, value := range values {
			b = upstream.AppendField(b, name, value)
		}
	}
	if te := r.Header["Te"]; listed(te, "trailers") {
		b = upstream.AppendField(b, "Te", "trailers")
	}
	return x.appendForwarding(b, r)
}

// appendForwarding says who called, and what for.
func (x *exchange) appendForwarding(b []byte, r *http.Request) []byte {
	var before http.Header // of a trusted proxy; nil: there is none
	if x.KeepForwarded {
		before = r.Header
	}
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if prior := before["X-Forwarded-For"]; err == nil {
		b = upstream.AppendField(b, "X-Forwarded-For", strings.Join(append(prior[:len(prior):len(prior)], client), ", "))
	}
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	b = appendOr(b, before, "X-Forwarded-Host", r.Host)
	b = appendOr(b, before, "X-Forwarded-Proto", proto)
	prefix := x.Prefix
	if before != nil {
		prefix = route.JoinPrefix(before.Get("X-Forwarded-Prefix"), prefix)
	}
	if prefix != "" {
		b = upstream.AppendField(b, "X-Forwarded-Prefix", prefix)
	}
	return appendOr(b, before, "Forwarded", "")
}

// appendOr writes the field as it was before, or else the value, where there is one.
func appendOr(b []byte, before http.Header, name, value string) []byte {
	if values, ok := before[name]; ok {
		for _, v := range values {
			b = upstream.AppendField(b, name, v)
		}
		return b
	}
	if value == "" {
		return b
	}
	return upstream.AppendField(b, name, value)
}

// hop says whether a field is of one connection only, or of the framing, which is written anew on each. Names are canonical.
func hop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// forwarding says whether a field is one of those that fields writes itself.
func forwarding(name string) bool {
	switch name {
	case "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Forwarded", "Content-Length", "Host":
		return true
	}
	return false
}

// listed says whether a comma-separated list has the name.
func listed(lists []string, name string) bool {
	for _, list := range lists {
		for item := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(item), name) {
				return true
			}
		}
	}
	return false
}
