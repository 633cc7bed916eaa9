package raftnode

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/shared/testkit"
)

// join starts a node that waits to be added, and gives its place.
func (c *cluster) join(name string) int {
	c.t.Helper()
	self := Member{Name: name, RaftAddress: testkit.FreeAddresses(c.t, 1)[0]}
	config := c.configs[0]
	config.Name, config.Dir, config.Join = name, c.t.TempDir(), true
	config.Members = append([]Member{self}, config.Members...)
	config.ListenAddress = self.RaftAddress
	c.configs, c.nodes = append(c.configs, config), append(c.nodes, nil)
	c.start(len(c.nodes) - 1)
	return len(c.nodes) - 1
}

func (c *cluster) at(i int) Member {
	m, _ := c.configs[i].member(c.configs[i].Name)
	return m
}

// change the membership, repeating the step until it is done.
func (c *cluster) change(what string, step func(leader *Node, version uint64) error) {
	c.t.Helper()
	eventually(c.t, what, func() bool {
		leader := c.nodes[c.leader()]
		return step(leader, leader.Membership().Version) == nil
	})
}

// add nodes as voters, each once it has what the leader has.
func (c *cluster) add(nodes ...int) {
	c.t.Helper()
	for _, i := range nodes {
		c.change("addition", func(leader *Node, version uint64) error {
			return leader.AddNonvoter(c.t.Context(), c.at(i), version)
		})
		eventually(c.t, "all entries on the new node", func() bool {
			select {
			case err := <-c.nodes[i].Done():
				c.t.Fatalf("%s stops with %v", c.nodes[i].Name(), err)
			default:
			}
			return c.nodes[i].Applied() >= c.nodes[c.leader()].Applied()
		})
		c.change("promotion", func(leader *Node, version uint64) error {
			return leader.Promote(c.t.Context(), c.configs[i].Name, version)
		})
	}
}

func TestANodeIsAddedKilledAndComesBackAndTheClusterShrinksAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) {
		config.SnapshotEntries, config.TrailingBytes, config.PayloadLogBytes = 20, 1<<10, 1<<10
	})
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	for i := range uint64(50) { // more than the log keeps: the first node that is added gets a snapshot
		c.mustPropose(accept(i+1, make([]byte, 100)))
	}
	one, two := c.join("queue-1"), c.join("queue-2")
	if is := c.nodes[one].gate.is(); is != newcomer {
		t.Fatalf("a node that waits is %v", is)
	}
	c.change("addition", func(leader *Node, version uint64) error { return leader.AddNonvoter(t.Context(), c.at(one), version) })
	eventually(t, "first entry", func() bool { return c.nodes[one].gate.is() != newcomer })
	c.kill(one) // while it is filled
	c.configs[one].Join = false
	c.start(one)
	c.add(one, two)
	for range 2 { // before and after they have everything
		if votes, standing := c.nodes[one].Votes(); !votes {
			t.Errorf("a voter with a new directory has no vote: %s", standing)
		}
		c.kill(one)
		c.start(one)
		c.mustPropose(accept(100, nil))
		c.votes()
	}
	if marker, _, err := guard.ReadMarker(c.configs[two].Dir); err != nil || marker.Joining || marker.Added || marker.Node != "queue-2" {
		t.Errorf("marked as %+v, %v", marker, err)
	}
	c.kill(c.leader())
	c.mustPropose(accept(101, nil)) // the nodes that were added are a majority

	three, four := c.join("queue-3"), c.join("queue-4")
	for i := range c.nodes {
		if c.nodes[i] == nil {
			c.start(i)
		}
	}
	c.add(three, four)
	c.votes()
	for _, name := range []string{"queue-1", "queue-3"} {
		if lead := c.nodes[c.leader()]; lead.Name() == name {
			if err := lead.TransferTo(t.Context(), "queue-2"); err != nil {
				t.Fatal(err)
			}
		}
		c.change("removal", func(leader *Node, version uint64) error { return leader.Remove(t.Context(), name, version) })
	}
	eventually(t, "forgetting of the removed", func() bool {
		for _, i := range []int{0, two, four} {
			if skews := c.nodes[i].Skews(); len(skews) != 2 {
				return false
			}
			if _, majority := c.nodes[i].peers.electorate(); majority != 2 {
				return false
			}
		}
		return true
	})
	c.kill(one)
	c.kill(three)
	c.kill(c.leader())
	c.mustPropose(accept(102, nil)) // two of three
}

