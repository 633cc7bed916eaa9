package raftnode

import (
	"sync"

	"github.com/hashicorp/raft"
)

// AppendEntriesPipeline implements raft.Transport.
func (g *gate) AppendEntriesPipeline(id raft.ServerID, at raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := g.maySend(id); err != nil {
		return nil, err
	}
	p, err := g.NetworkTransport.AppendEntriesPipeline(id, at)
	if err != nil {
		return nil, err
	}
	return newGatedPipeline(g, id, p), nil
}

// gatedPipeline is a pipeline of append messages to one follower. It ends with the first message that is not taken.
//
// The library's own does not: who reads the answers goes away then, and if one more message has been begun, writing it waits for
// the answers to be read, and they for the writing, for good. Heartbeats go on, so that the follower stays quiet and only never
// gets anything again (hashicorp/raft #612).
type gatedPipeline struct {
	raft.AppendPipeline
	gate     *gate
	to       raft.ServerID
	answered chan raft.AppendFuture
	closed   chan struct{}
	once     sync.Once
}

func newGatedPipeline(g *gate, to raft.ServerID, p raft.AppendPipeline) *gatedPipeline {
	out := &gatedPipeline{AppendPipeline: p, gate: g, to: to, answered: make(chan raft.AppendFuture), closed: make(chan struct{})}
	go out.pass() // until Close, which raft calls whatever happens
	return out
}

// AppendEntries implements raft.AppendPipeline.
func (p *gatedPipeline) AppendEntries(q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.gate.maySend(p.to); err != nil {
		return nil, err
	}
	p.gate.fill(q)
	return p.AppendPipeline.AppendEntries(q, a)
}

// Consumer implements raft.AppendPipeline.
func (p *gatedPipeline) Consumer() <-chan raft.AppendFuture { return p.answered }

// Close implements raft.AppendPipeline.
func (p *gatedPipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.AppendPipeline.Close()
}

// pass answers on, and end with the first that says no: the reader goes away with it.
func (p *gatedPipeline) pass() {
	for {
		select {
		case answer := <-p.AppendPipeline.Consumer():
			p.gate.confirmations.answered(string(p.to), answer.Start(), answer.Request().Term, answer.Response().Term)
			taken := answer.Response().Success
			select {
			case p.answered <- answer:
			case <-p.closed:
				return
			}
			if !taken {
				_ = p.AppendPipeline.Close() // never fails
				return
			}
		case <-p.closed:
			return
		}
	}
}
