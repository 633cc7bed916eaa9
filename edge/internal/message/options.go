package message

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// Headers in which a caller of an async call says what it wants beyond it, in net/http's case.
const (
	HeaderIdempotencyKey = "Idempotency-Key"
	HeaderDelay          = "Slimfaas-Delay"
	HeaderMaxAge         = "Slimfaas-Max-Age"
	HeaderKeepResult     = "Slimfaas-Keep-Result"
)

// CallOptions are what a caller wants of an async call. The zero value asks for nothing.
type CallOptions struct {
	Delay      time.Duration // before the first try
	MaxAge     time.Duration // no try begins later
	KeepResult time.Duration // how long what the function answers is kept
	Key        string        // idempotency key
}

// OptionsFrom reads the headers of a call. Its error is for the caller.
func OptionsFrom(h http.Header) (o CallOptions, err error) {
	var errs []error
	for _, x := range []struct {
		name, shown string
		to          *time.Duration
		least, most time.Duration
	}{
		{HeaderDelay, "SlimFaas-Delay", &o.Delay, 0, wire.MaxDelay},
		{HeaderMaxAge, "SlimFaas-Max-Age", &o.MaxAge, time.Millisecond, wire.MaxAge},
		{HeaderKeepResult, "SlimFaas-Keep-Result", &o.KeepResult, time.Millisecond, wire.MaxKeepResult},
	} {
		values := h[x.name]
		if len(values) == 0 {
			continue
		}
		d, ok := duration(values[0])
		if len(values) > 1 || !ok || d < x.least || d > x.most {
			errs = append(errs, fmt.Errorf("%s is one duration such as 90s or 1h30m, or whole seconds, from %s to %s", x.shown, x.least, x.most))
		}
		*x.to = d
	}
	if values := h[HeaderIdempotencyKey]; len(values) > 0 {
		o.Key = values[0]
		if len(values) > 1 || o.Key == "" || len(o.Key) > wire.MaxIdempotencyKey || !utf8.ValidString(o.Key) {
			errs = append(errs, fmt.Errorf("%s is one value of 1 to %d bytes of UTF-8", HeaderIdempotencyKey, wire.MaxIdempotencyKey))
		}
	}
	return o, errors.Join(errs...)
}

func duration(text string) (time.Duration, bool) {
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	d, err := time.ParseDuration(text)
	return d, err == nil
}

// Fingerprint tells a repeat of a request from another one under the same idempotency key: method, path, query, what the body is
// and the body. Headers that differ from one sending to the next (dates, traces, tokens) do not count.
func Fingerprint(r *wire.StoredRequest) [wire.RequestHashSize]byte {
	h, write := fingerprint(r)
	write(r.GetBody())
	return [wire.RequestHashSize]byte(h.Sum(nil))
}

// FingerprintOf is Fingerprint of a request whose body is not in it: only its length and SHA-256 are known. It is never that of a
// request with its body.
func FingerprintOf(r *wire.StoredRequest, size uint64, body [sha256.Size]byte) [wire.RequestHashSize]byte {
	h, write := fingerprint(r)
	write([]byte("body elsewhere"))
	write(binary.BigEndian.AppendUint64(body[:], size))
	return [wire.RequestHashSize]byte(h.Sum(nil))
}

// fingerprint of all but the body; write adds to it.
func fingerprint(r *wire.StoredRequest) (h hash.Hash, write func([]byte)) {
	h = sha256.New()
	write = func(part []byte) {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // a hash never fails
		_, _ = h.Write(part)
	}
	for _, part := range []string{r.GetMethod(), r.GetPath(), r.GetQuery()} {
		write([]byte(part))
	}
	for _, name := range []string{"Content-Type", "Content-Encoding"} {
		for _, header := range r.GetHeaders() {
			if header.GetName() == name {
				for _, value := range header.GetValues() {
					write([]byte(value))
				}
			}
		}
		write(nil)
	}
	return h, write
}
