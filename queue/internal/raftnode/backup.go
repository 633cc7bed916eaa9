package raftnode

import (
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/store"
)

// Copy of the state at one index, for a cluster with a log of its own.
type Copy struct {
	Index uint64 // everything up to this entry is in it
	Term  uint64 // of that entry; a later one when the log does not have it any more
	Size  int64  // in bytes
	io.ReadCloser
}

// Backup begins a snapshot that has all that was committed when it was called. The log is not cut for it. Errors: ErrNotLeader,
// and what flushing the state can fail with.
func (n *Node) Backup(ctx context.Context) (*Copy, error) {
	if err := n.ReadBarrier(ctx); err != nil {
		return nil, err
	}
	want := n.Applied()
	if n.applier.failed.Load() {
		return nil, errFailed // what this node has must not be passed on
	}
	snapshot, err := n.store.Snapshot(store.Backup) // waits for the disk only
	if err != nil {
		return nil, fmt.Errorf("making a snapshot: %w", err)
	}
	// The entries between the two are raft's own: what is applied is in the store.
	c := &Copy{Index: max(want, snapshot.Index()), Term: n.Term(), Size: snapshot.Size()}
	var entry raft.Log
	if n.guarded.GetLog(c.Index, &entry) == nil {
		c.Term = entry.Term
	}
	c.ReadCloser = send(snapshot)
	return c, nil
}
