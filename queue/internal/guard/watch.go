// Package guard keeps a queue node from trusting its disk too much: whose directory it is, how full the disk is, and whether
// a write still comes back. It decides nothing about Raft; raftnode acts on what it says.
package guard

import (
	"sync/atomic"
	"time"
)

// Watch tells how long the longest write under way has taken. A hung disk answers nothing, so nobody else would say.
type Watch struct {
	start time.Time // of this watch: the slots count from it, on the monotonic clock
	slots []*Slot
}

// Slot is one writer, which has at most one write under way.
type Slot struct {
	watch *Watch
	since atomic.Int64 // nanoseconds after start, plus one; 0: nothing under way
}

// NewWatch over a fixed number of writers.
func NewWatch(writers int) *Watch {
	w := &Watch{start: time.Now()}
	for range writers {
		w.slots = append(w.slots, &Slot{watch: w})
	}
	return w
}

// Slot of one writer.
func (w *Watch) Slot(i int) *Slot { return w.slots[i] }

// Write runs a write under watch.
func (s *Slot) Write(f func() error) error {
	s.since.Store(int64(time.Since(s.watch.start)) + 1)
	defer s.since.Store(0)
	return f()
}

// Longest write under way; 0: none.
func (w *Watch) Longest() (longest time.Duration) {
	now := time.Since(w.start)
	for _, s := range w.slots {
		if since := s.since.Load(); since != 0 {
			longest = max(longest, now-time.Duration(since-1))
		}
	}
	return longest
}
