package raftnode

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/shared/testkit"
)

func TestAMemberTravelsWithAllItsAddresses(t *testing.T) {
	t.Parallel()
	for _, m := range []Member{
		{Name: "q", RaftAddress: "host:1", APIAddress: "host:2", RoutesAddress: "[::1]:3", Voter: true},
		{Name: "of-an-older-version", RaftAddress: "host:1", Voter: true},
	} {
		if got := decodeMembers(configuration([]Member{m})); len(got) != 1 || got[0] != m {
			t.Errorf("%+v became %+v", m, got)
		}
	}
	if m := decodeMember(raft.Server{ID: "q", Address: "host:1", Suffrage: raft.Nonvoter}); m.Voter {
		t.Error("votes")
	}
}

func TestAChangeDecidedOnAnOldMembershipIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	leader := c.nodes[c.leader()]
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	first := leader.Membership()
	if len(first.Members) != 3 || first.Version == 0 || first.Pending {
		t.Fatalf("%+v", first)
	}
	added := Member{Name: "queue-9", RaftAddress: "127.0.0.1:1", APIAddress: "127.0.0.1:2", RoutesAddress: "127.0.0.1:3"}
	if err := leader.AddNonvoter(ctx, added, first.Version); err != nil {
		t.Fatal(err)
	}
	if err := leader.Remove(ctx, "queue-9", first.Version); !errors.Is(err, ErrChanged) {
		t.Fatalf("decided on the first: %v", err)
	}
	second := leader.Membership()
	if second.Members[3] != added {
		t.Fatalf("%+v", second)
	}
	eventually(t, "the same membership on all", func() bool {
		for _, n := range c.nodes {
			if m := n.Membership(); m.Version != second.Version || m.Pending {
				return false
			}
		}
		return true
	})
	for _, n := range c.nodes {
		var elsewhere ErrNotLeader
		if err := n.Remove(ctx, "queue-9", second.Version); n != leader && !errors.As(err, &elsewhere) {
			t.Errorf("a follower changes the membership: %v", err)
		}
	}
}

func TestANodeThatJoinsBeginsNoClusterAndIsMarkedOnceItHasAnything(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	leader := c.nodes[c.leader()]
	config := c.configs[0]
	config.Name, config.Dir, config.Join = "queue-9", t.TempDir(), true
	config.Members = append([]Member{{Name: "queue-9", RaftAddress: testkit.FreeAddresses(t, 1)[0]}}, config.Members...)
	config.ListenAddress = config.Members[0].RaftAddress
	for range 2 { // a restart before it was added changes nothing
		n, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		if m := n.Membership(); len(m.Members) != 0 || m.Version != 0 || n.IsLeader() {
			t.Fatalf("it begins a cluster: %+v", m)
		}
		if err := n.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Stop(context.Background()) }()
	if err := leader.AddNonvoter(t.Context(), config.Members[0], leader.Membership().Version); err != nil {
		t.Fatal(err)
	}
	c.mustPropose(accept(1, []byte("x")))
	eventually(t, "the entry on the new node", func() bool { return n.Applied() >= leader.Applied() })
	marker, found, err := guard.ReadMarker(config.Dir)
	if err != nil || !found || marker.Node != "queue-9" || !marker.Added {
		t.Errorf("%v %v: marked as %+v", found, err, marker)
	}
	if member, voter := n.Member(); !member || voter {
		t.Errorf("member %v, voter %v", member, voter)
	}
}
