package replica

import (
	"math/rand/v2"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// compareAll is up to how many replicas all are compared; of more, two at random.
	compareAll = 8
	// A replica is suspected after one connection that did not come about, or after brokenInARow calls in a row that broke, or
	// timed out, before an answer. It is passed over while there are others: for suspectFor, then until a trial, one call at a
	// time, is answered. Each trial doubles the time to the next, up to suspectMost.
	brokenInARow = 3
	suspectFor   = time.Second
	suspectMost  = 30 * time.Second
	// slowStart is how long a replica that joins others takes to get a full part of the calls. It begins at a tenth.
	slowStart   = 5 * time.Second
	fullWeight  = 100
	firstWeight = fullWeight / 10
)

// Lease is one counted call on one replica. End it exactly when the call is over, body included.
type Lease struct {
	*Replica
	Function *Function
	call     load.Call
	slots    slotted
}

// Choose counts a call, of a caller that waits, on the least loaded usable replica. skip (may be nil) passes over replicas already
// tried. False: none may be used now, or the function's limits of sync calls are reached.
func (f *Function) Choose(kind load.Kind, skip func(*Replica) bool) (*Lease, bool) {
	// A replica that closes between the look and the count is undone and the choice repeated; each repeat needs a change
	// of the table, a pace reached or a trial begun meanwhile, so a few are plenty.
	if f.Spec().NumberParallelRequestSync > 0 && !f.slots.room() {
		return nil, false
	}
	for range 4 {
		r := f.least(skip)
		if r == nil {
			return nil, false
		}
		if lease, ok := f.begin(r, kind, true); ok {
			return lease, true
		}
	}
	return nil, false
}

// Reserve counts a call on the named replica, whatever its load and pace. False: it may not be used now.
func (f *Function) Reserve(name string, kind load.Kind) (*Lease, bool) {
	for _, r := range f.Replicas() {
		if r.Name == name && r.Usable() {
			return f.begin(r, kind, false)
		}
	}
	return nil, false
}

// begin counts first and looks afterwards: a draining replica reported with zero open gets no call after the report.
func (f *Function) begin(r *Replica, kind load.Kind, paced bool) (*Lease, bool) {
	slots, ok := f.takeSlots(r, kind)
	if !ok {
		return nil, false
	}
	call, open := f.load.Begin(&r.slot.load, kind)
	if !r.slot.usable() || paced && (r.slot.paced.Load() && open > f.pace() || !r.slot.trial()) {
		call.End()
		f.freeSlots(r.slot, slots)
		return nil, false
	}
	return &Lease{Replica: r, Function: f, call: call, slots: slots}, true
}

func (f *Function) pace() int64 { return int64(max(1, f.Spec().NumberParallelRequestPerPod)) }

// least is the usable replica with the fewest open calls; ties go round.
func (f *Function) least(skip func(*Replica) bool) *Replica {
	all := f.Replicas()
	if len(all) == 0 {
		return nil
	}
	turn := int(f.turn.Add(1))
	if len(all) > compareAll {
		a, b := all[rand.IntN(len(all))], all[rand.IntN(len(all))]
		if best := f.better(f.better(nil, a, skip), b, skip); best != nil {
			return best
		}
		// Both closed or tried: look at everything.
	}
	var best *Replica
	for i := range all {
		best = f.better(best, all[(turn+i)%len(all)], skip)
	}
	return best
}

// better is r where it may be used and beats best, else best.
func (f *Function) better(best, r *Replica, skip func(*Replica) bool) *Replica {
	if !r.Usable() || skip != nil && skip(r) {
		return best
	}
	if r.slot.paced.Load() && r.slot.load.Open() >= f.pace() {
		return best
	}
	if f.Spec().NumberParallelRequestPerPodSync > 0 && !r.slot.slots.room() {
		return best
	}
	if best == nil {
		return r
	}
	if a, b := r.suspected(), best.suspected(); a != b {
		if b {
			return r
		}
		return best
	}
	if r.slot.lighter(best.slot) {
		return r
	}
	return best
}

