package message

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
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
