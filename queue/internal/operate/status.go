package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const statusHelp = `Asks every member how it is and prints one line for each. LAG is in entries of the log, CONTACT how long ago a
follower heard the leader. Ends with 3 when there is no leader, a member does not answer, or a change of the membership is not
committed.
`

const membersHelp = `Prints the membership as the leader's log has it, or, while nobody leads, as the node knows it that knows of most entries.
With --env: as a value for QUEUE_MEMBERS, for a node that is to join.
`

// overview is the cluster as its nodes together see it.
type overview struct {
	Installation string
	Leader       string
	Term         uint64
	Commit       uint64
	Pending      bool
	Nodes        []nodeLine
}

type nodeLine struct {
	Name, Role, API, Raft, Routes string
	Applied                       uint64
	Lag                           int64 // entries
	ContactMs                     int64 // negative: never
	Unfinished, Dead              uint64
	Version                       string
	Error                         string `json:",omitempty"`
}

// summary puts the answers together. The error is one that status ends with 3 for.
func summary(all []answer) (overview, *wire.NodeResponse, error) {
	var o overview
	best, led := leading(all)
	if !led {
		for _, a := range all {
			if a.node != nil && (best.node == nil || a.node.GetCluster().GetCommitIndex() > best.node.GetCluster().GetCommitIndex()) {
				best = a
			}
		}
	}
	if best.node == nil {
		var errs []error
		for _, a := range all {
			errs = append(errs, a.err)
		}
		return o, nil, fmt.Errorf("no node answers: %w", errors.Join(errs...))
	}
	byName, byAPI := map[string]*wire.NodeResponse{}, map[string]error{}
	for _, a := range all {
		if a.node != nil {
			byName[a.node.GetCluster().GetNode()] = a.node
		} else {
			byAPI[address(a.endpoint)] = a.err
		}
	}
	view := best.node.GetCluster()
	o = overview{Installation: view.GetInstallation(), Term: view.GetTerm(), Commit: view.GetCommitIndex(), Pending: best.node.GetConfigurationPending()}
	var notWhole []error
	if led {
		o.Leader = view.GetNode()
	} else {
		notWhole = append(notWhole, errNoLeader)
	}
	if o.Pending {
		notWhole = append(notWhole, errors.New("a change of the membership is not committed"))
	}
	for _, m := range view.GetMembers() {
		l := nodeLine{Name: m.GetName(), API: m.GetApiAddress(), Raft: m.GetRaftAddress(), Routes: m.GetRoutesAddress(), Role: "non-voter"}
		switch {
		case m.GetName() == o.Leader:
			l.Role = "leader"
		case m.GetVoter():
			l.Role = "voter"
		}
		if n := byName[m.GetName()]; n != nil {
			l.Applied, l.ContactMs, l.Version = n.GetCluster().GetAppliedIndex(), n.GetLastContactMs(), n.GetVersion()
			l.Unfinished, l.Dead = n.GetUnfinished(), n.GetDead()
			l.Lag = max(0, int64(o.Commit)-int64(n.GetCluster().GetCommitIndex()))
		} else {
			err := byAPI[m.GetApiAddress()]
			if err == nil {
				err = errors.New("no answer")
			}
			l.Error = err.Error()
			notWhole = append(notWhole, fmt.Errorf("%s: %w", m.GetName(), err))
		}
		o.Nodes = append(o.Nodes, l)
	}
	return o, best.node, errors.Join(notWhole...)
}

func status(ctx context.Context, c *call) error {
	if err := c.none(); err != nil {
		return err
	}
	nodes, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	o, view, notWhole := summary(nodes.survey(ctx))
	if view == nil {
		return notWhole
	}
	if c.json {
		if err := c.print(o); err != nil {
			return err
		}
	} else {
		c.table(o)
	}
	if notWhole != nil {
		return Failure{ExitDegraded, notWhole}
	}
	return nil
}

func (c *call) table(o overview) {
	leader := o.Leader
	if leader == "" {
		leader = "nobody"
	}
	c.say("installation %s   leader %s   term %d   committed %d", o.Installation, leader, o.Term, o.Commit)
	t := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tAPI\tAPPLIED\tLAG\tCONTACT\tUNFINISHED\tDEAD\tVERSION\tSTATE")
	for _, n := range o.Nodes {
		state, contact := "ok", (time.Duration(n.ContactMs) * time.Millisecond).String()
		if n.ContactMs < 0 {
			contact = "never"
		}
		if n.Error != "" {
			state, contact = n.Error, "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%d\t%d\t%s\t%s\n", n.Name, n.Role, n.API, n.Applied, n.Lag, contact, n.Unfinished, n.Dead, n.Version, state)
	}
	_ = t.Flush() // to a terminal
}

func (c *call) print(v any) error {
	encoder := json.NewEncoder(c.Out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

func members(ctx context.Context, c *call) error {
	if err := c.none(); err != nil {
		return err
	}
	nodes, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	o, view, notWhole := summary(nodes.survey(ctx))
	if view == nil {
		return notWhole
	}
	switch {
	case c.env:
		var list []raftnode.Member
		for _, n := range o.Nodes {
			list = append(list, raftnode.Member{Name: n.Name, RaftAddress: n.Raft, APIAddress: n.API, RoutesAddress: n.Routes})
		}
		c.say("%s", c.FormatMembers(list))
	case c.json:
		return c.print(view.GetCluster().GetMembers())
	default:
		t := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "NAME\tROLE\tRAFT\tAPI\tROUTES")
		for _, n := range o.Nodes {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Name, n.Role, n.Raft, n.API, n.Routes)
		}
		return t.Flush()
	}
	return nil
}
