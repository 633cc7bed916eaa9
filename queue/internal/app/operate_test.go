package app

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/operate"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

// operate runs a sub-command with the environment of node 0.
func (c *cluster) operate(args ...string) (string, error) {
	c.t.Helper()
	s := operate.Settings{
		SecretsDir: c.secrets,
		ParseMember: func(text string) (raftnode.Member, error) {
			for _, m := range c.members {
				if m.Name == text {
					return m.raft(), nil
				}
			}
			return raftnode.Member{}, fmt.Errorf("%q was not started", text)
		},
		FormatMembers: func(list []raftnode.Member) string { return fmt.Sprint(list) },
	}
	for _, m := range c.members {
		s.Members = append(s.Members, m.raft())
	}
	return c.operateWith(s, args...)
}

func (c *cluster) operateWith(s operate.Settings, args ...string) (string, error) {
	c.t.Helper()
	return c.operateFrom(strings.NewReader(""), s, args...)
}

// operateFrom gives the command an input.
func (c *cluster) operateFrom(in io.Reader, s operate.Settings, args ...string) (string, error) {
	c.t.Helper()
	var out, errs bytes.Buffer
	err := operate.Run(context.Background(), args, s, operate.Terminal{In: in, Out: &out, Err: &errs})
	c.t.Logf("queue %s: %v\n%.2000q%s", strings.Join(args, " "), err, out.String(), errs.String())
	return out.String(), err
}

