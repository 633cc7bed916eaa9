package raftnode

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// ErrChanged says that the membership is not the one the change was decided on; nothing was changed.
var ErrChanged = errors.New("the membership has changed meanwhile")

// Member of the cluster; addresses are host:port, resolved at each dial. API and routes are empty for members that an older
// version wrote into the log and that this node's configuration does not list.
type Member struct {
	Name          string
	RaftAddress   string
	APIAddress    string
	RoutesAddress string
	Voter         bool // ignored in a Config: all of a first start are
}

// Membership as the log has it.
type Membership struct {
	Members []Member
	Version uint64 // a hash of it; 0: this node knows of none, it has not been added yet
	Pending bool   // not known to be committed
}

// version of an encoded membership. The library does not tell the index of the newest one (its future says 0).
func version(encoded []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(encoded)
	return max(1, h.Sum64())
}

// encodeAddress puts all of a member's addresses where raft keeps one. So they are replicated with the membership, in the
// same entry, and no node can know a member without knowing where it is.
func encodeAddress(m Member) raft.ServerAddress {
	if m.APIAddress == "" && m.RoutesAddress == "" {
		return raft.ServerAddress(m.RaftAddress)
	}
	return raft.ServerAddress(m.RaftAddress + "," + m.APIAddress + "," + m.RoutesAddress)
}

// decodeMember reads a server of raft's; a plain address is the one for Raft.
func decodeMember(s raft.Server) Member {
	m := Member{Name: string(s.ID), Voter: s.Suffrage == raft.Voter}
	m.RaftAddress, m.APIAddress, m.RoutesAddress = decodeAddress(s.Address)
	return m
}

func decodeAddress(a raft.ServerAddress) (raftAddress, api, routes string) {
	raftAddress, rest, _ := strings.Cut(string(a), ",")
	api, routes, _ = strings.Cut(rest, ",")
	return raftAddress, api, routes
}

func decodeMembers(c raft.Configuration) []Member {
	list := make([]Member, 0, len(c.Servers))
	for _, s := range c.Servers {
		list = append(list, decodeMember(s))
	}
	return list
}

func configuration(members []Member) raft.Configuration {
	var c raft.Configuration
	for _, m := range members {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.Name), Address: encodeAddress(m)})
	}
	return c
}

// addresses by name: this start's configuration for those it lists (a host may have moved), the log's for the others.
type addresses struct {
	listed []Member
	raft   atomic.Pointer[raft.Raft] // nil until raft runs
}

// all members: those that are listed, then those that only the log has.
func (a *addresses) all() []Member {
	r := a.raft.Load()
	if r == nil {
		return a.listed
	}
	all := slices.Clone(a.listed)
	for _, m := range decodeMembers(r.GetConfiguration().Configuration()) {
		if !slices.ContainsFunc(a.listed, func(l Member) bool { return l.Name == m.Name }) {
			all = append(all, m)
		}
	}
	return all
}

// members as this node knows them: those of the newest configuration in its log, committed or not, for Raft acts on it; before
// there is one, those of a first start, all with a vote.
func (a *addresses) members() []Member {
	var c raft.Configuration
	if r := a.raft.Load(); r != nil {
		c = r.GetConfiguration().Configuration()
	}
	if len(c.Servers) == 0 {
		list := slices.Clone(a.listed)
		for i := range list {
			list[i].Voter = true
		}
		return list
	}
	return a.placed(decodeMembers(c))
}

// placed gives members of the log the addresses of this start's configuration, where it lists them.
func (a *addresses) placed(members []Member) []Member {
	for i, m := range members {
		for _, l := range a.listed {
			if l.Name == m.Name {
				l.Voter = m.Voter
				members[i] = l
			}
		}
	}
	return members
}

// suffrage of a node.
type suffrage string

const (
	noMember suffrage = ""
	nonVoter suffrage = "non-voter"
	voter    suffrage = "voter"
)

// suffrage of a node by the newest configuration in this node's log.
func (a *addresses) suffrage(name string) suffrage {
	r := a.raft.Load()
	if r == nil {
		return noMember
	}
	for _, s := range r.GetConfiguration().Configuration().Servers {
		switch {
		case string(s.ID) != name:
		case s.Suffrage == raft.Voter:
			return voter
		default:
			return nonVoter
		}
	}
	return noMember
}

