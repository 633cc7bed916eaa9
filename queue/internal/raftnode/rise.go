package raftnode

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// rise from one standing to the next, until this node is a member.
func (p *peers) rise(life context.Context) {
	tick := time.NewTicker(askSoon / 2)
	defer tick.Stop()
	began := time.Now()
	var filledSince time.Time
	told := false
	for {
		var err error
		is := p.node.gate.is()
		switch is {
		case blank:
			err = p.form()
		case newcomer:
			err = p.enter()
		case returning:
			if p.confirmed() {
				p.node.gate.become(member)
			}
		case joining, added:
			if filledSince.IsZero() && p.node.gate.heard.Load() != nil {
				filledSince = time.Now()
			}
			if !filledSince.IsZero() && time.Since(filledSince) >= joinAtLeast && p.filled() {
				err = p.node.joined()
			}
		case member:
			p.node.log.Info("this node is a member", "after", time.Since(began).String())
			return
		}
		if err != nil {
			p.node.fail(err)
			return
		}
		if trusted, waitsFor := p.node.Trusted(); !trusted && !told && time.Since(began) > 5*time.Second {
			told = true
			p.node.log.Warn("this node has no vote yet", "standing", is.String(), "why", waitsFor, "answered", p.count(func(o *peer) bool { return o.seen }))
		}
		if p.node.gate.is() != is {
			continue
		}
		select {
		case <-tick.C:
		case <-life.Done():
			return
		}
	}
}

// confirmed: a majority, this node included if it is a voter, remembers nothing newer of it. A voter alone is its own.
func (p *peers) confirmed() bool {
	_, majority := p.electorate()
	count := p.count(func(o *peer) bool { return o.confirmed })
	if _, votes := p.node.Member(); votes {
		count++
	}
	return count >= majority
}

// form the cluster, once it is certain that there is none: all others are blank, too. Most of them would do for that (four of
// five), but the one that comes a moment later would find a cluster that it has no memory of, as if it had lost its data.
func (p *peers) form() error {
	others, _ := p.electorate()
	need := len(others)
	if p.count(func(o *peer) bool { return o.wasBlank }) >= need {
		return p.node.found()
	}
	// One count, behind the other: an answer that comes in between must not be missed by both.
	if p.count(func(o *peer) bool { return o.wasBlank || !o.seen || o.last.Standing == newcomer.String() }) >= need {
		return nil
	}
	cluster, known := "", false
	p.mu.Lock()
	for _, other := range p.by {
		if other.last.Cluster != "" {
			cluster = other.last.Cluster
		}
		known = known || other.last.Asker != noMember
	}
	p.mu.Unlock()
	way := howToRejoin(cluster)
	if !known {
		way = howToJoin(p.node.config.Name)
	}
	return fmt.Errorf("%s is empty, and the other nodes are a cluster already: %w. %s", p.node.config.Dir, ErrLostLog, way)
}

// enter a cluster as a node that is new in it, once the leader that calls says that no node of this name has a vote. Where one
// has, this directory stands for a lost one, and what that had promised must not be forgotten.
func (p *peers) enter() error {
	cluster, votes := "", false
	p.mu.Lock()
	for _, other := range p.by {
		if other.last.Asker == voter {
			cluster, votes = other.last.Cluster, true
		}
	}
	p.mu.Unlock()
	if leader := p.node.gate.caller.Load(); leader != nil && !votes {
		said, err := p.question(*leader, p.own())
		if err != nil {
			p.node.log.Debug("the leader that calls did not answer", "peer", leader.Name, "err", err)
			return nil
		}
		if said.Asker == nonVoter {
			p.node.log.Info("added to a cluster: its leader fills the data directory", "leader", leader.Name, "cluster", said.Cluster)
			return p.node.enter(said.Cluster)
		}
		cluster, votes = said.Cluster, said.Asker == voter
		p.node.gate.caller.CompareAndSwap(leader, nil) // until it, or another, calls again
	}
	if !votes {
		return nil
	}
	return fmt.Errorf("%s is empty, and %q has a vote in the cluster: it is no new node, it has lost its data: %w. %s",
		p.node.config.Dir, p.node.config.Name, ErrLostLog, howToRejoin(cluster))
}

// filled: this node has everything the leader had committed, something of the leader's own term among it. Before that a new
// leader does not know what is committed.
func (p *peers) filled() bool {
	heard := p.node.gate.heard.Load()
	r := p.node.where.raft.Load()
	if heard == nil || heard.commit == 0 || r == nil || r.AppliedIndex() < heard.commit {
		return false
	}
	var l raft.Log
	err := p.node.guarded.GetLog(heard.commit, &l)
	if errors.Is(err, raft.ErrLogNotFound) {
		index, term, snapshotErr := newestSnapshot(p.node.snapshots)
		return snapshotErr == nil && index == heard.commit && term == heard.term
	}
	return err == nil && l.Term == heard.term
}
