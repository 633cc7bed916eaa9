package fsm

import "github.com/slimfaas/slimfaas/queue/internal/command"

func (a *application) forget(c command.Forget) Result {
	left := int64(c.Limit)
	if c.Limit == 0 {
		left = int64(len(a.calls))
	}
	for ; left > 0 && a.overdue(c); left-- {
		a.drop(&a.finished)
	}
	for ; left > 0 && a.overdueDead(c); left-- {
		a.drop(&a.dead)
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
	return Result{More: a.overdue(c) || a.overdueDead(c)}
}

func (m *Machine) overdue(c command.Forget) bool {
	oldest := m.finished.first
	return oldest != nil &&
		(oldest.finished < c.BeforeUnixMs || c.KeepCount > 0 && uint64(m.finished.size) > c.KeepCount)
}

func (m *Machine) overdueDead(c command.Forget) bool {
	return m.dead.first != nil && m.dead.first.finished < c.DeadBeforeUnixMs
}

func (a *application) drop(l *list) {
	c := l.first
	l.remove(c)
	delete(a.calls, c.id)
	a.accountCall(c, nil, nil)
	c.dropped = true
	a.remove(BucketCall, numberKey(c.seq))
	if c.state == Dead {
		a.remove(BucketPayload, numberKey(c.seq))
	}
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
