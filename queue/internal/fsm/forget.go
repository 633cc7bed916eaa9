package fsm

import (
	"math"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

func (a *application) forget(c command.Forget) Result {
	left := int64(c.Limit)
	if c.Limit == 0 {
		left = math.MaxInt64
	}
	for ; left > 0 && a.keepsTooLong(); left-- {
		a.endKeeping()
	}
	for ; left > 0 && a.overdue(c); left-- {
		if a.finished.first != nil {
			a.drop(a.finished.first)
		} else {
			a.drop(a.kept.Top())
		}
	}
	for left > 0 {
		f := a.overdueDead(c)
		if f == nil {
			break
		}
		left -= f.dead.first.weight()
		a.drop(f.dead.first)
	}
	for ; left > 0 && a.keyIsOld(); left-- {
		a.dropOldestKey()
	}
	for _, id := range sortedKeys(a.sessions) {
		if s := a.sessions[id]; s.Vanished && s.EndedUnixMs < c.BeforeUnixMs {
			a.dropSession(s)
		}
	}
	for _, name := range sortedKeys(a.overrides) {
		if o := a.overrides[name]; o.UntilUnixMs <= a.now {
			a.endOverride(o)
		}
	}
	return Result{More: a.keepsTooLong() || a.overdue(c) || a.overdueDead(c) != nil || a.keyIsOld()}
}

// overdue says whether a finished call is to be forgotten: the first one, or, over the count and without any other, the one whose
// answer would go first.
func (m *Machine) overdue(c command.Forget) bool {
	if c.KeepCount > 0 && uint64(m.finished.size+m.kept.Len()) > c.KeepCount {
		return true
	}
	return m.finished.first != nil && m.finished.first.finished < c.BeforeUnixMs
}

// overdueDead is the function with the dead call to be forgotten next; nil: none is.
func (m *Machine) overdueDead(c command.Forget) *function {
	var oldest *function
	tooMany := c.DeadKeepCount > 0 && uint64(m.dead) > c.DeadKeepCount
	for _, f := range m.functions {
		if first := f.dead.first; first != nil && (tooMany || first.finished < c.DeadBeforeUnixMs) &&
			(oldest == nil || first.ended < oldest.dead.first.ended) { // places are unique: the order of the map does not matter
			oldest = f
		}
	}
	return oldest
}

func (m *Machine) keepsTooLong() bool {
	return m.kept.Len() > 0 && m.kept.Top().extras.keptUntil <= m.now
}

// endKeeping takes the answer away whose time is up. Its call is history from now on.
func (a *application) endKeeping() {
	c := a.kept.Pop()
	a.dropAnswer(c)
	a.Machine.ended++
	c.ended = a.ended
	a.Machine.place(c, c.state)
	a.touch(c)
}

// drop forgets an ended call: the first finished one, the first kept one, or any dead one.
func (a *application) drop(c *call) {
	switch {
	case c.state == Dead:
		c.function.dead.remove(c)
		a.Machine.dead--
		a.removePayload(c)
	case c.extras != nil && c.extras.keptUntil != 0:
		a.kept.Pop()
	default:
		a.finished.remove(c)
	}
	a.dropAnswer(c)
	delete(a.calls, c.id)
	a.accountCall(c, nil, nil)
	c.dropped = true
	a.remove(BucketCall, numberKey(c.seq))
}

// soonerKept orders by the end of the keeping.
func soonerKept(a, b *call) bool {
	if a.extras.keptUntil != b.extras.keptUntil {
		return a.extras.keptUntil < b.extras.keptUntil
	}
	return a.seq < b.seq
}

// list of calls, linked through the calls themselves. The zero value is empty.
type list struct {
	first, last *call
	size        int
}

func (l *list) push(c *call) {
	c.previous, c.next = l.last, nil
	if l.last == nil {
		l.first = c
	} else {
		l.last.next = c
	}
	l.last = c
	l.size++
}

func (l *list) remove(c *call) {
	if c.previous == nil {
		l.first = c.next
	} else {
		c.previous.next = c.next
	}
	if c.next == nil {
		l.last = c.previous
	} else {
		c.next.previous = c.previous
	}
	c.previous, c.next = nil, nil
	l.size--
}
