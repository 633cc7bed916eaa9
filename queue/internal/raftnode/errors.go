package raftnode

import "errors"

// What a proposal can end in besides success. Only ErrUnknown leaves open whether it happened.
var (
	// ErrUnknown: handed over to raft, and not known whether it was or will be committed.
	ErrUnknown = errors.New("outcome unknown: handed over, not known to be committed")
	// ErrBusy: not handed over; too much is waiting already, or its turn did not come in time.
	ErrBusy = errors.New("not handed over: too much is waiting")
	// ErrFull: not handed over; the disk has no room for the log to grow.
	ErrFull = errors.New("not handed over: the disk of this node is full")
	// ErrStopped: not handed over; the node stops.
	ErrStopped = errors.New("not handed over: node is stopping")
)

// ErrNotLeader is the error of a node that does not lead: nothing was handed over.
type ErrNotLeader struct {
	Leader string // name of the leader; empty while none is known
}

func (e ErrNotLeader) Error() string {
	if e.Leader == "" {
		return "node does not lead, and knows of no leader"
	}
	return "node does not lead, " + e.Leader + " does"
}
