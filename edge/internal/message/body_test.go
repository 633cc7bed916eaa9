package message

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// endless counts how much of it was read.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.read.Add(int64(len(p)))
	return len(p), nil
}

func TestBodyIsReadWithinItsLimit(t *testing.T) {
	t.Parallel()
	const limit = 256 << 10
	for name, c := range map[string]struct {
		size    int64
		chunked bool
		want    error
	}{
		"empty":             {0, false, nil},
		"empty, chunked":    {0, true, nil},
		"small":             {10, false, nil},
		"the limit":         {limit, false, nil},
		"the limit chunked": {limit, true, nil},
		"one more":          {limit + 1, false, ErrTooLarge},
		"one more, chunked": {limit + 1, true, ErrTooLarge},
	} {
		for _, method := range []string{"POST", "GET", "DELETE"} {
			sent := bytes.Repeat([]byte("x"), int(c.size))
			r := httptest.NewRequest(method, "/", io.MultiReader(bytes.NewReader(sent)))
			if r.ContentLength = c.size; c.chunked {
				r.ContentLength = -1
			}
			budget := NewBudget(1, limit+2*readStep)
			share, err := budget.Begin()
			if err != nil {
				t.Fatal(err)
			}
			body, err := Body(httptest.NewRecorder(), r, limit, share)
			if !errors.Is(err, c.want) || err == nil && !bytes.Equal(body, sent) {
				t.Errorf("%s %s: %d bytes, %v; want %v", method, name, len(body), err, c.want)
			}
			if share.Release(); budget.bytes.Load() != 0 || budget.calls.Load() != 0 {
				t.Errorf("%s %s: the budget did not get everything back", method, name)
			}
		}
	}
}

// What fits is as Body reads it; of the rest nothing is read ahead but what it took to find out.
func TestBodyOrRest(t *testing.T) {
	t.Parallel()
	const inline, limit = 100 << 10, 400 << 10
	for name, c := range map[string]struct {
		size    int64
		chunked bool
		rest    bool
		err     error // of BodyOrRest, or of the rest
	}{
		"empty": {0, false, false, nil}, "empty, chunked": {0, true, false, nil},
		"inline": {inline, false, false, nil}, "inline, chunked": {inline, true, false, nil},
		"more": {inline + 1, false, true, nil}, "more, chunked": {inline + 1, true, true, nil},
		"the limit": {limit, false, true, nil}, "the limit, chunked": {limit, true, true, nil},
		"over": {limit + 1, false, false, ErrTooLarge}, "over, chunked": {limit + 1, true, true, ErrTooLarge},
	} {
		sent := make([]byte, c.size)
		for i := range sent {
			sent[i] = byte(i >> 8)
		}
		source := bytes.NewReader(append(sent, make([]byte, limit)...)) // what should not be read is there
		r := httptest.NewRequest("POST", "/", io.LimitReader(source, c.size))
		if c.err != nil {
			r = httptest.NewRequest("POST", "/", io.NopCloser(source))
		}
		if r.ContentLength = c.size; c.chunked {
			r.ContentLength = -1
		}
		budget := NewBudget(1, inline+2*readStep)
		share, _ := budget.Begin()
		w := httptest.NewRecorder()
		body, rest, err := BodyOrRest(w, r, inline, limit, share)
		if (rest != nil) != c.rest {
			t.Errorf("%s: rest %v, %v", name, rest != nil, err)
			continue
		}
		if rest != nil {
			if !c.chunked && source.Len() != int(c.size)+limit {
				t.Errorf("%s: %d bytes were read although the length was known", name, int(c.size)+limit-source.Len())
			}
			rest.Within(time.Minute)
			body, err = io.ReadAll(rest)
			rest.Close()
		}
		if !errors.Is(err, c.err) || err == nil && !bytes.Equal(body, sent) {
			t.Errorf("%s: %d bytes, %v; want %v", name, len(body), err, c.err)
		}
		if read := int(c.size) + limit - source.Len(); read > limit+64<<10 {
			t.Errorf("%s: %d bytes were read of at most %d", name, read, limit)
		}
		if closes := w.Header().Get("Connection") == "close"; closes != (c.err != nil) {
			t.Errorf("%s: connection closes: %v", name, closes)
		}
	}
}

func TestABodyElsewhereHasAFingerprintOfItsOwn(t *testing.T) {
	t.Parallel()
	r := &wire.StoredRequest{Method: "POST", Path: "/", Body: []byte("body")}
	sum := sha256.Sum256([]byte("body"))
	first := FingerprintOf(r, 4, sum)
	if again := FingerprintOf(r, 4, sum); first != again {
		t.Error("two of one request")
	}
	other := sum
	other[0]++
	for what, same := range map[string]bool{
		"inline": first == Fingerprint(r), "another body": first == FingerprintOf(r, 4, other), "another length": first == FingerprintOf(r, 5, sum),
		"another path": first == FingerprintOf(&wire.StoredRequest{Method: "POST", Path: "/x"}, 4, sum),
	} {
		if same {
			t.Error("one fingerprint for " + what)
		}
	}
}

func TestBodyStopsReadingAtTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	from := &endless{}
	r := httptest.NewRequest("POST", "/", from)
	r.ContentLength = -1
	share, _ := NewBudget(1, 1<<30).Begin()
	if _, err := Body(httptest.NewRecorder(), r, limit, share); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	if n := from.read.Load(); n > limit+64<<10 {
		t.Errorf("%d bytes were read", n)
	}
}

func TestBudgetIsShared(t *testing.T) {
	t.Parallel()
	budget := NewBudget(2, 100)
	one, err := budget.Begin()
	if err != nil {
		t.Fatal(err)
	}
	two, err := budget.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := budget.Begin(); !errors.Is(err, ErrFull) {
		t.Errorf("a third of two: %v", err)
	}
	if err := one.Take(60); err != nil {
		t.Error(err)
	}
	r := httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, 50)))
	if _, err := Body(httptest.NewRecorder(), r, 100, two); !errors.Is(err, ErrFull) {
		t.Errorf("110 bytes of 100: %v", err)
	}
	one.Release()
	one.Release()
	r = httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, 50)))
	if _, err := Body(httptest.NewRecorder(), r, 100, two); err != nil {
		t.Error(err)
	}
}

func TestASlowWriterHasNoDeadlineAndThatIsFine(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder() // has no SetReadDeadline
	share, _ := NewBudget(1, 10).Begin()
	body, err := Body(w, httptest.NewRequest(http.MethodPost, "/", bytes.NewReader([]byte("x"))), 10, share)
	if err != nil || string(body) != "x" {
		t.Errorf("%q %v", body, err)
	}
}
