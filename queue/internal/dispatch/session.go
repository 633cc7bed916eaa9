package dispatch

import (
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// maxHeld bounds what one edge may ask for.
	maxHeld = 8192
	// missesToRelease: a grant that this many lists in a row lack never reached its edge.
	missesToRelease = 2
	// maxText of an error kept with a call, in bytes.
	maxText = 500

	codeOK    = wire.Code_CODE_OK
	codeStale = wire.Code_CODE_STALE
)

// changeSession follows the state machine.
func (o *office) changeSession(s fsm.Session, now time.Time) {
	known := o.sessions[s.ID]
	switch {
	case s.Ended && known != nil:
		o.forgetSession(known, now)
	case !s.Ended && known == nil:
		o.sessions[s.ID] = newSession(s, now)
		o.expiry = earlier(o.expiry, now.Add(o.sessions[s.ID].ttl()))
	}
}

// forgetSession ends what an ended session held: nobody will bring its results.
func (o *office) forgetSession(s *session, now time.Time) {
	if o.sessions[s.ID] != s {
		return
	}
	delete(o.sessions, s.ID)
	o.unlink(s)
	o.leaveSlots(s, now)
	for _, r := range s.held {
		o.finish(r, noAnswer("edge lost"), now)
	}
}

// named is the live session of a name and incarnation.
func (o *office) named(name, incarnation string) *session {
	for _, s := range o.sessions {
		if s.Name == name && s.Incarnation == incarnation && !s.ending {
			return s
		}
	}
	return nil
}

// touch restarts the timer of a session; false: it is not live, or another's.
func (o *office) touch(id uint64, incarnation string, now time.Time) bool {
	s := o.sessions[id]
	if s == nil || s.ending || s.Incarnation != incarnation {
		return false
	}
	s.seen = now
	return true
}

// attach gives a session its stream, in place of an older one. What the older one has not sent goes out on the new one; what it
// did send and the edge does not hold has missed its first list.
func (o *office) attach(s *session, hello *wire.Hello, node string, now time.Time) *link {
	var unsent []outgoing
	if s.link != nil {
		unsent = s.link.out
		s.link.out = nil
		o.unlink(s)
	}
	s.seen = now
	s.link = newLink()
	s.capacity = min(hello.GetCapacity().GetMaxHeld(), maxHeld)
	o.linked = append(o.linked, s)
	s.link.push(outgoing{down: &wire.DeliverDown{Down: &wire.DeliverDown_Welcome{Welcome: &wire.Welcome{
		Session: s.ID, TtlMs: uint64(s.ttl().Milliseconds()), Node: node,
	}}}})
	o.reconcile(s, hello.GetHeld(), now)
	o.greetSlots(s, hello.GetSlots(), now)
	for _, out := range unsent {
		if out.grant != nil {
			s.link.push(out)
		}
	}
	return s.link
}

// unlink closes the stream of a session, if it has one.
func (o *office) unlink(s *session) {
	if s.link == nil {
		return
	}
	s.link.close()
	s.link = nil
	o.linked = slices.DeleteFunc(o.linked, func(x *session) bool { return x == s })
}

// detach is the end of a stream. What it has not sent is for the stream that took its place, or released.
func (o *office) detach(s *session, l *link, unsent []outgoing, now time.Time) {
	unsent = append(unsent, l.out...)
	l.out = nil
	l.close()
	if s.link == l {
		o.unlink(s)
	}
	for _, out := range unsent {
		r := out.grant
		if r == nil || o.runs[r.ID] != r || r.sent || r.finish != nil {
			continue
		}
		if s.link != nil && !s.link.closed {
			s.link.push(out)
		} else {
			o.finish(r, released("edge has no stream"), now)
		}
	}
}

// heartbeat compares what an edge holds with what it should, and asks for the list when they differ.
func (o *office) heartbeat(s *session, h *wire.HeldHeartbeat, now time.Time) {
	s.seen = now
	if h.GetListed() {
		o.reconcile(s, h.GetHeld(), now)
		return
	}
	if int(h.GetCount()) != len(s.held) || h.GetHash() != s.hash {
		s.send(outgoing{down: &wire.DeliverDown{Down: &wire.DeliverDown_ListHeld{ListHeld: &wire.ListHeld{}}}})
		return
	}
	if s.missing > 0 {
		for _, r := range s.held {
			r.missed = 0
		}
		s.missing = 0
	}
}

