// Package shed refuses requests while this process uses too much of its processors, and takes them again once it uses clearly less:
// the original's rule (contract: CPU rate limiting). What is refused costs next to nothing, so that what was taken is finished.
package shed

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Rule says when. The zero Rule sheds nothing.
type Rule struct {
	// High is from which percentage of the processors on requests are refused, Low down to which they are still.
	High, Low float64
	// Every is the interval that is measured.
	Every time.Duration
	// RetryAfter is what the refused are told; 0: nothing.
	RetryAfter time.Duration
	// Excluded paths are never refused: exact, in any case.
	Excluded []string
}

// shortest interval that says anything: the kernel counts in hundredths of a second.
const shortest = 100 * time.Millisecond

// Validate as the original does.
func (r Rule) Validate() error {
	var errs []error
	if r.Low < 0 || r.High > 100 || r.Low >= r.High {
		errs = append(errs, fmt.Errorf("limits of %v %% and %v %%: expected 0 <= low < high <= 100", r.Low, r.High))
	}
	if r.Every < shortest {
		errs = append(errs, fmt.Errorf("an interval of %v: expected at least %v", r.Every, shortest))
	}
	if r.RetryAfter < 0 {
		errs = append(errs, fmt.Errorf("a Retry-After of %v: expected at least 0", r.RetryAfter))
	}
	return errors.Join(errs...)
}

// next says whether to refuse, given whether requests are refused now and the percentage of the last interval.
func (r Rule) next(refusing bool, percent float64) bool {
	switch {
	case percent >= r.High:
		return true
	case percent <= r.Low:
		return false
	}
	return refusing
}

// Shedder measures and remembers. The nil Shedder sheds nothing. Safe for concurrent use.
type Shedder struct {
	rule     Rule
	changed  func(refusing bool, percent float64)
	refusing atomic.Bool
	refused  atomic.Uint64
}

// New returns a Shedder that takes everything until Run has measured. changed is told of every turn.
func New(rule Rule, changed func(refusing bool, percent float64)) *Shedder {
	return &Shedder{rule: rule, changed: changed}
}

// Run measures until ctx ends.
func (s *Shedder) Run(ctx context.Context) error {
	tick := time.NewTicker(s.rule.Every)
	defer tick.Stop()
	used, at := processTime(), time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		nowUsed, now := processTime(), time.Now()
		s.sample(percent(nowUsed-used, now.Sub(at), runtime.GOMAXPROCS(0)))
		used, at = nowUsed, now
	}
}

// percent of so many processors that were used. GOMAXPROCS follows the quota of a container.
func percent(used, elapsed time.Duration, processors int) float64 {
	if elapsed <= 0 {
		return 0
	}
	return float64(used) / (float64(elapsed) * float64(processors)) * 100
}

func (s *Shedder) sample(percent float64) {
	before := s.refusing.Load()
	if after := s.rule.next(before, percent); after != before {
		s.refusing.Store(after)
		s.changed(after, percent)
	}
}

// Refuses says whether a request for the path is to be refused now, and what its sender is to be told.
func (s *Shedder) Refuses(path string) (retryAfter time.Duration, refuses bool) {
	if s == nil || !s.refusing.Load() {
		return 0, false
	}
	if slices.ContainsFunc(s.rule.Excluded, func(e string) bool { return strings.EqualFold(e, path) }) {
		return 0, false
	}
	s.refused.Add(1)
	return s.rule.RetryAfter, true
}

// Refused is how many requests were.
func (s *Shedder) Refused() uint64 {
	if s == nil {
		return 0
	}
	return s.refused.Load()
}

// processTime is what this process has used of the processors.
func processTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0 // cannot fail for oneself
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
