// Package message holds a caller's request as a value: taken from the caller within limits, kept or shared, and sent to a
// replica later, once, as it was. Async calls and events both live on it.
package message

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Headers of ours that a function receives with an async call. The case is upstream's, clients compare it.
const (
	HeaderElementID = "SlimFaas-Element-Id"
	HeaderLastTry   = "Slimfaas-Last-Try"
	HeaderTryNumber = "SlimFaas-Try-Number"
)

// hopByHop headers belong to one connection (RFC 9110 §7.6.1 and httputil's list). Content-Length and Expect go with them:
// the body is whole by then, and its length is known.
var hopByHop = map[string]bool{
	"Connection": true, "Proxy-Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "Http2-Settings": true,
	"Content-Length": true, "Expect": true,
}

// Headers returns what of a caller's headers goes on to functions, sorted by name: everything but hop-by-hop headers, those
// Connection names, and the SlimFaas-* and X-SlimFaas-* ones, which only SlimFaas may set.
func Headers(from http.Header) []*wire.Header {
	named := connectionNames(from["Connection"])
	names := make([]string, 0, len(from))
	for name := range from {
		if !hopByHop[name] && !slices.Contains(named, name) && !Ours(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	kept, all := make([]*wire.Header, len(names), len(names)+forwarding), make([]wire.Header, len(names))
	for i, name := range names {
		kept[i] = &all[i]
		kept[i].Name, kept[i].Values = name, slices.Clip(from[name])
	}
	return kept
}

// connectionNames are the headers, by canonical name, that Connection says are of one connection.
func connectionNames(lines []string) (names []string) {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			names = append(names, textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)))
		}
	}
	return names
}

// Ours says whether a header name is reserved for SlimFaas, in any case.
func Ours(name string) bool {
	const prefix, extended = "slimfaas-", "x-slimfaas-"
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) ||
		len(name) >= len(extended) && strings.EqualFold(name[:len(extended)], extended)
}

// forwarding is how many headers From says itself, at most.
const forwarding = 4

// From makes the value of a request whose body was read: path and query raw, as the function shall see them. The X-Forwarded-*
// headers are ours to say, as on sync calls: what a peer sends there is kept only when it is a trusted proxy. prefix is what stands
// before path where the function is called synchronously; empty: nothing is said of it.
func From(r *http.Request, path, query string, body []byte, prefix string, viaProxy bool) *wire.StoredRequest {
	stored := &wire.StoredRequest{Method: r.Method, Path: path, Query: query, Headers: Headers(r.Header), Body: body}
	if !viaProxy {
		drop(stored, "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix")
	}
	if peer, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		for _, line := range slices.Backward(r.Header["X-Forwarded-For"]) {
			if viaProxy {
				peer = line + ", " + peer
			}
		}
		set(stored, "X-Forwarded-For", peer)
	}
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	setDefault(stored, "X-Forwarded-Host", r.Host)
	setDefault(stored, "X-Forwarded-Proto", proto)
	if before := r.Header.Get("X-Forwarded-Prefix"); viaProxy {
		prefix = route.JoinPrefix(before, prefix)
	}
	if prefix != "" {
		set(stored, "X-Forwarded-Prefix", prefix)
	}
	return stored
}

func drop(stored *wire.StoredRequest, names ...string) {
	stored.Headers = slices.DeleteFunc(stored.Headers, func(h *wire.Header) bool { return slices.Contains(names, h.GetName()) })
}

func set(stored *wire.StoredRequest, name, value string) {
	drop(stored, name)
	stored.Headers = append(stored.Headers, &wire.Header{Name: name, Values: []string{value}})
}

func setDefault(stored *wire.StoredRequest, name, value string) {
	if !has(stored, name) {
		set(stored, name, value)
	}
}

func has(stored *wire.StoredRequest, name string) bool {
	return slices.ContainsFunc(stored.Headers, func(h *wire.Header) bool { return h.GetName() == name })
}

// outgoing builds the request to the replica at address (host:port). Path and query go out byte for byte. It is built so that
// net/http never sends it a second time by itself.
func outgoing(ctx context.Context, address string, stored *wire.StoredRequest, elsewhere *StoredBody) (*http.Request, error) {
	target, err := target(address, stored.GetPath(), stored.GetQuery())
	if err != nil {
		return nil, err
	}
	req := (&http.Request{
		Method: stored.GetMethod(), URL: target, Host: address,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, len(stored.GetHeaders())+4),
	}).WithContext(ctx)
	for _, h := range stored.GetHeaders() {
		key := textproto.CanonicalMIMEHeaderKey(h.GetName())
		switch {
		case hopByHop[key]:
			continue
		case key == "Idempotency-Key" || key == "X-Idempotency-Key":
			// net/http replays requests that carry this key; it looks it up in canonical case only.
			key = strings.ToLower(key)
		}
		req.Header[key] = append(req.Header[key], h.GetValues()...)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = []string{""} // none, instead of Go's own
	}
	if elsewhere != nil {
		req.ContentLength = elsewhere.Size
		req.Body = elsewhere.Open(ctx)
	} else if body := stored.GetBody(); len(body) > 0 {
		req.ContentLength = int64(len(body))
		req.Body = io.NopCloser(bytes.NewReader(body))
	} else if replayed[req.Method] {
		// A body that turns out to be empty: nothing is sent for it, and net/http does not take the request for replayable.
		req.Body = io.NopCloser(bytes.NewReader(nil))
	}
	return req, nil
}

// replayed are the methods that net/http sends again by itself on a reused connection that breaks, when they have no body.
var replayed = map[string]bool{"": true, http.MethodGet: true, http.MethodHead: true, http.MethodOptions: true, http.MethodTrace: true}

func target(address, path, query string) (*url.URL, error) {
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	u := &url.URL{Scheme: "http", Host: address, RawQuery: query}
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return nil, fmt.Errorf("reading the path of the request: %w", err)
	}
	u.Path, u.RawPath = decoded, path
	if u.EscapedPath() == path {
		return u, nil
	}
	// Bytes that net/url would encode anew: the opaque form goes out as it is. After a leading "//" it looks for a host, so
	// that one goes out in absolute form, which every server reads.
	if u.Opaque = path; strings.HasPrefix(path, "//") {
		u.Opaque = "//" + address + path
	}
	return u, nil
}
