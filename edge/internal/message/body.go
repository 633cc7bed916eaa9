package message

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// Errors of Body.
var (
	ErrTooLarge = errors.New("the request body is over the limit")
	ErrFull     = errors.New("too many requests are being taken at this moment")
)

// bodyIdle is how long a caller may send nothing of its body before the request is given up.
const bodyIdle = 30 * time.Second

// readStep is how much is read, and taken from the budget, at a time when the length is not declared, in bytes.
const readStep = 64 << 10

// Budget bounds what requests held in memory may take together. The zero Budget admits nothing.
type Budget struct {
	maxBytes, maxCalls int64
	bytes, calls       atomic.Int64
}

// NewBudget returns a budget of so many requests and bytes of body at a time.
func NewBudget(maxCalls, maxBytes int64) *Budget {
	return &Budget{maxCalls: maxCalls, maxBytes: maxBytes}
}

// Calls is how many requests have a place.
func (b *Budget) Calls() int64 { return b.calls.Load() }

// Share is what one request has taken from a Budget. Give it back with Release. Not safe for concurrent use.
type Share struct {
	of    *Budget
	bytes int64
}

// Begin takes the place of one request, or answers ErrFull.
func (b *Budget) Begin() (*Share, error) {
	if b.calls.Add(1) > b.maxCalls {
		b.calls.Add(-1)
		return nil, ErrFull
	}
	return &Share{of: b}, nil
}

// Take adds n bytes to the share, or answers ErrFull and adds nothing.
func (s *Share) Take(n int64) error {
	if s.of.bytes.Add(n) > s.of.maxBytes {
		s.of.bytes.Add(-n)
		return ErrFull
	}
	s.bytes += n
	return nil
}

// Release gives everything back. Only the first call does.
func (s *Share) Release() {
	if s.of == nil {
		return
	}
	s.of.bytes.Add(-s.bytes)
	s.of.calls.Add(-1)
	s.of = nil
}

// Body reads the whole body of a request, of any method, within limit and share. After ErrTooLarge or ErrFull the connection
// is closed behind the answer, so that the rest of the body is never read.
func Body(w http.ResponseWriter, r *http.Request, limit int64, share *Share) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, nil
	}
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, ErrTooLarge
	}
	body, err := read(w, r, limit, share)
	if err != nil {
		w.Header().Set("Connection", "close")
	}
	return body, err
}

// BodyOrRest reads the body of a request as Body does, if it has at most inline bytes. Of a larger one, up to limit, it gives what
// is still to be read, with what was read already in front of it.
func BodyOrRest(w http.ResponseWriter, r *http.Request, inline, limit int64, share *Share) ([]byte, *Rest, error) {
	if inline >= limit || r.Body == nil || r.ContentLength >= 0 && r.ContentLength <= inline {
		body, err := Body(w, r, limit, share)
		return body, nil, err
	}
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, nil, ErrTooLarge
	}
	rest := newRest(w, r, limit)
	if r.ContentLength > inline {
		return nil, rest, nil
	}
	var body []byte
	for int64(len(body)) <= inline {
		if len(body) == cap(body) {
			if err := share.Take(readStep); err != nil {
				rest.Close()
				return nil, nil, rest.fail(err)
			}
			body = append(make([]byte, 0, cap(body)+readStep), body...)
		}
		n, err := rest.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			rest.Close()
			return body, nil, nil
		case err != nil:
			rest.Close()
			return nil, nil, err
		}
	}
	rest.begin = body
	return nil, rest, nil
}

// Rest is a body that is read while it comes: errors are ErrTooLarge, or that it broke off or came too slowly.
type Rest struct {
	w       http.ResponseWriter
	control *http.ResponseController
	from    io.Reader
	begin   []byte    // read already
	slow    time.Time // a Read that has not come to its end by then is too slow; zero: none
}

func newRest(w http.ResponseWriter, r *http.Request, limit int64) *Rest {
	return &Rest{w: w, control: http.NewResponseController(w), from: http.MaxBytesReader(w, r.Body, limit)}
}

// Within gives the reads from now on so long together: a caller that sends a byte now and then holds nothing for ever.
func (r *Rest) Within(t time.Duration) { r.slow = time.Now().Add(t) }

// Read implements io.Reader.
func (r *Rest) Read(p []byte) (int, error) {
	if len(r.begin) > 0 {
		n := copy(p, r.begin)
		if r.begin = r.begin[n:]; len(r.begin) == 0 {
			r.begin = nil // lets it go
		}
		return n, nil
	}
	deadline := time.Now().Add(bodyIdle)
	if !r.slow.IsZero() && r.slow.Before(deadline) {
		deadline = r.slow
	}
	_ = r.control.SetReadDeadline(deadline)
	n, err := r.from.Read(p)
	var large *http.MaxBytesError
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return n, err
	case errors.As(err, &large):
		return n, r.fail(ErrTooLarge)
	default:
		return n, r.fail(fmt.Errorf("reading the request body: %w", err))
	}
}

// fail closes the connection behind the answer, so that the rest is never read.
func (r *Rest) fail(err error) error {
	r.w.Header().Set("Connection", "close")
	return err
}

// Abandon says that the rest is not wanted: the connection is closed behind the answer.
func (r *Rest) Abandon() { _ = r.fail(nil) }

// Close takes the deadline back: without one left behind, net/http watches for the caller's going away again.
func (r *Rest) Close() { _ = r.control.SetReadDeadline(time.Time{}) }

func read(w http.ResponseWriter, r *http.Request, limit int64, share *Share) ([]byte, error) {
	if r.ContentLength > 0 {
		if err := share.Take(r.ContentLength); err != nil {
			return nil, err
		}
	}
	control := http.NewResponseController(w)
	// Without a deadline left behind, net/http watches for the caller's going away again. Writers that have none (tests) say so.
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	from := http.MaxBytesReader(w, r.Body, limit)
	body := make([]byte, 0, max(r.ContentLength, 0)+1) // one spare byte: the read that finds the end needs room
	for {
		if len(body) == cap(body) {
			step := int64(readStep)
			if err := share.Take(step); err != nil {
				return nil, err
			}
			body = append(make([]byte, 0, int64(cap(body))+step), body...)
		}
		_ = control.SetReadDeadline(time.Now().Add(bodyIdle))
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		var large *http.MaxBytesError
		switch {
		case errors.Is(err, io.EOF):
			return body, nil
		case errors.As(err, &large):
			return nil, ErrTooLarge
		case err != nil:
			return nil, fmt.Errorf("reading the request body: %w", err)
		}
	}
}
