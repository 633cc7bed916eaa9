package raftnode

import (
	"errors"
	"sync"

	"github.com/hashicorp/raft"
)

// logSizes counts the log in bytes, which raft does only in entries.
type logSizes struct {
	mu      sync.Mutex // guards all below but due
	ring    [ringSize]uint32
	next    int   // in ring
	bytes   int64 // applied since the last snapshot
	entries int   // the same, in entries

	limitBytes   int64
	limitEntries int
	due          chan struct{} // of one: a snapshot is due
}

func (s *logSizes) add(logs []*raft.Log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range logs {
		s.ring[s.next] = uint32(len(l.Data))
		s.next = (s.next + 1) % ringSize
		s.bytes += int64(len(l.Data))
	}
	s.entries += len(logs)
	if s.limitBytes == 0 {
		return // the keeper has not started
	}
	if s.bytes >= s.limitBytes || s.entries >= s.limitEntries {
		select {
		case s.due <- struct{}{}:
		default:
		}
	}
}

// begin tells how many entries the last so many bytes are, and starts counting anew.
func (s *logSizes) begin(trailingBytes int64) (trailing uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes, s.entries = 0, 0
	select {
	case <-s.due: // said again between the word and now
	default:
	}
	left := trailingBytes
	for i := range ringSize {
		left -= int64(s.ring[(s.next-1-i+ringSize)%ringSize])
		if left < 0 {
			break
		}
		trailing++
	}
	return max(trailing, maxAppendEntries)
}

func (s *logSizes) restored() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes, s.entries = 0, 0
}

func (s *logSizes) limit(bytes int64, entries int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limitBytes, s.limitEntries = bytes, entries
}

// keepSnapshots makes one whenever the log has grown enough, until the node stops.
func (n *Node) keepSnapshots() {
	sizes := &n.applier.sizes
	sizes.limit(n.config.SnapshotBytes, n.config.SnapshotEntries)
	for {
		select {
		case <-n.life.Done():
			return
		case <-sizes.due:
		}
		if err := n.snapshot(); err != nil && n.life.Err() == nil {
			n.log.Warn("snapshot failed, the log keeps growing until the next", "err", err)
		}
	}
}

func (n *Node) snapshot() error {
	reload := n.raft.ReloadableConfig()
	reload.TrailingLogs = n.applier.sizes.begin(n.config.TrailingBytes)
	if entries, ok := n.logStore.trailing(n.config.TrailingBytes); ok {
		reload.TrailingLogs = max(entries, maxAppendEntries)
	}
	if err := n.raft.ReloadConfig(reload); err != nil {
		return err
	}
	err := n.raft.Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}
