package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
)

// Paces of the questions while the answer is awaited, and how many failures make a ready replica not ready: one slow
// answer on a busy laptop is no outage. A refused connection is believed at once.
const (
	askEarly    = 25 * time.Millisecond
	askStarting = 100 * time.Millisecond
	earlyFor    = 2 * time.Second
	askAgain    = 250 * time.Millisecond
	failures    = 3
)

// health follows the answers of one process. It has no clock: the time comes with each answer.
type health struct {
	conf   manifest.Health
	since  time.Time // start, or when it ceased to be ready
	ready  bool
	was    bool // ready once
	failed int  // in a row
}

// answer takes one answer and says whether ready changed.
func (h *health) answer(now time.Time, err error) (changed bool) {
	if err == nil {
		changed, h.ready, h.was, h.failed = !h.ready, true, true, 0
		return changed
	}
	h.failed++
	if h.ready && (h.failed >= failures || errors.Is(err, syscall.ECONNREFUSED)) {
		h.ready, h.since = false, now
		return true
	}
	return false
}

// hopeless: not ready for longer than a start may take; the process is replaced.
func (h *health) hopeless(now time.Time) bool {
	return !h.ready && now.Sub(h.since) > h.conf.StartupTimeout
}

// pause until the next question.
func (h *health) pause(now time.Time) time.Duration {
	switch {
	case h.ready && h.failed == 0:
		return h.conf.Period
	case h.was:
		return min(h.conf.Period, askAgain)
	case now.Sub(h.since) < earlyFor:
		return askEarly
	}
	return askStarting
}

// asker is the client for health questions: a connection each, no redirects, no proxy.
var asker = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask is one question; nil means 2xx.
func ask(ctx context.Context, method, url string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", url, err)
	}
	res, err := asker.Do(req)
	if err != nil {
		return err // says method and address already
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 4096) // the answer is its status
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("%s %s answered %d", method, url, res.StatusCode)
	}
	return nil
}
