package dispatch

import (
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// maxCommands of one proposal: an entry's half, so that others' commands fit in beside it.
const maxCommands = 512

// batch is one proposal of the office: ends of tries first, so that the grants behind them may use their slots.
type batch struct {
	commands []command.Command // of finishes, sessions, expired calls, abandoned uploads, grants, in this order
	finishes []*run
	sessions []*session
	overdue  []overdue
	drops    []*uploading
	grants   []*pending
}

// batch gathers what there is to propose; no commands: nothing.
func (o *office) batch(now time.Time) batch {
	var b batch
	n := min(len(o.ended), maxCommands)
	for _, r := range o.ended[:n] {
		if o.runs[r.ID] != r || r.finish == nil {
			continue // ended in another way meanwhile
		}
		b.finishes = append(b.finishes, r)
		b.commands = append(b.commands, *r.finish)
	}
	o.ended = rest(o.ended, n)

	n = min(len(o.expired), maxCommands-len(b.commands))
	for _, s := range o.expired[:n] {
		b.sessions = append(b.sessions, s)
		b.commands = append(b.commands, command.EndSession{Session: s.ID, Expired: true})
	}
	o.expired = rest(o.expired, n)

	n = min(len(o.overdue), maxCommands-len(b.commands))
	for _, c := range o.overdue[:n] {
		b.overdue = append(b.overdue, c)
		b.commands = append(b.commands, command.Bury{ID: c.id, Error: expired})
	}
	o.overdue = rest(o.overdue, n)

	drops, commands := o.uploads.take(maxCommands - len(b.commands))
	b.drops, b.commands = drops, append(b.commands, commands...)

	n = min(len(o.burials), maxCommands-len(b.commands))
	b.grants = append(b.grants, o.burials[:n]...)
	o.burials = rest(o.burials, n)
	b.grants = append(b.grants, o.grants(now, maxCommands-len(b.commands)-n)...)
	for _, p := range b.grants {
		b.commands = append(b.commands, command.Grant{
			ID: p.id, Session: p.session.ID, Replica: p.replica, MaxTries: maxTries(p.spec),
		})
	}
	return b
}

// grants gives run slots to due calls: functions in turn, within a function the oldest call, for the replica and the edge
// with the least to do.
func (o *office) grants(now time.Time, limit int) []*pending {
	if !o.synced {
		return nil
	}
	var granted []*pending
	looked := 0
	for looked < len(o.runnable) && len(granted) < limit {
		s := o.freeEdge()
		if s == nil {
			break
		}
		l := o.runnable[looked]
		looked++
		l.runnable = false
		call, ok := l.first()
		if !ok {
			continue
		}
		replica, ok := l.slot(now)
		if !ok {
			if at := l.passedOverUntil(now); !at.IsZero() {
				o.wakeAt(l, at)
			}
			continue // looked at again when a slot is free or the table changes
		}
		l.due.Pop()
		l.take(replica)
		s.load++
		p := &pending{place: call, lane: l, replica: replica, session: s, spec: l.Spec}
		o.pending[call.id] = p
		granted = append(granted, p)
		o.look(l)
	}
	o.runnable = rest(o.runnable, looked)
	return granted
}

// freeEdge is the one with the least grants among those that can take more; nil: none can.
func (o *office) freeEdge() *session {
	var best *session
	for i := range o.linked {
		s := o.linked[(i+o.turn)%len(o.linked)]
		if s.ending || s.link == nil || s.link.closed || s.load >= int(s.capacity) {
			continue
		}
		if best == nil || s.load < best.load {
			best = s
		}
	}
	o.turn++
	return best
}

// committed takes the results of a batch; what changed has been applied before.
func (o *office) committed(b batch, results []fsm.Result, now time.Time) {
	results = slices.Clip(results)
	for i, r := range b.finishes {
		o.finishRefused(r, results[i], now)
	}
	results = results[len(b.finishes):]
	for i, s := range b.sessions {
		if results[i].Code != fsm.OK {
			o.forgetSession(s, now)
		}
	}
	results = results[len(b.sessions):]
	// A call that was not buried runs, or has ended in another way: its next wait is looked at anew.
	// An upload that was not dropped has moved on, or is gone.
	results = results[len(b.overdue)+len(b.drops):]
	for i, p := range b.grants {
		if results[i].Code != fsm.OK {
			o.takeBack(p, results[i].Code == fsm.Stale)
		}
	}
}

// finishRefused: the call has moved on in another way, and its change was applied; or it awaits and cannot be released.
func (o *office) finishRefused(r *run, result fsm.Result, now time.Time) {
	if result.Code == fsm.OK || o.runs[r.ID] != r || r.finish == nil {
		return
	}
	r.finish = nil
	if r.result && r.session != nil {
		r.session.send(acknowledge(r.ID, r.Fence, codeStale))
		r.result = false
	}
	if !r.slot {
		r.lane.take(r.Replica)
		r.slot = true
	}
	o.setDeadline(r, now)
}

// failed: not committed, or not known to be. Everything is proposed again; what was committed after all is refused then.
func (o *office) failed(b batch) {
	for _, r := range b.finishes {
		if o.runs[r.ID] == r && r.finish != nil {
			o.ended = append(o.ended, r)
		}
	}
	for _, s := range b.sessions {
		if o.sessions[s.ID] == s {
			o.expired = append(o.expired, s)
		}
	}
	o.overdue = append(o.overdue, b.overdue...)
	o.uploads.failed(b.drops)
	for _, p := range b.grants {
		o.takeBack(p, true)
	}
}

// takeBack frees what a refused grant took; again: its call is still there.
func (o *office) takeBack(p *pending, again bool) {
	if o.pending[p.id] != p {
		return
	}
	delete(o.pending, p.id)
	p.session.load--
	p.lane.free(p.replica)
	if again {
		p.lane.due.Push(p.place)
	}
	o.look(p.lane)
}

// rest lets what was taken go; the array is kept as long as it is in use.
func rest[T any](s []T, taken int) []T {
	if taken == len(s) {
		return nil
	}
	clear(s[:taken])
	return s[taken:]
}
