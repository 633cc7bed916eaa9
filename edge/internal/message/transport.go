package message

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// idleTimeout is short because a function that closes an idle connection just as a try goes out costs that try.
	idleTimeout     = time.Second
	idlePerReplica  = 32
	maxAnswerHeader = 64 << 10
	// maxAnswerBody is how much of an answer nobody will see is read so that the connection can be used again, in bytes.
	maxAnswerBody = 1 << 20
)

// Transport sends stored requests, each at most once: no redirects, no cookies, no proxy from the environment, no
// replay by net/http. Close its idle connections when done.
type Transport struct {
	http *http.Transport
}

// NewTransport returns a transport with the house limits.
func NewTransport() *Transport {
	return &Transport{http: &http.Transport{
		DialContext:            dial.Patiently,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    idlePerReplica,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}}
}

// Close closes the idle connections.
func (t *Transport) Close() { t.http.CloseIdleConnections() }

// Answer is what is kept of a function's answer.
type Answer struct {
	Status     int
	RetryAfter string // the header as the function sent it
	// Stored is the answer for its caller to read later; nil unless it was sent with SendKeeping.
	Stored *wire.StoredAnswer
}

// Send sends the stored request to address and waits for the whole answer, whose body is dropped (at most 1 MiB of it is
// waited for). The headers decide: a body that breaks off or outlives ctx changes nothing. extra (may be nil) is set over the
// request's own headers, in the case given.
func (t *Transport) Send(ctx context.Context, address string, request *wire.StoredRequest, extra http.Header) (Answer, error) {
	return t.SendKeeping(ctx, address, request, nil, extra, nil)
}

// StoredBody is a body that is not in its request, and never in memory as a whole: it is read while it is sent.
type StoredBody struct {
	Size int64 // over 0
	// Open gives it from its beginning. The reader is closed, perhaps after Send has returned, and ends with ctx.
	Open func(ctx context.Context) io.ReadCloser
}

// SendKeeping is Send, with a body from elsewhere unless it is nil, and keeps the answer with a body of at most wire.MaxAnswerBody within share, which has it from then on. A
// nil share keeps nothing.
func (t *Transport) SendKeeping(
	ctx context.Context, address string, request *wire.StoredRequest, body *StoredBody, extra http.Header, share *Share,
) (Answer, error) {
	for attempt := 0; ; attempt++ {
		answer, unsent, err := t.send(ctx, address, request, body, extra, share)
		// An idle connection that the function had closed: not a byte went out, so this is still the first time.
		if err != nil && unsent && attempt < idlePerReplica && ctx.Err() == nil {
			continue
		}
		return answer, err
	}
}

// send reports unsent when it failed on a reused connection before a byte was written to it.
func (t *Transport) send(
	ctx context.Context, address string, request *wire.StoredRequest, body *StoredBody, extra http.Header, share *Share,
) (Answer, bool, error) {
	notSent := func() bool { return false }
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, ok := info.Conn.(*dial.Conn); ok && info.Reused {
			notSent = conn.Request(true)
		}
	}}
	req, err := outgoing(httptrace.WithClientTrace(ctx, trace), address, request, body)
	if err != nil {
		return Answer{}, false, err
	}
	for name, values := range extra {
		req.Header[name] = values
	}
	resp, err := t.http.RoundTrip(req)
	if err != nil {
		return Answer{}, notSent(), err
	}
	answer := Answer{Status: resp.StatusCode, RetryAfter: resp.Header.Get("Retry-After")}
	if share != nil {
		answer.Stored = stored(resp, share)
	} else {
		_, _ = io.CopyN(io.Discard, resp.Body, maxAnswerBody)
	}
	_ = resp.Body.Close()
	return answer, false, nil
}

// Explain says in a few words why no answer came, without addresses, fit to be stored and shown. timeout is what ctx allowed.
func Explain(err error, timeout time.Duration) string {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial" && op.Timeout(): // first: it is a DeadlineExceeded too
		return "no connection within " + dial.AgainFor.String()
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer within " + timeout.String()
	case errors.Is(err, context.Canceled):
		return "the try was cancelled"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset by the function"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), err != nil && strings.Contains(err.Error(), "server closed idle connection"):
		return "the function closed the connection without an answer"
	case errors.As(err, &dns):
		return "the replica's host name was not found"
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	text := err.Error()
	return strings.ToValidUTF8(text[:min(len(text), 300)], "?") // cut first: half a letter is no letter, and no message may carry it
}

// Unreachable says that no connection came about.
func Unreachable(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
