package dispatch

import (
	"encoding/binary"
	"hash/fnv"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// run is a try under way: Running in a session, or Awaiting its callback.
type run struct {
	fsm.Call
	lane    *lane
	session *session // nil while awaiting, and when its session was not live
	// spec are the settings of the function at the time of the try; nil when the leader found the try without a table.
	spec     *function.Specification
	since    time.Time // of this state, or of taking office, or of sending
	deadline time.Time

	direct bool // the answer to its accept carries it, not the stream
	taken  bool // its sending has begun
	sent   bool // the edge has it, or may have
	missed int  // heartbeats in a row whose list lacked it
	slot   bool // counts in its lane
	load   bool // counts in its session
	result bool // an edge waits for an acknowledgement of its result
	// finish is decided and on its way into the log; nil otherwise.
	finish *command.Finish
}

// pending is a grant that is being proposed. Its slot goes over to the run.
type pending struct {
	place
	lane    *lane
	replica string
	session *session
	spec    *function.Specification
	bury    bool // not for the edge: the call is to be ended
	direct  bool // of a Reservation; its place is known when the accept is applied
}

// session of an edge or a scaler, timed by this leader.
type session struct {
	fsm.Session
	seen   time.Time
	ending bool // its end is being proposed

	// The rest is for edges.
	capacity uint32
	load     int // grants it has or will have, without those whose end is decided
	held     map[command.ID]*run
	hash     uint64 // over held, as wire.HeldHeartbeat defines it
	missing  int    // of held, how many have missed > 0
	link     *link  // nil: no stream
}

func newSession(s fsm.Session, now time.Time) *session {
	return &session{Session: s, seen: now, held: map[command.ID]*run{}}
}

func (s *session) ttl() time.Duration {
	if wire.SessionKind(s.Kind) == wire.SessionKind_SESSION_KIND_SCALER {
		return wire.ScalerSessionTTL
	}
	return wire.EdgeSessionTTL
}

func (s *session) hold(r *run) {
	s.held[r.ID] = r
	s.hash += heldHash(r.ID, r.Fence)
}

func (s *session) drop(r *run) {
	if s.held[r.ID] != r {
		return
	}
	delete(s.held, r.ID)
	s.hash -= heldHash(r.ID, r.Fence)
	if r.missed > 0 {
		s.missing--
	}
}

func (s *session) send(o outgoing) {
	if s != nil && s.link != nil {
		s.link.push(o)
	}
}

// heldHash of one grant: FNV-1a-64 of id and fence.
func heldHash(id command.ID, fence uint64) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(id[:])
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, fence))
	return h.Sum64()
}

// outgoing is one thing for the edge: a message, or a grant whose payload is read when its turn comes.
type outgoing struct {
	down  *wire.DeliverDown
	grant *run
}

// maxOutgoing bounds what waits for one edge: acknowledgements it does not read and grants within its capacity.
const maxOutgoing = 16 << 10

// link is the stream of an edge as the office sees it: a queue, bounded, and a word to hurry.
type link struct {
	out    []outgoing
	closed bool
	more   chan struct{} // of one: something to send, or closed
	gone   chan struct{} // closed with closed
}

func newLink() *link { return &link{more: make(chan struct{}, 1), gone: make(chan struct{})} }

func (l *link) push(o outgoing) {
	if l.closed {
		return
	}
	l.out = append(l.out, o)
	if len(l.out) > maxOutgoing {
		l.close() // it does not read; what it holds is found out when it comes back
	}
	l.hurry()
}

func (l *link) close() {
	if !l.closed {
		l.closed = true
		close(l.gone)
	}
	l.hurry()
}

func (l *link) hurry() {
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func acknowledge(id command.ID, fence uint64, code wire.Code) outgoing {
	return outgoing{down: &wire.DeliverDown{Down: &wire.DeliverDown_ResultAck{
		ResultAck: &wire.ResultAck{Id: id[:], Fence: fence, Code: code},
	}}}
}

func withdraw(id command.ID, fence uint64, reason string) outgoing {
	return outgoing{down: &wire.DeliverDown{Down: &wire.DeliverDown_Withdraw{
		Withdraw: &wire.Withdraw{Id: id[:], Fence: fence, Reason: reason},
	}}}
}
