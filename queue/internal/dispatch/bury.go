package dispatch

import (
	"fmt"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// maxBurials of one round of housekeeping.
const maxBurials = 2048

// bury ends the calls that have waited too long for a function that is gone. Both must be old: the absence, which this leader
// has timed itself, and the call.
func (d *Dispatcher) bury(o *office) {
	var candidates []place
	d.with(o, func(now time.Time) { candidates = o.orphans(now) })
	if len(candidates) == 0 {
		return
	}
	before := time.Now().Add(-d.config.Limits.OrphanDeadAge).UnixMilli()
	old := map[command.ID]bool{}
	d.config.Log.View(func(m *fsm.Machine) {
		for _, p := range candidates {
			if c, ok := m.Call(p.id); ok && c.EnqueuedUnixMs <= before {
				old[p.id] = true
			}
		}
	})
	d.with(o, func(now time.Time) { o.bury(old, now) })
	signal(d.wake)
}

func (o *office) gone(l *lane, now time.Time) bool {
	return o.synced && l.Spec == nil && !l.goneSince.IsZero() && now.Sub(l.goneSince) >= o.limits.OrphanDeadAge
}

// orphans are due calls of functions that have been gone for long.
func (o *office) orphans(now time.Time) []place {
	var list []place
	for _, l := range o.lanes {
		if !o.gone(l, now) {
			continue
		}
		list = append(list, l.due.Items()[:min(l.due.Len(), maxBurials-len(list))]...)
		if len(list) == maxBurials {
			break
		}
	}
	return list
}

// bury proposes a last try for each, which ends as soon as it is committed: only a try can end a call as dead. Any live session
// carries it; while there is none, nobody could have delivered them either.
func (o *office) bury(old map[command.ID]bool, now time.Time) {
	var carrier *session
	for _, s := range o.sessions {
		if !s.ending {
			carrier = s
			break
		}
	}
	if carrier == nil {
		return
	}
	for _, l := range o.lanes {
		if !o.gone(l, now) {
			continue
		}
		var kept []place
		for l.due.Len() > 0 {
			p := l.due.Pop()
			switch {
			case l.dropCancelled(p.seq):
			case !old[p.id]:
				kept = append(kept, p)
			default:
				b := &pending{place: p, lane: l, session: carrier, bury: true}
				l.take(b.replica)
				carrier.load++
				o.pending[p.id] = b
				o.burials = append(o.burials, b)
			}
		}
		for _, p := range kept {
			l.due.Push(p)
		}
	}
}

// end is the second half of a burial; a function that has come back in between gets its call after all.
func (o *office) end(r *run, l *lane, now time.Time) {
	if r.session != nil {
		r.session.hold(r)
	}
	if l.Spec != nil {
		o.finish(r, released("function is back"), now)
		return
	}
	r.finish = &command.Finish{
		ID: r.ID, Fence: r.Fence, Outcome: command.OutcomeDead,
		Error: fmt.Sprintf("function has not been in the table for %s", o.limits.OrphanDeadAge),
	}
	o.ended = append(o.ended, r)
	o.freeSlot(r)
	if r.session != nil {
		o.freeLoad(r)
	}
}
