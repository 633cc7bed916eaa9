package raftnode

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/guard"
)

// standing of a node among the others: what it may do in Raft.
type standing int32

const (
	// blank: its directory is empty. It takes nothing and has no vote until all others say that they are blank too.
	blank standing = iota
	// newcomer: its directory is empty, and it is to be added to a cluster. It takes nothing and has no vote until the leader has
	// said that no node of its name votes.
	newcomer
	// joining: its directory was lost and an operator said so. It takes what the leader sends and has no vote before it has all of it.
	joining
	// added: it is new, and so is its directory. It takes what the leader sends, and votes as soon as Raft lets it: there is no
	// life before this one in which it could have promised anything.
	added
	// returning: it has a log. It has no vote before others have said that they remember nothing newer of it.
	returning
	// member: it votes, if it is a voter.
	member
)

func (s standing) String() string {
	return [...]string{"blank", "newcomer", "joining", "added", "returning", "member"}[s]
}

// trusted: what it votes counts. Whether it is a voter is Raft's to know.
func (s standing) trusted() bool { return s == added || s == member }

// empty: it has nothing and takes nothing.
func (s standing) empty() bool { return s == blank || s == newcomer }

// dialEvery is the pause between two attempts to connect to a member for which there are entries.
const dialEvery = 100 * time.Millisecond

// Why the gate lets something not pass.
var (
	errNoVote   = errors.New("this node has no vote yet")
	errBlank    = errors.New("this node's directory is empty and it takes nothing yet")
	errMute     = errors.New("a write of this node hangs, it is mute")
	errHalted   = errors.New("this node's disk is full")
	errAlone    = errors.New("this node has a cluster of its own, and no other member")
	errStranger = errors.New("the other node is of another cluster")
	errUnheard  = errors.New("the other node has not said yet which cluster it is of")
)

// gate stands between Raft and the transport. The library asks nobody whether a node may vote, and goes on sending heartbeats
// while its disk hangs (reliability.md §0.2); the gate is where both end.
type gate struct {
	*raft.NetworkTransport
	node *Node
	log  raft.LogStore // what fill reads
	in   chan raft.RPC

	standing atomic.Int32
	mute     atomic.Bool
	// confirmations of this node's leadership.
	confirmations confirmations
	// heard is the leader's last word on what is committed, for a node that is filled.
	heard atomic.Pointer[leaderWord]
	// caller is the leader that last sent something to a node that takes nothing, or who last asked one that is alone in its cluster
	// and is of another.
	caller atomic.Pointer[Member]
}

// leaderWord is what one append message says of its sender.
type leaderWord struct{ term, commit uint64 }

var (
	_ raft.Transport   = (*gate)(nil)
	_ raft.WithPreVote = (*gate)(nil)
)

func newGate(n *Node, transport *raft.NetworkTransport) *gate {
	return &gate{NetworkTransport: transport, node: n, in: make(chan raft.RPC)}
}

func (g *gate) is() standing { return standing(g.standing.Load()) }

func (g *gate) become(s standing) { g.standing.Store(int32(s)) }

// Consumer implements raft.Transport.
func (g *gate) Consumer() <-chan raft.RPC { return g.in }

// pass incoming messages on, until the node's life ends.
func (g *gate) pass(life context.Context) {
	for {
		select {
		case rpc := <-g.NetworkTransport.Consumer():
			if question, ok := rpc.Command.(*raft.RequestPreVoteRequest); ok && question.Term == 0 {
				rpc.Respond(g.node.peers.answer(question), nil)
				continue
			}
			if response, err := g.refuse(rpc.Command); response != nil || err != nil {
				rpc.Respond(response, err)
				continue
			}
			select {
			case g.in <- rpc:
			case <-life.Done():
				return
			}
		case <-life.Done():
			return
		}
	}
}

// refuse gives the answer to a message that must not reach Raft.
func (g *gate) refuse(message any) (response any, err error) {
	if g.mute.Load() {
		return nil, errMute
	}
	if from, ok := message.(raft.WithRPCHeader); ok && g.node.peers.stranger(string(from.GetRPCHeader().ID)) {
		return nil, errStranger
	}
	is := g.is()
	switch m := message.(type) {
	case *raft.RequestVoteRequest:
		if !is.trusted() {
			return &raft.RequestVoteResponse{RPCHeader: g.header()}, nil
		}
	case *raft.RequestPreVoteRequest:
		if !is.trusted() {
			return &raft.RequestPreVoteResponse{RPCHeader: g.header()}, nil
		}
	case *raft.TimeoutNowRequest:
		if !is.trusted() {
			return nil, errNoVote
		}
	case *raft.AppendEntriesRequest:
		switch {
		case is.empty():
			g.called(m)
			return nil, errBlank
		case g.node.alone():
			g.called(m)
			return nil, errAlone
		case is == joining && g.node.peers.unheard(string(m.ID)):
			g.called(m)
			return nil, errUnheard
		case len(m.Entries) > 0 && g.node.disk.Level() >= guard.Halted:
			return nil, errHalted
		case m.LeaderCommitIndex > 0 && (is == joining || is == added): // a heartbeat says nothing of it
			g.heard.Store(&leaderWord{m.Term, m.LeaderCommitIndex})
		}
	case *raft.InstallSnapshotRequest:
		switch {
		case is.empty():
			return nil, errBlank
		case g.node.alone():
			return nil, errAlone
		case is == joining && g.node.peers.unheard(string(m.ID)):
			return nil, errUnheard
		case g.node.disk.Level() >= guard.Halted:
			return nil, errHalted
		}
	}
	return nil, nil
}

