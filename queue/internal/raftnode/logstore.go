package raftnode

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// boltFsyncs of an append: one transaction is one fdatasync for its pages and one for its meta page.
const boltFsyncs = 2

// countedLog is the log on disk, and what was asked of it. Raft appends from one goroutine.
type countedLog struct {
	raft.LogStore
	fsyncs                               uint64 // of one append
	appends, entries, bytes, nanoseconds atomic.Uint64
}

// StoreLog appends one entry.
func (c *countedLog) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries with one commit.
func (c *countedLog) StoreLogs(logs []*raft.Log) error {
	began := time.Now()
	if err := c.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	size := uint64(0)
	for _, l := range logs {
		size += uint64(len(l.Data))
	}
	c.appends.Add(1)
	c.entries.Add(uint64(len(logs)))
	c.bytes.Add(size)
	c.nanoseconds.Add(uint64(time.Since(began)))
	return nil
}

// IsMonotonic implements raft.MonotonicLogStore.
func (c *countedLog) IsMonotonic() bool {
	m, ok := c.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// LogStats is what this node has written to its log since it started.
type LogStats struct {
	Appends, Fsyncs, Entries, Bytes uint64
	Spent                           time.Duration // in appends, fsyncs included
}

// LogStats of this node.
func (n *Node) LogStats() LogStats {
	c := n.counted
	appends := c.appends.Load()
	return LogStats{
		Appends: appends, Fsyncs: appends * c.fsyncs, Entries: c.entries.Load(), Bytes: c.bytes.Load(),
		Spent: time.Duration(c.nanoseconds.Load()),
	}
}
