package fleet

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
)

func TestHealthFollowsTheAnswers(t *testing.T) {
	t.Parallel()
	begin := time.Unix(0, 0)
	slow, refused := errors.New("timeout"), fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	for _, c := range []struct {
		name     string
		answers  []error // one second apart
		ready    bool
		hopeless bool
	}{
		{"not yet", []error{refused, refused}, false, false},
		{"ready at the first good answer", []error{refused, nil}, true, false},
		{"one slow answer is no outage", []error{nil, slow, slow}, true, false},
		{"three are", []error{nil, slow, slow, slow}, false, false},
		{"a refusal is believed at once", []error{nil, refused}, false, false},
		{"a good answer starts counting anew", []error{nil, slow, slow, nil, slow, slow}, true, false},
		{"ready again", []error{nil, refused, nil}, true, false},
		{"never ready for too long", []error{slow, slow, slow, slow, slow, slow}, false, true},
		{"not ready any more for too long", []error{nil, refused, slow, slow, slow, slow, slow, slow}, false, true},
	} {
		h := &health{conf: manifest.Health{Period: 3 * time.Second, StartupTimeout: 5 * time.Second}, since: begin}
		now := begin
		for _, answer := range c.answers {
			now = now.Add(time.Second)
			was := h.ready
			if changed := h.answer(now, answer); changed != (h.ready != was) {
				t.Errorf("%s: says changed %v, ready went from %v to %v", c.name, changed, was, h.ready)
			}
		}
		if h.ready != c.ready || h.hopeless(now) != c.hopeless {
			t.Errorf("%s: ready %v, hopeless %v", c.name, h.ready, h.hopeless(now))
		}
	}
}

func TestTheFirstAnswerIsAskedForSoonAndLaterOnesSeldom(t *testing.T) {
	t.Parallel()
	begin := time.Unix(0, 0)
	h := &health{conf: manifest.Health{Period: 3 * time.Second}, since: begin}
	steps := []struct {
		at   time.Duration
		err  error
		want time.Duration
	}{
		{time.Millisecond, syscall.ECONNREFUSED, askEarly},
		{3 * time.Second, syscall.ECONNREFUSED, askStarting},
		{4 * time.Second, nil, 3 * time.Second},
		{7 * time.Second, errors.New("slow"), askAgain},
	}
	for _, s := range steps {
		h.answer(begin.Add(s.at), s.err)
		if got := h.pause(begin.Add(s.at)); got != s.want {
			t.Errorf("after %v: %v, want %v", s.at, got, s.want)
		}
	}
}

func TestBackoffDoublesToHalfAMinute(t *testing.T) {
	t.Parallel()
	for crashes, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 6: 30 * time.Second, 500: 30 * time.Second} {
		if got := backoff(crashes); got != want {
			t.Errorf("after %d crashes: %v, want %v", crashes, got, want)
		}
	}
}