func (r *Replica) suspected() bool {
	until := r.slot.suspect.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// lighter says whether one more call is less to s than to other, for its weight.
func (s *slot) lighter(other *slot) bool {
	mine, others := s.load.Open(), other.load.Open()
	if s.joined.Load() == 0 && other.joined.Load() == 0 {
		return mine < others
	}
	now := time.Now()
	return (mine+1)*other.weight(now) < (others+1)*s.weight(now)
}

// weight is the part of the calls that a replica gets, of fullWeight.
func (s *slot) weight(now time.Time) int64 {
	joined := s.joined.Load()
	if joined == 0 {
		return fullWeight
	}
	age := now.UnixNano() - joined
	if age >= int64(slowStart) {
		s.joined.Store(0)
		return fullWeight
	}
	return max(firstWeight, fullWeight*age/int64(slowStart))
}

// trial says whether a call may go to a replica that is chosen: to one that was suspected, only the first in its time.
func (s *slot) trial() bool {
	until := s.suspect.Load()
	if until == 0 {
		return true
	}
	now := time.Now()
	if now.UnixNano() < until {
		return true // all are suspected
	}
	if !s.suspect.CompareAndSwap(until, now.Add(suspicion(s.suspicions.Load()+1)).UnixNano()) {
		return false
	}
	s.suspicions.Add(1)
	return true
}

// suspicion is how long the n-th in a row is, from 1.
func suspicion(n int32) time.Duration {
	return min(suspectFor<<min(max(n-1, 0), 10), suspectMost)
}

// suspected from now on, unless it is.
func (l *Lease) suspected() {
	s := l.slot
	until, now := s.suspect.Load(), time.Now()
	if now.UnixNano() >= until && s.suspect.CompareAndSwap(until, now.Add(suspicion(s.suspicions.Load()+1)).UnixNano()) {
		s.suspicions.Add(1)
		l.Function.set.suspicions.Add(1)
	}
}

// Answered says that response headers came: after PacedAnswers of them a just-woken replica is a replica like any other.
func (l *Lease) Answered() {
	s := l.slot
	if s.broken.Load() != 0 || s.suspect.Load() != 0 {
		s.broken.Store(0)
		s.suspicions.Store(0)
		s.suspect.Store(0)
	}
	if s.paced.Load() && s.answers.Add(1) >= PacedAnswers && s.paced.Swap(false) {
		l.Function.set.woken(l.Function)
	}
}

// Unreachable says that the dial failed: others are preferred for a while. refused: nothing listens there, so that a replica no record
// has is none.
func (l *Lease) Unreachable(refused bool) {
	l.suspected()
	if refused {
		l.Function.unsight(l.Life())
	}
}

// Broke says that the call broke, or was not answered in time, and that it was not the caller's doing.
func (l *Lease) Broke() {
	if l.slot.broken.Add(1) >= brokenInARow {
		l.suspected()
	}
}

// Leaving says whether the table has the replica on its way out, or not at all any more.
func (l *Lease) Leaving() bool {
	for _, r := range l.Function.Replicas() {
		if r.Name == l.Name {
			return r.State == wire.ReplicaState_REPLICA_STATE_DRAINING || r.State == wire.ReplicaState_REPLICA_STATE_GONE
		}
	}
	return true
}

// Stream marks the call as an open stream: response headers went out, or the connection was upgraded.
func (l *Lease) Stream() { l.call.Stream() }

// End takes the call off the counts. Only the first End counts.
func (l *Lease) End() {
	l.call.End()
	slots := l.slots
	l.slots = slotted{}
	l.Function.freeSlots(l.slot, slots)
	if l.slot.paced.Load() || slots != (slotted{}) && l.Function.load.Parked() > 0 {
		l.Function.set.woken(l.Function)
	}
}