// ServerAddr implements raft.ServerAddressProvider.
func (a *addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	for _, m := range a.all() {
		if m.Name == string(id) {
			return raft.ServerAddress(m.RaftAddress), nil
		}
	}
	return "", fmt.Errorf("node %q is not a member", id)
}

// Membership this node knows of, its newest, with the addresses of its own configuration for the members that lists.
func (n *Node) Membership() Membership {
	c := n.raft.GetConfiguration().Configuration()
	m := Membership{Members: n.where.placed(decodeMembers(c))}
	if len(c.Servers) > 0 {
		m.Version = version(raft.EncodeConfiguration(c))
	}
	applied := n.applier.members.Load()
	m.Pending = applied != 0 && applied != m.Version
	return m
}

// Members are those of Membership.
func (n *Node) Members() []Member { return n.Membership().Members }

// Member says whether this node is in the membership it knows, and whether it votes.
func (n *Node) Member() (is, votes bool) {
	s := n.where.suffrage(n.config.Name)
	return s != noMember, s == voter
}

func (n *Node) voters() int {
	count := 0
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// AddNonvoter adds a member without a vote, if the membership is still the one of that version. Errors: ErrNotLeader, ErrChanged,
// ErrUnknown, the context's (outcome unknown, too).
func (n *Node) AddNonvoter(ctx context.Context, m Member, decidedOn uint64) error {
	return n.change(ctx, "adding a member", decidedOn, func() raft.IndexFuture {
		return n.raft.AddNonvoter(raft.ServerID(m.Name), encodeAddress(m), 0, enqueueTimeout)
	})
}

// Promote gives a member its vote; otherwise as AddNonvoter. Whether it has caught up is the caller's to know.
func (n *Node) Promote(ctx context.Context, name string, decidedOn uint64) error {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if string(s.ID) == name {
			return n.change(ctx, "promoting a member", decidedOn, func() raft.IndexFuture {
				return n.raft.AddVoter(s.ID, s.Address, 0, enqueueTimeout)
			})
		}
	}
	return fmt.Errorf("promoting %s: %w", name, ErrChanged)
}

// Remove takes a member out; otherwise as AddNonvoter.
func (n *Node) Remove(ctx context.Context, name string, decidedOn uint64) error {
	return n.change(ctx, "removing a member", decidedOn, func() raft.IndexFuture {
		return n.raft.RemoveServer(raft.ServerID(name), 0, enqueueTimeout)
	})
}

// change holds n.changing until the change is committed or given up, so that two that were decided on the same membership cannot
// both happen.
func (n *Node) change(ctx context.Context, step string, decidedOn uint64, begin func() raft.IndexFuture) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.raft.State() != raft.Leader {
		return n.notLeader()
	}
	if n.Membership().Version != decidedOn {
		return fmt.Errorf("%s: %w", step, ErrChanged)
	}
	err := n.await(ctx, func() error { return begin().Error() })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return n.notLeader()
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%s: %w", step, ErrBusy)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, ctx.Err()):
		return fmt.Errorf("%s: %w (%w)", step, ErrUnknown, err)
	default:
		return fmt.Errorf("%s: %w", step, err)
	}
}

// await a future of raft's for no longer than ctx; the future itself may take for ever.
func (n *Node) await(ctx context.Context, future func() error) error {
	answer := make(chan error, 1)
	go func() { answer <- future() }() // left behind only when raft shuts down with the future in it
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TransferTo hands the leadership to this voter, or, with an empty name, to whoever has most of the log. ErrNotLeader when
// this node does not lead.
func (n *Node) TransferTo(ctx context.Context, name string) error {
	if n.raft.State() != raft.Leader {
		return n.notLeader()
	}
	begin := n.raft.LeadershipTransfer
	if name != "" {
		address, err := n.where.ServerAddr(raft.ServerID(name))
		if err != nil {
			return fmt.Errorf("handing over leadership: %w", err)
		}
		begin = func() raft.Future { return n.raft.LeadershipTransferToServer(raft.ServerID(name), address) }
	}
	if err := n.await(ctx, func() error { return begin().Error() }); err != nil && n.raft.State() == raft.Leader {
		return fmt.Errorf("handing over leadership: %w", err)
	}
	return nil
}
