package dispatch

import (
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/priority"
	"github.com/slimfaas/slimfaas/shared/function"
)

// Function is what the dispatcher knows of a function from the table.
type Function struct {
	Name  string
	Spec  *function.Specification // nil: not in the table
	Ready []string                // replicas that may be called, in the table's order
}

// place is a call that waits in a lane. 24 bytes: a million of them must fit.
type place struct {
	seq uint64
	id  command.ID
}

// retry is a call that waits for its time.
type retry struct {
	at int64 // UTC milliseconds
	place
}

// lane is one function's share of the leader: its calls, its run slots.
type lane struct {
	Function

	due     priority.Heap[place] // Queued, or Waiting and due; FIFO by seq
	waiting priority.Heap[retry] // Waiting, by time
	// cancelled marks places in the two heaps that are no longer calls, by seq.
	cancelled map[uint64]struct{}

	counts    counts
	slots     int // runs, and grants being proposed
	onReplica map[string]int
	// avoid has replicas that an edge just gave a call back for: its table is ahead of ours. Until then.
	avoid map[string]time.Time
	// paused has replicas that asked to be left alone with Retry-After. Until then. A new leader asks once more.
	paused map[string]time.Time

	runnable  bool      // in the office's queue of lanes to look at
	changed   bool      // counts moved since the last demand report
	wakeAt    time.Time // its entry in the office's timers; zero: none
	goneSince time.Time // when it was first missed in the table; zero: it is there
}

// counts of calls by state, as the state machine has them.
type counts struct{ queued, running, awaiting, waiting uint64 }

func (c *counts) at(s fsm.State) *uint64 {
	switch s {
	case fsm.Queued:
		return &c.queued
	case fsm.Running:
		return &c.running
	case fsm.Awaiting:
		return &c.awaiting
	case fsm.Waiting:
		return &c.waiting
	default:
		return nil
	}
}

func newLane(name string) *lane {
	return &lane{
		Function:  Function{Name: name},
		due:       priority.New(func(a, b place) bool { return a.seq < b.seq }),
		waiting:   priority.New(func(a, b retry) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }),
		cancelled: map[uint64]struct{}{},
		onReplica: map[string]int{},
		avoid:     map[string]time.Time{},
		paused:    map[string]time.Time{},
	}
}

// ripen moves calls whose time has come among the due ones. next is the time of the earliest that waits on; 0 none does.
func (l *lane) ripen(nowMs int64) (moved bool, next int64) {
	for l.waiting.Len() > 0 {
		first := l.waiting.Top()
		if l.dropCancelled(first.seq) {
			l.waiting.Pop()
			continue
		}
		if first.at > nowMs {
			return moved, first.at
		}
		l.waiting.Pop()
		l.due.Push(first.place)
		moved = true
	}
	return moved, 0
}

// first is the call whose turn it is.
func (l *lane) first() (place, bool) {
	for l.due.Len() > 0 {
		if p := l.due.Top(); !l.dropCancelled(p.seq) {
			return p, true
		}
		l.due.Pop()
	}
	return place{}, false
}

func (l *lane) dropCancelled(seq uint64) bool {
	if _, cancelled := l.cancelled[seq]; !cancelled {
		return false
	}
	delete(l.cancelled, seq)
	return true
}

// sweep takes the marked places out of the heaps.
func (l *lane) sweep() {
	if len(l.cancelled) == 0 {
		return
	}
	for _, p := range l.due.Take() {
		if !l.dropCancelled(p.seq) {
			l.due.Push(p)
		}
	}
	for _, r := range l.waiting.Take() {
		if !l.dropCancelled(r.seq) {
			l.waiting.Push(r)
		}
	}
	clear(l.cancelled)
}

// slot chooses the ready replica with the least running, within both limits of the function.
func (l *lane) slot(now time.Time) (replica string, ok bool) {
	if l.Spec == nil || l.slots >= max(1, l.Spec.NumberParallelRequest) {
		return "", false
	}
	least := max(1, l.Spec.NumberParallelRequestPerPod)
	for _, name := range l.Ready {
		until, avoided := l.avoid[name]
		if avoided && now.Before(until) || now.Before(l.paused[name]) {
			continue
		}
		if n := l.onReplica[name]; n < least {
			replica, least, ok = name, n, true
		}
	}
	return replica, ok
}

func (l *lane) take(replica string) {
	l.slots++
	l.onReplica[replica]++
}

func (l *lane) free(replica string) {
	l.slots--
	if l.onReplica[replica]--; l.onReplica[replica] <= 0 {
		delete(l.onReplica, replica)
	}
}

// free again at the earliest; zero: no replica is passed over.
func (l *lane) passedOverUntil(now time.Time) (at time.Time) {
	for _, m := range []map[string]time.Time{l.avoid, l.paused} {
		for _, until := range m {
			if until.After(now) && (at.IsZero() || until.Before(at)) {
				at = until
			}
		}
	}
	return at
}

// tidy forgets passing over that is done with.
func (l *lane) tidy(now time.Time) {
	for _, m := range []map[string]time.Time{l.avoid, l.paused} {
		for name, until := range m {
			if !until.After(now) {
				delete(m, name)
			}
		}
	}
}

// has says whether the replica may be called.
func (l *lane) has(replica string) bool {
	for _, name := range l.Ready {
		if name == replica {
			return true
		}
	}
	return false
}

// idle lanes of functions that left the table need not be kept.
func (l *lane) idle() bool {
	return l.counts == counts{} && l.slots == 0 && l.Spec == nil && !l.changed
}

// earliest says when the next waiting call is due, as a UTC time in milliseconds; a due one that waits for a slot is 0.
func (l *lane) earliest() (at int64, ok bool) {
	if l.counts.waiting == 0 {
		return 0, false
	}
	for l.waiting.Len() > 0 && l.dropCancelled(l.waiting.Top().seq) {
		l.waiting.Pop()
	}
	if uint64(l.waiting.Len()) < l.counts.waiting || l.waiting.Len() == 0 {
		return 0, true
	}
	return l.waiting.Top().at, true
}