// Two voters, of which the second is just promoted: the first needs its vote when it comes back.
func TestAPromotedNodeVotesBeforeItHasBeenHeardForLong(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.mustPropose(accept(1, nil))
	c.add(c.join("queue-1"))
	if is := c.nodes[1].gate.is(); is != added {
		t.Logf("this machine is slow: the node is %v already", is)
	}
	// Eventually: the leader, alone until then, commits the change before the new voter has read it.
	eventually(t, "vote of a voter with a new directory", func() bool {
		votes, _ := c.nodes[1].Votes()
		return votes
	})
	c.kill(0)
	c.start(0)
	c.mustPropose(accept(2, nil))
	c.votes()
	c.settle()
}

func TestAnEmptyDirectoryIsToldWhetherToJoinOrToRejoin(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	c.votes()
	first := c.configs

	stranger := c.join("queue-9")
	c.kill(stranger)
	c.configs[stranger].Join = false
	if err := c.refusal(stranger); !errors.Is(err, ErrLostLog) || !strings.Contains(err.Error(), "QUEUE_JOIN") || strings.Contains(err.Error(), "queue rejoin") {
		t.Errorf("a node the cluster does not know: %v", err)
	}

	const victim = 1
	eventually(t, "claims told", func() bool {
		n := c.nodes[0]
		n.peers.mu.Lock()
		defer n.peers.mu.Unlock()
		return n.peers.by[first[victim].Name].Now.Commit > 0
	})
	c.kill(victim)
	replaceDir(t, first[victim].Dir, "")
	for _, join := range []bool{true, false} {
		c.configs[victim].Join = join
		if err := c.refusal(victim); !errors.Is(err, ErrLostLog) || !strings.Contains(err.Error(), "queue rejoin the-cluster") {
			t.Errorf("a voter that lost its directory, QUEUE_JOIN=%v: %v", join, err)
		}
	}
	c.configs[victim].Join, c.configs[victim].Rejoin = true, "the-cluster"
	c.start(victim)
	c.votes()
	c.settle()
}

// A node that rejoins after the cluster has grown is filled by a leader its own list does not have.
func TestANodeRejoinsAClusterThatHasGrown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	c.add(c.join("queue-1"), c.join("queue-2"))
	c.votes()
	if err := c.nodes[c.leader()].TransferTo(t.Context(), "queue-2"); err != nil && !isNotHandedOver(err) {
		t.Fatal(err)
	}
	c.mustPropose(accept(1, nil))
	c.kill(0)
	if err := GiveUp(c.configs[0].Dir, c.configs[0].Name, "the-cluster"); err != nil {
		t.Fatal(err)
	}
	n := c.start(0) // with a list of itself only
	c.votes()
	c.settle()
	n.View(func(m *fsm.Machine) {
		if _, ok := m.Call(idOf(1)); !ok {
			t.Error("an acknowledged call is lost")
		}
	})
}

// The first node of a cluster that has grown, with the list of its first start and an empty directory, begins a cluster of its own.
// It takes nothing of the old one, which would make it a voter without a memory, and stops.
func TestTheFirstNodeDoesNotBeginAnewBesideTheClusterItBegan(t *testing.T) {
	t.Parallel()
	c, n, stopped := beginsAnew(t, func(*cluster) {})
	if err := stopped; !errors.Is(err, ErrForeignDir) || !strings.Contains(err.Error(), "queue rejoin the-cluster") {
		t.Errorf("it stops with %v", err)
	}
	n.View(func(m *fsm.Machine) {
		if _, ok := m.Call(idOf(1)); ok {
			t.Error("it took what the others have")
		}
	})
	for _, other := range c.nodes[1:] {
		select {
		case err := <-other.Done():
			t.Errorf("%s stops with %v", other.Name(), err)
		default:
		}
	}
}

// The same, where the others ask first: what asks for a word is enough, for a stranger is sent nothing else.
func TestANodeAloneHearsOfTheClusterItBeganFromWhoeverAsks(t *testing.T) {
	t.Parallel()
	_, _, stopped := beginsAnew(t, func(c *cluster) {
		for _, other := range c.nodes[1:] {
			other.peers.estrange(c.configs[0].Name, "the-cluster", "another")
		}
	})
	if !errors.Is(stopped, ErrForeignDir) {
		t.Errorf("it stops with %v", stopped)
	}
}

