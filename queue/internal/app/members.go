package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/slimfaas/slimfaas/queue/internal/api"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/wire"
)

var _ api.Cluster = node{}

func describeMember(m raftnode.Member) *wire.Member {
	return &wire.Member{Name: m.Name, RaftAddress: m.RaftAddress, ApiAddress: m.APIAddress, RoutesAddress: m.RoutesAddress, Voter: m.Voter}
}

// Membership in the API's words.
func (n node) Membership() api.Membership {
	m := n.Node.Membership()
	out := api.Membership{Version: m.Version, Pending: m.Pending, InOffice: n.InOffice(), LastContact: n.LastContact()}
	for _, x := range m.Members {
		out.Members = append(out.Members, describeMember(x))
	}
	return out
}

// Change carries out one change of the membership.
func (n node) Change(ctx context.Context, c api.Change) error {
	var err error
	switch c.Kind {
	case api.Add:
		m := c.Member
		err = n.AddNonvoter(ctx, raftnode.Member{
			Name: m.GetName(), RaftAddress: m.GetRaftAddress(), APIAddress: m.GetApiAddress(), RoutesAddress: m.GetRoutesAddress(),
		}, c.Version)
	case api.Promote:
		err = n.Promote(ctx, c.Member.GetName(), c.Version)
	case api.Remove:
		err = n.Remove(ctx, c.Member.GetName(), c.Version)
	}
	if errors.Is(err, raftnode.ErrChanged) {
		return fmt.Errorf("%w: %w", api.ErrChanged, err)
	}
	return translate(err)
}

// TransferTo another voter.
func (n node) TransferTo(ctx context.Context, name string) error {
	return translate(n.Node.TransferTo(ctx, name))
}

// Backup of everything committed.
func (n node) Backup(ctx context.Context) (*api.Copy, error) {
	c, err := n.Node.Backup(ctx)
	if err != nil {
		return nil, translate(err)
	}
	return &api.Copy{Index: c.Index, Term: c.Term, Size: c.Size, ReadCloser: c.ReadCloser}, nil
}

// peers are the API addresses of the other members, today.
func (a *App) peers() []string {
	var list []string
	for _, m := range a.node.Members() {
		if m.Name != a.config.Name && m.APIAddress != "" {
			list = append(list, m.APIAddress)
		}
	}
	return list
}
