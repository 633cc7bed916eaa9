package raftnode

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// readTimeout bounds ReadBarrier whatever its context says.
const readTimeout = 2 * time.Second

// ReadBarrier returns when View shows everything that was committed when it was called. Errors: ErrNotLeader, or the
// context's (its own limit is 2 s).
//
// The library has no ReadIndex; this is its recipe (reliability.md §2): something of this term is committed and applied (the
// office's barrier), note the commit index, a majority confirms the leadership, the term is still the same, wait for apply. What
// confirms it is an answer to a message sent after the index was noted: see confirmations.
func (n *Node) ReadBarrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	t, err := n.inOffice(ctx)
	if err != nil {
		return err
	}
	commit := n.raft.CommitIndex()
	noted := time.Now()
	verified := make(chan error, 1)
	future := n.raft.VerifyLeader()
	go func() { verified <- future.Error() }() // ends with the lease at the latest
	select {
	case err := <-verified:
		if err != nil {
			return n.notLeader()
		}
	case <-ctx.Done():
		return fmt.Errorf("confirming the leadership: %w", ctx.Err())
	}
	if err := n.confirmed(ctx, t.number, noted); err != nil {
		return err
	}
	if n.raft.CurrentTerm() != t.number || t.ctx.Err() != nil {
		return n.notLeader()
	}
	return n.applier.index.wait(ctx, commit)
}

// inOffice waits for a leader that has just been elected to take office.
func (n *Node) inOffice(ctx context.Context) (*term, error) {
	for {
		t, changed := n.office.current()
		if !n.IsLeader() {
			return nil, n.notLeader()
		}
		if t != nil && t.ctx.Err() == nil {
			return t, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for office: %w", ctx.Err())
		}
	}
}

func (n *Node) notLeader() error {
	leader := n.Leader()
	if leader == n.config.Name {
		leader = "" // it leads no more, or not yet
	}
	return ErrNotLeader{Leader: leader}
}

// Leader is the name of the leader this node knows of; empty: none.
func (n *Node) Leader() string {
	_, id := n.raft.LeaderWithID()
	return string(id)
}

// IsLeader says whether this node leads, as far as it knows. It may not have taken office yet.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader && !n.gate.mute.Load() }

// InOffice says whether this node leads and has taken office.
func (n *Node) InOffice() bool {
	t, _ := n.office.current()
	return t != nil
}

// Term of raft.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// Applied is the index up to which everything is in View and Payload. Entries that raft keeps to itself may be above it.
func (n *Node) Applied() uint64 {
	index, _ := n.applier.index.get()
	return index
}

// Commit is the index a majority has, as far as this node knows.
func (n *Node) Commit() uint64 { return n.raft.CommitIndex() }

// LastContact is how long ago a follower heard from its leader; 0 on the leader, negative: never.
func (n *Node) LastContact() time.Duration {
	if n.IsLeader() {
		return 0
	}
	last := n.raft.LastContact()
	if last.IsZero() {
		return -1
	}
	return time.Since(last)
}

// Name of this node.
func (n *Node) Name() string { return n.config.Name }