// called by a leader, which is asked in turn.
func (g *gate) called(m *raft.AppendEntriesRequest) {
	address, _, _ := decodeAddress(raft.ServerAddress(m.Addr))
	g.caller.Store(&Member{Name: string(m.ID), RaftAddress: address})
}

func (g *gate) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(g.node.config.Name), Addr: []byte(g.LocalAddr())}
}

// SetHeartbeatHandler implements raft.Transport: heartbeats that change nothing go past Consumer, so that a follower whose disk is slow
// answers them. The others must not: the library handles them beside its own loop, and a leader that is deposed by one there, between
// two steps of the loop, writes its next entry in its successor's term. Two entries of one index and one term are never told apart, and
// the nodes' states differ for good (docs/adr/0028).
func (g *gate) SetHeartbeatHandler(handle func(raft.RPC)) {
	g.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if response, err := g.refuse(rpc.Command); response != nil || err != nil {
			rpc.Respond(response, err)
			return
		}
		if q, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && g.routine(q.Term) {
			handle(rpc)
			return
		}
		select {
		case g.in <- rpc:
		case <-g.node.life.Done():
			rpc.Respond(nil, raft.ErrRaftShutdown)
		}
	})
}

// routine: a heartbeat of this term changes neither this node's state nor its term.
func (g *gate) routine(term uint64) bool {
	r := g.node.where.raft.Load()
	if r == nil {
		return false
	}
	own := r.CurrentTerm()
	return term < own || term == own && r.State() == raft.Follower
}

// RequestVote implements raft.Transport.
func (g *gate) RequestVote(id raft.ServerID, at raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	if err := g.mayStand(id); err != nil {
		return err
	}
	return g.NetworkTransport.RequestVote(id, at, q, a)
}

// RequestPreVote implements raft.WithPreVote.
func (g *gate) RequestPreVote(id raft.ServerID, at raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	if err := g.mayStand(id); err != nil {
		return err
	}
	return g.NetworkTransport.RequestPreVote(id, at, q, a)
}

func (g *gate) mayStand(before raft.ServerID) error {
	switch {
	case !g.is().trusted():
		return errNoVote
	case g.node.disk.Level() >= guard.Halted && g.node.peers.anyRoomier():
		return errHalted
	}
	return g.maySend(before)
}

func (g *gate) maySend(to raft.ServerID) error {
	switch {
	case g.mute.Load():
		return errMute
	case g.node.peers.stranger(string(to)):
		return errStranger
	}
	return nil
}

// AppendEntries implements raft.Transport. Entries for a member that cannot be connected to wait here. The library would try again,
// too, but after pauses that double up to 10 s: a node that was down for some seconds would answer heartbeats at once and get
// entries only so much later, when the next node may be down already.
func (g *gate) AppendEntries(id raft.ServerID, at raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	g.fill(q)
	for {
		if err := g.maySend(id); err != nil {
			return err
		}
		sent := time.Now()
		err := g.NetworkTransport.AppendEntries(id, at, q, a)
		if err == nil {
			g.confirmations.answered(string(id), sent, q.Term, a.Term)
		}
		var op *net.OpError
		if err == nil || isHeartbeat(q) || !errors.As(err, &op) || op.Op != "dial" || !g.dialAgain(string(id), q.Term) {
			return err
		}
	}
}

// isHeartbeat: the library gives those nothing to say but who leads.
func isHeartbeat(q *raft.AppendEntriesRequest) bool {
	return len(q.Entries) == 0 && q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && q.LeaderCommitIndex == 0
}

// dialAgain waits, and says whether this node still leads in the term, and the other is a member.
func (g *gate) dialAgain(other string, term uint64) bool {
	pause := time.NewTimer(dialEvery)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-g.node.life.Done():
		return false
	}
	r := g.node.where.raft.Load()
	return r != nil && r.State() == raft.Leader && r.CurrentTerm() == term && g.node.where.suffrage(other) != noMember
}

// InstallSnapshot implements raft.Transport.
func (g *gate) InstallSnapshot(
	id raft.ServerID, at raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader,
) error {
	if err := g.maySend(id); err != nil {
		return err
	}
	return g.NetworkTransport.InstallSnapshot(id, at, q, a, data)
}
