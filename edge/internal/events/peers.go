package events

import (
	"context"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// maxPeers bounds what is remembered of other edges.
const maxPeers = 1024

// Roster is the other edges that may be asked for help with an event. Safe for concurrent use.
type Roster struct {
	// Edge and Incarnation are this edge's own.
	Edge, Incarnation string
	// Publish puts a hello on the bus.
	Publish func(*wire.EdgeHello) error

	mu    sync.Mutex
	peers map[string]time.Time // by incarnation: when it was last heard
}

// Run says hello each second until ctx ends, and then once that this edge leaves.
func (r *Roster) Run(ctx context.Context) {
	tick := time.NewTicker(wire.HelloEvery)
	defer tick.Stop()
	for {
		_ = r.Publish(&wire.EdgeHello{Edge: r.Edge, Incarnation: r.Incarnation}) // a lost one is repaired by the next
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = r.Publish(&wire.EdgeHello{Edge: r.Edge, Incarnation: r.Incarnation, Leaving: true})
			return
		}
	}
}

// Heard takes a hello from the bus, which may be this edge's own.
func (r *Roster) Heard(m *wire.EdgeHello) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.GetLeaving() {
		delete(r.peers, m.GetIncarnation())
		return
	}
	if m.GetIncarnation() == "" || m.GetIncarnation() == r.Incarnation {
		return
	}
	r.forget()
	if r.peers == nil {
		r.peers = map[string]time.Time{}
	}
	if _, known := r.peers[m.GetIncarnation()]; known || len(r.peers) < maxPeers {
		r.peers[m.GetIncarnation()] = time.Now()
	}
}

// Peers lists the incarnations of the edges heard of late, in no order.
func (r *Roster) Peers() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
	peers := make([]string, 0, len(r.peers))
	for p := range r.peers {
		peers = append(peers, p)
	}
	return peers
}

func (r *Roster) forget() {
	for p, heard := range r.peers {
		if time.Since(heard) > wire.EdgeForgotten {
			delete(r.peers, p)
		}
	}
}
