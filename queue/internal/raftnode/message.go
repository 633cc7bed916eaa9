package raftnode

import "github.com/hashicorp/raft"

const (
	// filledBytes is how large an append message is made at most if the library leaves it smaller.
	filledBytes = 4 << 20
	// maxMessageEntries in one append message, however small.
	maxMessageEntries = 1024
)

// fill a message that is full by the library's count, as long as its entries are small.
//
// The library sends one message of maxAppendEntries whenever something is written, and one every 50 to 100 ms when nothing is. A
// leader whose batches wait for the one follower that is behind writes nothing: 1,000 entries took it five seconds, in which
// no call was accepted (chaos Q4). It reads what it has sent from the message itself, so that a longer one is a faster one.
func (g *gate) fill(q *raft.AppendEntriesRequest) {
	r := g.node.where.raft.Load()
	if r == nil || len(q.Entries) < maxAppendEntries {
		return
	}
	bytes := 0
	for _, e := range q.Entries {
		bytes += len(e.Data)
	}
	entries, end := q.Entries, r.LastIndex()
	for index := entries[len(entries)-1].Index + 1; index <= end && len(entries) < maxMessageEntries; index++ {
		next := new(raft.Log)
		if err := g.log.GetLog(index, next); err != nil {
			break // the library will come to it, and knows what to do
		}
		if bytes += len(next.Data); bytes > filledBytes {
			break
		}
		entries = append(entries, next)
	}
	// The log of a leader only grows. One that leads no longer may have read what its successor wrote.
	if r.State() == raft.Leader && r.CurrentTerm() == q.Term {
		q.Entries = entries
	}
}
