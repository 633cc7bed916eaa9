package dispatch

import (
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Reservation is a run slot kept for a call while it is being accepted: its first try goes with the accept, in one entry of the
// log, to the edge that hands the call over and has it in memory. Settle it exactly once.
type Reservation struct {
	office *office
	*pending
}

// Reserve keeps a slot for a call that would wait for nothing: its lane is empty, no lane waits for an edge, a replica and the
// edge of this session have room. Nil: the call takes its turn.
func (d *Dispatcher) Reserve(id command.ID, function string, session uint64) *Reservation {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office == nil || d.draining {
		return nil
	}
	p := d.office.reserve(id, function, session, time.Now())
	if p == nil {
		return nil
	}
	return &Reservation{d.office, p}
}

// Grant is the command that goes behind the accept.
func (r *Reservation) Grant() command.Grant {
	return command.Grant{ID: r.id, Session: r.session.ID, Replica: r.replica, MaxTries: maxTries(r.spec)}
}

// Settle says what became of the grant; nil: it was not proposed, or nobody knows. It returns the try for the edge, which has
// the payload; nil: there is none, or it is over already.
func (d *Dispatcher) Settle(r *Reservation, granted *fsm.Result) (try *wire.Grant) {
	d.with(r.office, func(now time.Time) {
		if granted == nil || granted.Code != fsm.OK {
			r.office.takeBack(r.pending, r.seq != 0)
			return
		}
		if try = r.office.told(r.id, granted.Index, now); try != nil {
			d.direct++
		}
	})
	signal(d.wake)
	return try
}

// reserve is Reserve.
func (o *office) reserve(id command.ID, function string, session uint64, now time.Time) *pending {
	s := o.sessions[session]
	if !o.synced || len(o.runnable) > 0 || s == nil || s.ending || s.link == nil || s.link.closed || s.load >= int(s.capacity) {
		return nil
	}
	if o.pending[id] != nil || o.runs[id] != nil {
		return nil // it is handed over again
	}
	l := o.lane(function, now)
	if _, waits := l.first(); waits {
		return nil
	}
	replica, ok := l.slot(now)
	if !ok {
		return nil
	}
	l.take(replica)
	s.load++
	p := &pending{place: place{id: id}, lane: l, replica: replica, session: s, spec: l.Spec, direct: true}
	o.pending[id] = p
	return p
}

// told is a try that the answer to an accept carries. An answer that does not come is found out as a grant that does not.
func (o *office) told(id command.ID, fence uint64, now time.Time) *wire.Grant {
	r := o.runs[id]
	if r == nil || r.Fence != fence || !r.direct || r.finish != nil || r.State != fsm.Running {
		return nil
	}
	o.wasSent(r, now)
	return &wire.Grant{
		Id: id[:], Function: r.Function, Fence: fence, Replica: r.Replica, DeadlineMs: uint64(timeout(o.attempt(r).spec).Milliseconds()),
		TryNumber: r.Tries, MaxTries: max(r.MaxTries, r.Tries), KeepResult: r.KeepResult,
	}
}