// beginsAnew is a cluster whose first node has lost its directory, and begins another beside the two that were added; before that,
// prepare harms what is left. stopped is what the node ends with, nil after 30 s.
func beginsAnew(t *testing.T, prepare func(*cluster)) (c *cluster, n *Node, stopped error) {
	t.Helper()
	c = newCluster(t, 1, nil)
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	c.add(c.join("queue-1"), c.join("queue-2"))
	c.votes()
	c.kill(0)
	c.mustPropose(accept(1, nil))
	prepare(c)
	replaceDir(t, c.configs[0].Dir, "")
	n, err := Open(c.configs[0])
	if err != nil {
		t.Fatal(err)
	}
	c.nodes[0] = n
	eventually(t, "a cluster of its own", n.InOffice)
	if _, _, err := n.Propose(t.Context(), []command.Command{command.SetInstallation{ID: "another"}}); err != nil {
		t.Fatal(err)
	}
	select {
	case stopped = <-n.Done():
	case <-time.After(30 * time.Second):
	}
	return c, n, stopped
}

// What a removed node remembers of others, however wrong, is asked for by nobody.
func TestARemovedNodesMemoryBlocksNobody(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.votes()
	leader := c.leader()
	removed, other := (leader+1)%3, (leader+2)%3
	c.change("removal", func(leader *Node, version uint64) error {
		return leader.Remove(t.Context(), c.configs[removed].Name, version)
	})
	memory := c.nodes[removed].peers
	eventually(t, "removal on the members", func() bool { // the removed one may never hear of it: its leader sends it nothing more
		return len(c.nodes[leader].Members()) == 2 && len(c.nodes[other].Members()) == 2
	})
	memory.mu.Lock()
	memory.by[c.configs[other].Name].Before = claim{Term: math.MaxUint64, Commit: math.MaxUint64}
	memory.mu.Unlock()
	c.kill(other)
	n := c.start(other)
	eventually(t, "its vote", func() bool { return n.gate.is() == member })
	c.mustPropose(accept(1, nil))
	select {
	case err := <-n.Done():
		t.Errorf("a removed node has stopped a member: %v", err)
	default:
	}
}

// One node of another cluster among three is the one that is wrong.
func TestANodeOfAnotherClusterStopsItselfAndNobodyElse(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	c.votes()
	const victim = 2
	c.kill(victim)
	c.configs[victim].Dir = filepath.Join(t.TempDir(), "other")
	if err := GiveUp(c.configs[victim].Dir, c.configs[victim].Name, "another-cluster"); err != nil {
		t.Fatal(err)
	}
	n := c.start(victim)
	eventually(t, "notice by the others", func() bool {
		return c.nodes[0].peers.stranger(n.Name()) && c.nodes[1].peers.stranger(n.Name())
	})
	if err := <-n.Done(); !errors.Is(err, ErrForeignDir) {
		t.Errorf("it stops with %v", err)
	}
	c.mustPropose(accept(1, nil))
	for _, healthy := range c.nodes[:2] {
		select {
		case err := <-healthy.Done():
			t.Errorf("%s stops with %v", healthy.Name(), err)
		default:
		}
	}
	if last, err := n.guarded.LastIndex(); last != 0 || err != nil {
		t.Errorf("it was sent entries up to %d, %v", last, err)
	}
}

func TestMarkerAndImprintAreOfOneDirectoryAndOneTime(t *testing.T) {
	t.Parallel()
	marker := guard.Marker{Node: "q", Directory: "d", Epoch: 5}
	for _, x := range []struct {
		name            string
		marked, printed bool
		stored          imprint
		want            error
	}{
		{"first start ended early", false, true, imprint{"d", 1}, nil},
		{"marker lost", false, true, imprint{"d", 2}, ErrLostLog},
		{"log lost", true, false, imprint{}, ErrLostLog},
		{"another's log", true, true, imprint{"e", 5}, ErrForeignDir},
		{"agree", true, true, imprint{"d", 5}, nil},
		{"start ended between the two", true, true, imprint{"d", 6}, nil},
		{"older log", true, true, imprint{"d", 4}, ErrOlderCopy},
		{"older marker", true, true, imprint{"d", 7}, ErrOlderCopy},
	} {
		if err := mismatch(marker, x.marked, x.stored, x.printed); !errors.Is(err, x.want) || (err != nil) != (x.want != nil) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
	}
}

