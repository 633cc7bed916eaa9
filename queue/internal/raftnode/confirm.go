package raftnode

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// confirmations are what the others have last said to this node's claim to lead. The library's VerifyLeader takes any answer of a
// follower that comes after the question, also one that was given to a message of long before: a leader that was paused while another
// took over finds such answers in its sockets when it goes on, and would read what is old. What counts here is when the message was sent.
type confirmations struct {
	mu      sync.Mutex // guards all below
	by      map[string]confirmation
	changed chan struct{} // closed with the next one; nil: nobody waits
}

// confirmation of one node: it knew of no term above this one when it answered a message sent then.
type confirmation struct {
	term uint64
	sent time.Time // on this node's monotonic clock
}

// answered: the node said to a message of the term, sent then, that it is in that of the answer.
func (c *confirmations) answered(node string, sent time.Time, term, answer uint64) {
	if answer != term {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if last := c.by[node]; last.term > term || last.term == term && !sent.After(last.sent) {
		return
	}
	if c.by == nil {
		c.by = map[string]confirmation{}
	}
	c.by[node] = confirmation{term, sent}
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// since says how many of these have confirmed the term to a message sent after this time, and gives what is closed when that may change.
func (c *confirmations) since(nodes []string, term uint64, after time.Time) (confirmed int, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, node := range nodes {
		if last := c.by[node]; last.term == term && last.sent.After(after) {
			confirmed++
		}
	}
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return confirmed, c.changed
}

// confirmed returns when a majority of the voters knew of no term above this one after the time. VerifyLeader, called after it, makes
// this node ask them.
func (n *Node) confirmed(ctx context.Context, term uint64, after time.Time) error {
	others, needed := n.peers.electorate()
	if n.where.suffrage(n.config.Name) == voter {
		needed-- // this node itself
	}
	for {
		count, changed := n.gate.confirmations.since(others, term, after)
		if count >= needed {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("confirming the leadership: %w", ctx.Err())
		}
	}
}
