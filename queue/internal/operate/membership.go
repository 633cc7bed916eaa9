package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const addHelp = `Adds nodes that run and wait (QUEUE_JOIN=true, empty data directory). All of them first get the log without having a vote;
when one has stayed close to the leader for a second it gets its vote, one after the other. The result must be an odd number
of voters: one more than an odd number survives no more deaths. Repeating the command goes on where it stopped.
A name that was ever used must not be given to an empty directory again: take a new one. A member that lost its directory is not
added, it rejoins under its own name (queue rejoin).
`

const removeHelp = `Takes nodes out, one after the other; a leader first hands the leadership to a voter that stays. Refused when most of the
voters that remain do not answer. A removed node keeps running, is not ready and says so: stop it, and throw its data directory
away. Repeating the command goes on where it stopped.
`

const replaceHelp = `Adds NEW as add does, and when it votes removes OLD as remove does. OLD may be dead. At no time do fewer voters count than
before, so the cluster never stands on two. NEW runs already (QUEUE_JOIN=true, empty data directory) and has a name of its own.
`

const transferHelp = `Hands the leadership to another voter, which takes some milliseconds. Edges and scalers follow by themselves.
`

func add(ctx context.Context, c *call) error {
	wanted, err := c.newMembers(c.positional)
	if err != nil {
		return err
	}
	nodes, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	return c.add(ctx, nodes, wanted, c.even || c.nonVoter)
}

func (c *call) newMembers(arguments []string) ([]*wire.Member, error) {
	if len(arguments) == 0 {
		return nil, usagef("expected NAME=HOST[:RAFT:API:ROUTES]")
	}
	var list []*wire.Member
	for _, text := range arguments {
		m, err := c.ParseMember(text)
		if err != nil {
			return nil, Failure{ExitUsage, err}
		}
		list = append(list, &wire.Member{Name: m.Name, RaftAddress: m.RaftAddress, ApiAddress: m.APIAddress, RoutesAddress: m.RoutesAddress})
	}
	return list, nil
}

func (c *call) add(ctx context.Context, nodes *client, wanted []*wire.Member, even bool) error {
	checked := false
	for _, m := range wanted {
		told := false
		err := nodes.until(ctx, func(ctx context.Context, leader wireconnect.AdminServiceClient, view *wire.NodeResponse, _ []answer) (bool, error) {
			if !checked {
				after := voters(view)
				for _, w := range wanted {
					if !slices.Contains(after, w.GetName()) {
						after = append(after, w.GetName())
					}
				}
				if len(after)%2 == 0 && !even {
					return true, usagef("%d voters would be the result (%s): an even number survives no more deaths than one less; add another one with the same command, or say --allow-even",
						len(after), strings.Join(after, ", "))
				}
				checked = true
			}
			if is := member(view, m.GetName()); is != nil && is.GetRaftAddress() == m.GetRaftAddress() && !view.GetConfigurationPending() {
				if !told {
					c.say("%s is a member, and gets the log", m.GetName())
				}
				told = true
				return true, nil
			}
			_, err := leader.AddMember(ctx, request(nodes, &wire.AddMemberRequest{Member: m, ConfigurationVersion: view.GetConfigurationVersion()}))
			return false, err
		})
		if err != nil {
			return fmt.Errorf("adding %s: %w", m.GetName(), err)
		}
	}
	if c.nonVoter {
		return nil
	}
	for _, m := range wanted {
		if err := c.promote(ctx, nodes, m.GetName()); err != nil {
			return fmt.Errorf("promoting %s (it is a member without a vote; repeat the command, or remove it): %w", m.GetName(), err)
		}
	}
	return nil
}

func (c *call) promote(ctx context.Context, nodes *client, name string) error {
	said := ""
	return nodes.until(ctx, func(ctx context.Context, leader wireconnect.AdminServiceClient, view *wire.NodeResponse, _ []answer) (bool, error) {
		switch is := member(view, name); {
		case is == nil:
			return true, errors.New("it is no member any more")
		case is.GetVoter() && !view.GetConfigurationPending():
			c.say("%s votes: %d voters", name, len(voters(view)))
			return true, nil
		case is.GetVoter():
			return false, nil
		}
		_, err := leader.PromoteMember(ctx, request(nodes, &wire.PromoteMemberRequest{Name: name, ConfigurationVersion: view.GetConfigurationVersion()}))
		if connect.CodeOf(err) == connect.CodeUnavailable && err.Error() != said {
			said = err.Error()
			c.say("%s does not vote yet: %s", name, said)
		}
		return false, err
	})
}

func remove(ctx context.Context, c *call) error {
	if len(c.positional) == 0 {
		return usagef("expected the NAME of a member")
	}
	nodes, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	return c.remove(ctx, nodes, c.positional, c.even)
}