// restore the state of a node into new directories of all.
func (c *cluster) restore() {
	c.t.Helper()
	copied, err := c.nodes[c.leader()].Backup(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = copied.Close() }()
	file, err := os.Create(filepath.Join(c.t.TempDir(), "backup"))
	if err == nil {
		_, err = file.ReadFrom(copied)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for i := range c.configs {
		c.configs[i].Dir = filepath.Join(c.t.TempDir(), "restored")
		if _, err := file.Seek(0, 0); err != nil {
			c.t.Fatal(err)
		}
		if err := Restore(c.configs[i].Dir, c.configs[i].Name, c.configs[i].Members, copied.Index, copied.Term, file, c.configs[i].Log); err != nil {
			c.t.Fatal(err)
		}
	}
}

func TestRestoredDirectoriesAreNewOnesAndStartAsACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	c.mustPropose(accept(1, []byte("payload")))
	c.votes()
	before := [3]Config(c.configs)
	c.restore()
	for i := range uint64(20) {
		c.mustPropose(accept(i+10, nil))
	}
	c.settle()
	eventually(t, "claims told to both: one that has not heard of them confirms an older copy", func() bool {
		told := 0
		for _, n := range c.nodes[1:] {
			n.peers.mu.Lock()
			if n.peers.by["queue-0"].Now.Commit >= c.nodes[0].Commit() {
				told++
			}
			n.peers.mu.Unlock()
		}
		return told == 2
	})
	for i := range c.nodes {
		c.nodes[i].peers.save() // as every few seconds
		c.kill(i)
	}
	ids := map[string]bool{}
	for i, config := range c.configs {
		old, _, err := guard.ReadMarker(before[i].Dir)
		if err != nil {
			t.Fatal(err)
		}
		marker, _, err := guard.ReadMarker(config.Dir)
		if err != nil || marker.Cluster != "the-cluster" || marker.Node != config.Name {
			t.Fatalf("marked as %+v, %v", marker, err)
		}
		ids[old.Directory], ids[marker.Directory] = true, true
	}
	if len(ids) != 6 {
		t.Errorf("%d ids of six directories", len(ids))
	}
	for range 2 { // and once more, as any directory
		for i := range c.configs {
			c.start(i)
		}
		c.votes()
		c.mustPropose(accept(2, nil))
		c.settle()
		for i := range c.nodes {
			c.kill(i)
		}
	}
	for i := range c.configs { // a restored one beside those it was made of is what it is: an older copy
		if i > 0 {
			c.configs[i].Dir = before[i].Dir
			c.start(i)
		}
	}
	if err := c.refusal(0); !errors.Is(err, ErrOlderCopy) {
		t.Errorf("a restored node beside old ones: %v", err)
	}
}

func TestADamagedDirectoryIsInspectedAndNotRecovered(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) { config.LogKind = LogBolt })
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	payload := []byte("a payload that is easy to find")
	c.mustPropose(accept(1, nil))
	c.mustPropose(accept(2, payload))
	c.kill(0)
	dir := c.configs[0].Dir
	if r, err := Inspect(dir, t.TempDir(), testLog(t)); err != nil || len(r.Problems) != 0 || r.State.Installation() != "the-cluster" {
		t.Fatalf("whole: %+v, %v", r, err)
	}
	path := filepath.Join(dir, boltFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := []byte(strings.ReplaceAll(string(raw), string(payload), strings.ToUpper(string(payload))))
	if err := os.WriteFile(path, flipped, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Inspect(dir, t.TempDir(), testLog(t))
	if err != nil || len(r.Problems) != 1 || !errors.Is(r.Problems[0], ErrDamaged) {
		t.Fatalf("%v, problems %v", err, r.Problems)
	}
	if _, err := Recover(dir, Member{}, testLog(t)); !errors.Is(err, ErrDamaged) {
		t.Fatalf("recovered what is damaged: %v", err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, guard.MarkerFile)); err != nil { // the last survivor's; an operator vouches for it
		t.Fatal(err)
	}
	if r, err := Inspect(dir, t.TempDir(), testLog(t)); err != nil || len(r.Problems) != 1 || r.Name != "" {
		t.Fatalf("without a marker: %+v, %v", r, err)
	}
	if _, err := Recover(dir, c.at(0), testLog(t)); err != nil {
		t.Fatal(err)
	}
	n := c.start(0)
	eventually(t, "office alone", n.InOffice)
	n.View(func(m *fsm.Machine) {
		if _, ok := m.Call(idOf(2)); !ok {
			t.Error("a call is lost")
		}
	})
}