// reconcile goes through a list of what the edge holds.
func (o *office) reconcile(s *session, list []*wire.Held, now time.Time) {
	listed := make(map[command.ID]uint64, len(list))
	for _, h := range list {
		id, ok := callID(h.GetId())
		if !ok {
			continue
		}
		listed[id] = max(listed[id], h.GetFence())
		if h.GetFence() == 0 {
			continue // the edge waits for the answer to its accept
		}
		if r := s.held[id]; (r == nil || r.Fence != h.GetFence()) && h.GetFence() <= o.applied {
			s.send(withdraw(id, h.GetFence(), "call has moved on"))
		}
	}
	s.missing = 0
	for _, r := range s.held {
		fence, ok := listed[r.ID]
		if ok && fence == r.Fence {
			r.missed = 0
			r.sent = true
			continue
		}
		if ok && fence == 0 && r.direct {
			continue // and may have it any moment
		}
		if !r.sent || r.finish != nil {
			continue
		}
		r.missed++
		s.missing++
		if r.missed >= missesToRelease {
			o.finish(r, released("edge does not hold it"), now)
		}
	}
}

// result of a try from an edge. ahead: the fence is newer than what this node has seen, so it is not the leader's to judge.
func (o *office) result(s *session, t *wire.TryResult, now time.Time) (ahead bool) {
	id, ok := callID(t.GetId())
	if !ok {
		return false
	}
	s.seen = now
	r := s.held[id]
	if r == nil || r.Fence != t.GetFence() {
		if t.GetFence() > o.applied {
			return true
		}
		s.send(acknowledge(id, t.GetFence(), codeStale))
		return false
	}
	r.sent, r.result = true, true
	e := ending{
		outcome: t.GetOutcome(), status: t.GetStatus(), text: clip(t.GetError()),
		later: time.Duration(min(t.GetRetryAfterMs(), uint64(maxPause.Milliseconds()))) * time.Millisecond, answer: t.GetAnswer(),
	}
	if len(e.answer) > wire.MaxPayload {
		e.answer = nil // no edge of ours sends it, and no entry could carry it
	}
	if e.outcome == wire.TryOutcome_TRY_OUTCOME_RELEASED && r.finish == nil {
		r.lane.avoid[r.Replica] = now.Add(avoidReplica)
	}
	if pause := e.pause(); pause > 0 && r.finish == nil {
		r.lane.paused[r.Replica] = now.Add(pause)
	}
	o.finish(r, e, now)
	return false
}

// callback ends a call whose function answered 202, or is about to. ok false: no try of this call and function is under way.
func (o *office) callback(id command.ID, function string, success bool, now time.Time) (command.Finish, bool) {
	r := o.runs[id]
	if r == nil || r.Function != function {
		return command.Finish{}, false
	}
	e := ending{outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, status: statusCallbackError}
	if success {
		e.status = statusCallbackOK
	}
	f := decide(now.UnixMilli(), o.attempt(r), e)
	f.ID, f.Fence = r.ID, r.Fence
	return f, true
}

// valid says whether a grant is still worth sending; one whose replica is gone is released unsent.
func (o *office) valid(r *run, now time.Time) bool {
	if o.runs[r.ID] != r || r.finish != nil || r.State != fsm.Running {
		return false
	}
	if !r.lane.has(r.Replica) {
		o.finish(r, released("replica is gone"), now)
		return false
	}
	r.taken = true
	return true
}

// wasSent: the edge has it now, or may have: its time begins.
func (o *office) wasSent(r *run, now time.Time) {
	r.sent = true
	if o.runs[r.ID] == r && r.finish == nil && r.State == fsm.Running {
		r.since = now
		o.setDeadline(r, now)
	}
}

func callID(b []byte) (id command.ID, ok bool) {
	ok = len(b) == len(id)
	copy(id[:], b)
	return id, ok
}

func clip(text string) string {
	if len(text) <= maxText {
		return text
	}
	end := maxText
	for end > 0 && text[end]&0xC0 == 0x80 {
		end--
	}
	return text[:end]
}

func stateName(s fsm.State) string {
	switch s {
	case fsm.Queued:
		return "queued"
	case fsm.Running:
		return "running"
	case fsm.Awaiting:
		return "awaiting its callback"
	case fsm.Waiting:
		return "waiting"
	case fsm.Succeeded:
		return "succeeded"
	case fsm.Dead:
		return "dead"
	case fsm.Cancelled:
		return "cancelled"
	default:
		return "unknown"
	}
}