func (c *call) remove(ctx context.Context, nodes *client, names []string, even bool) error {
	checked := false
	for _, name := range names {
		asked := false
		err := nodes.until(ctx, func(ctx context.Context, leader wireconnect.AdminServiceClient, view *wire.NodeResponse, all []answer) (bool, error) {
			if !checked {
				if err := removable(view, names, even); err != nil {
					return true, err
				}
				checked = true
			}
			switch {
			case member(view, name) == nil && view.GetConfigurationPending():
				return false, nil
			case member(view, name) == nil && asked:
				c.say("%s is no member any more: %d voters; stop it, and throw its data directory away", name, len(voters(view)))
				return true, nil
			case member(view, name) == nil:
				c.say("%s is no member", name)
				return true, nil
			case view.GetCluster().GetNode() == name:
				to, err := heir(view, all, names)
				if err != nil {
					return true, err
				}
				c.say("%s leads: %s takes over", name, to)
				_, err = leader.Transfer(ctx, request(nodes, &wire.TransferRequest{To: to}))
				return false, err
			}
			asked = true
			_, err := leader.RemoveMember(ctx, request(nodes, &wire.RemoveMemberRequest{Name: name, ConfigurationVersion: view.GetConfigurationVersion(), Force: c.force}))
			return false, err
		})
		if err != nil {
			return fmt.Errorf("removing %s: %w", name, err)
		}
	}
	return nil
}

func removable(view *wire.NodeResponse, names []string, even bool) error {
	before := voters(view)
	stay := slices.DeleteFunc(slices.Clone(before), func(name string) bool { return slices.Contains(names, name) })
	switch {
	case len(stay) == 0:
		return usagef("nobody would be left to vote")
	case len(stay)%2 == 0 && len(stay) < len(before) && !even:
		return usagef("%d voters would be left (%s): an even number survives no more deaths than one less; remove another one with the same command, replace it instead, or say --allow-even",
			len(stay), strings.Join(stay, ", "))
	}
	return nil
}

// heir is the voter that stays, answers, and has most.
func heir(view *wire.NodeResponse, all []answer, leaving []string) (string, error) {
	best, applied := "", uint64(0)
	for _, a := range all {
		name := a.node.GetCluster().GetNode()
		m := member(view, name)
		if a.node == nil || !m.GetVoter() || slices.Contains(leaving, name) {
			continue
		}
		if got := a.node.GetCluster().GetAppliedIndex(); best == "" || got > applied {
			best, applied = name, got
		}
	}
	if best == "" {
		return "", errors.New("it leads, and no voter that stays answers")
	}
	return best, nil
}

func replace(ctx context.Context, c *call) error {
	if len(c.positional) != 2 {
		return usagef("expected OLD and NEW=HOST[:RAFT:API:ROUTES]")
	}
	old := c.positional[0]
	wanted, err := c.newMembers(c.positional[1:])
	if err != nil {
		return err
	}
	if wanted[0].GetName() == old {
		return usagef("the new node needs a name of its own: under %q the others would believe that it has what the old one had", old)
	}
	nodes, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	err = nodes.until(ctx, func(_ context.Context, _ wireconnect.AdminServiceClient, view *wire.NodeResponse, _ []answer) (bool, error) {
		before := voters(view)
		switch {
		case member(view, old) == nil && member(view, wanted[0].GetName()) == nil:
			return true, usagef("%s is no member (%s are)", old, strings.Join(before, ", "))
		case len(before) < 3 && !c.even:
			return true, usagef("%d voters: the cluster would stand on two for a moment, where the death of either stops it; say --allow-even if it may", len(before))
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if err := c.add(ctx, nodes, wanted, true); err != nil {
		return err
	}
	return c.remove(ctx, nodes, []string{old}, true)
}

func transfer(ctx context.Context, c *call) error {
	if err := c.none(); err != nil {
		return err
	}
	nodes, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	from := ""
	return nodes.until(ctx, func(ctx context.Context, leader wireconnect.AdminServiceClient, view *wire.NodeResponse, _ []answer) (bool, error) {
		is := view.GetCluster().GetNode()
		switch {
		case c.to == is:
			c.say("%s leads", is)
			return true, nil
		case c.to == "" && from != "" && is != from:
			c.say("%s leads, %s did", is, from)
			return true, nil
		case len(voters(view)) == 1:
			return true, Failure{ExitFailed, fmt.Errorf("%s is the only voter", is)}
		}
		from = is
		_, err := leader.Transfer(ctx, request(nodes, &wire.TransferRequest{To: c.to}))
		return false, err
	})
}