func (c *cluster) must(args ...string) string {
	c.t.Helper()
	out, err := c.operate(args...)
	if err != nil {
		c.t.Fatalf("queue %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// join starts a node that waits to be added.
func (c *cluster) join(name string, change ...func(*Config)) *running {
	c.t.Helper()
	ports := testkit.FreeAddresses(c.t, 3)
	c.members = append(c.members, Member{Name: name, RaftAddress: ports[0], APIAddress: ports[1], RoutesAddress: ports[2]})
	config := Config{
		Name: name, DataDir: c.t.TempDir(), Members: slices.Clone(c.members), Join: true, SecretsDir: c.secrets,
		RaftAddress: ports[0], APIAddress: ports[1], RoutesAddress: ports[2],
		BusAddress: "127.0.0.1:0", AdminAddress: "127.0.0.1:0", Log: testLog(c.t),
	}
	for _, f := range change {
		f(&config)
	}
	r := c.start(config)
	c.nodes = append(c.nodes, r)
	return r
}

func (c *cluster) node(name string) *running {
	for _, r := range c.nodes {
		if r != nil && r.config.Name == name {
			return r
		}
	}
	return nil
}

func (c *cluster) voters() (names []string) {
	for _, m := range c.leader().node.Members() {
		if m.Voter {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (c *cluster) wantVoters(want ...string) {
	c.t.Helper()
	if got := c.voters(); !slices.Equal(got, want) {
		c.t.Fatalf("voters are %v, want %v", got, want)
	}
}

func exitCode(err error) int {
	var f operate.Failure
	switch {
	case err == nil:
		return 0
	case errors.As(err, &f):
		return f.Code
	}
	return 1
}

// accept one call at whoever leads.
func (c *cluster) acceptSome(n int) (ids [][]byte) {
	c.t.Helper()
	for range n {
		id := newID()
		op := accept(id, "f", "payload of "+hex.EncodeToString(id))
		c.lead(func(client wireconnect.QueueServiceClient) (bool, error) {
			answer, err := client.Submit(c.t.Context(), connect.NewRequest(&wire.SubmitRequest{Ops: []*wire.Op{op}}))
			return err == nil && answer.Msg.GetResults()[0].GetCode() == wire.Code_CODE_OK, err
		})
		ids = append(ids, id)
	}
	return ids
}

// lead asks whoever leads, until the answer is as wanted: leaders change when the machine is busy. The step may be repeated.
func (c *cluster) lead(step func(wireconnect.QueueServiceClient) (bool, error)) {
	c.t.Helper()
	c.eventually("an answer of whoever leads", func() bool {
		ok, err := step(c.as("edge", c.leader()))
		if err != nil && connect.CodeOf(err) != connect.CodeUnavailable {
			c.t.Fatal(err)
		}
		return ok
	})
}

// known says whether there is such a call.
func (c *cluster) known(id []byte) (found bool) {
	c.t.Helper()
	c.lead(func(client wireconnect.QueueServiceClient) (bool, error) {
		answer, err := client.GetCall(c.t.Context(), connect.NewRequest(&wire.GetCallRequest{Id: id}))
		if err != nil {
			return false, err
		}
		found = answer.Msg.GetCall() != nil
		return true, nil
	})
	return found
}

func (c *cluster) wantCalls(ids [][]byte) {
	c.t.Helper()
	for _, id := range ids {
		if !c.known(id) {
			c.t.Fatalf("call %x is lost", id)
		}
	}
}

// equal waits until these nodes have the same state.
func (c *cluster) equal(names ...string) {
	c.t.Helper()
	c.eventually("equal states of "+strings.Join(names, ", "), func() bool {
		hashes := map[uint64]bool{}
		for _, name := range names {
			c.node(name).node.View(func(m *fsm.Machine) { hashes[m.Hash()] = true })
		}
		return len(hashes) == 1
	})
}

func TestAClusterGrowsFromOneToFiveAndBackToThree(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	ids := c.acceptSome(20)
	waiting := c.join("queue-1")
	if err := waiting.ready(); err == nil || !strings.Contains(err.Error(), "queue add") {
		t.Errorf("a node that waits is ready, or does not say for what it waits: %v", err)
	}
	c.join("queue-2")
	if _, err := c.operate("add", "queue-1"); exitCode(err) != operate.ExitUsage {
		t.Errorf("two voters: %v", err)
	}
	c.must("add", "queue-1", "queue-2")
	c.wantVoters("queue-0", "queue-1", "queue-2")
	ids = append(ids, c.acceptSome(20)...)
	c.equal("queue-0", "queue-1", "queue-2")
	if out := c.must("add", "queue-1", "queue-2"); !strings.Contains(out, "votes") { // again: nothing to do
		t.Errorf("repeated: %s", out)
	}

	c.join("queue-3")
	c.join("queue-4")
	c.must("add", "queue-3", "queue-4")
	c.wantVoters("queue-0", "queue-1", "queue-2", "queue-3", "queue-4")
	ids = append(ids, c.acceptSome(20)...)
	c.equal("queue-0", "queue-1", "queue-2", "queue-3", "queue-4")
	c.eventually("a mesh of five", func() bool { return len(c.node("queue-0").bus.Peers()) == 4 && len(c.node("queue-4").bus.Peers()) == 4 })
	if out := c.must("status"); strings.Count(out, "voter") != 4 || strings.Count(out, "leader") != 2 {
		t.Errorf("status: %s", out)
	}

	leader := c.leader().config.Name
	other := "queue-1"
	if leader == other {
		other = "queue-2"
	}
	if _, err := c.operate("remove", other); exitCode(err) != operate.ExitUsage {
		t.Errorf("four voters: %v", err)
	}
	c.must("remove", leader, other) // the leader first hands over
	left := c.voters()
	if len(left) != 3 || slices.Contains(left, leader) || slices.Contains(left, other) {
		t.Fatalf("left are %v", left)
	}
	removed := c.node(leader)
	c.eventually("the removed node says so", func() bool {
		err := removed.ready()
		return err != nil && strings.Contains(err.Error(), "removed")
	})
	c.halt(removed)
	c.halt(c.node(other))
	ids = append(ids, c.acceptSome(20)...)
	c.equal(left...)
	c.wantCalls(ids)
	if _, err := c.operate("remove", left[0], left[1], left[2]); exitCode(err) != operate.ExitUsage {
		t.Errorf("nobody: %v", err)
	}
}

func TestANodeIsReplacedAndARestartKeepsTheMembership(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	ids := c.acceptSome(10)
	first := c.members[:3]
	dead := c.node("queue-1")
	if dead == c.leader() {
		dead = c.node("queue-2")
	}
	c.halt(dead)
	if _, err := c.operate("status"); exitCode(err) != operate.ExitDegraded {
		t.Errorf("status of a cluster with a dead node: %v", err)
	}
	c.join("queue-3")
	c.must("replace", dead.config.Name, "queue-3")
	live := c.leader().config.Name
	c.join("queue-4")
	c.must("replace", live, "queue-4") // the leader
	left := c.voters()
	if len(left) != 3 || !slices.Contains(left, "queue-3") || !slices.Contains(left, "queue-4") || slices.Contains(left, live) {
		t.Fatalf("voters are %v", left)
	}
	c.halt(c.node(live))
	ids = append(ids, c.acceptSome(10)...)

	// A restart with the first QUEUE_MEMBERS: who is a member is in the log, with the addresses of those the list lacks.
	for _, name := range left {
		r := c.node(name)
		c.halt(r)
		config := r.config
		if slices.ContainsFunc(first, func(m Member) bool { return m.Name == name }) {
			config.Members = first
		}
		c.nodes = append(c.nodes, c.start(config))
	}
	c.wantVoters(left...)
	c.wantCalls(ids)
	for range 3 {
		before := c.leader().config.Name
		c.must("transfer")
		c.eventually("another leader", func() bool { return c.leader().config.Name != before })
	}
	c.must("transfer", "--to", "queue-4")
	if l := c.leader().config.Name; l != "queue-4" {
		t.Errorf("%s leads", l)
	}
}

func TestANonVoterThatIsBehindGetsNoVote(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.acceptSome(1)
	ports := testkit.FreeAddresses(t, 3)
	c.members = append(c.members, Member{Name: "queue-9", RaftAddress: ports[0], APIAddress: ports[1], RoutesAddress: ports[2]}) // does not run
	out, err := c.operate("replace", "queue-0", "queue-9", "--wait", "3s")
	if err == nil || !strings.Contains(out, "queue-9 does not vote yet") {
		t.Errorf("%v: %s", err, out)
	}
	c.wantVoters("queue-0", "queue-1", "queue-2")
	c.acceptSome(1)
	c.must("remove", "queue-9")
}

func TestTheLastMajorityIsNotRemoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 5)
	c.acceptSome(1)
	leader := c.leader()
	var others []string
	for _, m := range c.members {
		if m.Name != leader.config.Name {
			others = append(others, m.Name)
		}
	}
	c.halt(c.node(others[0]))
	c.halt(c.node(others[1]))
	if _, err := c.operate("remove", others[2], others[3], "--wait", "10s"); err == nil || !strings.Contains(err.Error(), "would be alive") {
		t.Errorf("removed the living: %v", err)
	}
	c.must("remove", others[0], others[1])
	c.acceptSome(1)
}

func TestBackupInspectRestoreAndRecover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	ids := c.acceptSome(30)
	file := filepath.Join(t.TempDir(), "backup")
	c.must("backup", file)
	if _, err := c.operate("backup", file); err == nil {
		t.Error("an old backup was replaced")
	}
	stream := c.must("backup", "-")
	var hash uint64
	c.leader().node.View(func(m *fsm.Machine) { hash = m.Hash() })
	out := c.must("inspect", file)
	if !strings.Contains(out, fmt.Sprintf("hash %016x", hash)) || !regexp.MustCompile(`(?m)^f +30 `).MatchString(out) {
		t.Errorf("inspect: %s", out)
	}
	streamed := filepath.Join(t.TempDir(), "streamed")
	if err := os.WriteFile(streamed, []byte(stream), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := c.must("inspect", streamed); !strings.Contains(out, fmt.Sprintf("hash %016x", hash)) {
		t.Errorf("inspect of what went through the standard output: %s", out)
	}
	damaged, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damaged[len(damaged)/2] ^= 1
	bad := filepath.Join(t.TempDir(), "damaged")
	if err := os.WriteFile(bad, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.operate("inspect", bad); err == nil {
		t.Error("a damaged backup was read")
	}
	after := c.acceptSome(5) // not in the backup

	if _, err := c.operate("inspect", c.node("queue-0").config.DataDir); err == nil {
		t.Error("the directory of a running node was read")
	}
	configs := []Config{}
	for _, name := range []string{"queue-0", "queue-1", "queue-2"} {
		r := c.node(name)
		configs = append(configs, r.config)
		c.halt(r)
	}
	out = c.must("inspect", configs[0].DataDir)
	if !strings.Contains(out, "belongs to queue-0") || !regexp.MustCompile(`(?m)^f +35 `).MatchString(out) {
		t.Errorf("inspect: %s", out)
	}
	installation := regexp.MustCompile(`installation ([0-9a-f]{32})`).FindStringSubmatch(out)[1]

	t.Run("recover", func(t *testing.T) {
		r := &cluster{t: t, secrets: c.secrets, tokens: c.tokens, members: slices.Clone(c.members)}
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(configs[2].DataDir)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.operate("recover", "--data-dir", dir, "--installation", "another"); err == nil {
			t.Error("recovered what is another installation's")
		}
		r.must("recover", "--data-dir", dir, "--installation", installation)
		config := configs[2]
		config.DataDir = dir
		r.nodes = append(r.nodes, r.start(config))
		r.wantVoters("queue-2")
		r.wantCalls(ids)
		r.wantCalls(after)
		r.join("queue-8")
		r.join("queue-9")
		r.must("add", "queue-8", "queue-9")
		r.equal("queue-2", "queue-8", "queue-9")
		r.wantCalls(r.acceptSome(3))
		for _, x := range r.nodes {
			x.halt(t)
		}
	})

	restored := &cluster{t: t, secrets: c.secrets, tokens: c.tokens, members: c.members}
	for _, config := range configs {
		config.DataDir = t.TempDir()
		s := operate.Settings{Name: config.Name, DataDir: config.DataDir}
		for _, m := range config.Members {
			s.Members = append(s.Members, m.raft())
		}
		if _, err := restored.operateWith(s, "restore", bad); err == nil {
			t.Fatal("a damaged backup was restored")
		}
		config.DataDir = t.TempDir()
		s.DataDir = config.DataDir
		if _, err := restored.operateFrom(strings.NewReader(stream), s, "restore", "-"); err != nil {
			t.Fatal(err)
		}
		if _, err := restored.operateWith(s, "restore", file); !errors.Is(err, raftnode.ErrHasState) {
			t.Fatalf("restored over a state: %v", err)
		}
		restored.nodes = append(restored.nodes, restored.start(config))
	}
	restored.wantVoters("queue-0", "queue-1", "queue-2")
	restored.wantCalls(ids)
	for _, id := range after {
		if restored.known(id) {
			t.Error("a call accepted after the backup came back")
		}
	}
	restored.wantCalls(restored.acceptSome(3))
	restored.equal("queue-0", "queue-1", "queue-2")
	if s := restored.must("status"); !strings.Contains(s, installation) {
		t.Errorf("the installation has another id: %s", s)
	}
}

func TestEveryCommandExplainsItselfAndRefusesNonsense(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t}
	for _, name := range []string{"status", "members", "add", "remove", "replace", "transfer", "backup", "restore", "recover", "inspect"} {
		out, err := c.operate(name, "--help")
		if err != nil || !strings.HasPrefix(out, "queue "+name) || !strings.Contains(out, "Exit status") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		if !operate.Known(name) || !strings.Contains(operate.Usage(), "queue "+name) {
			t.Errorf("%s is not listed", name)
		}
		if _, err := c.operate(name, "--nonsense"); exitCode(err) != operate.ExitUsage {
			t.Errorf("%s --nonsense: %v", name, err)
		}
	}
	for _, args := range [][]string{{"dance"}, {"add"}, {"remove"}, {"replace", "a"}, {"backup"}, {"restore", "a", "b"}, {"inspect", "a", "b"}, {"recover", "a"}, {"status", "a"}} {
		if _, err := c.operate(args...); exitCode(err) != operate.ExitUsage {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := c.operate("status"); err == nil || !strings.Contains(err.Error(), "token-queue") {
		t.Errorf("without a token: %v", err)
	}
}
