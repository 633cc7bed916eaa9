package raftnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

func TestNothingAcknowledgedIsLostAndNothingRefusedIsKeptWhenLeadersDie(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(config *Config) {
		config.SnapshotEntries, config.TrailingBytes, config.PayloadLogBytes = 200, 64<<10, 64<<10
	})
	c.leader()

	// Each try has an id of its own, so that what one answer said about it can be held against the end.
	var (
		mu                     sync.Mutex
		acked, refused, unsure []uint64
		next                   atomic.Uint64
		stop                   = make(chan struct{})
		writers                sync.WaitGroup
		nodes                  atomic.Pointer[[]*Node]
	)
	publish := func() {
		up := slices.Clone(c.nodes)
		nodes.Store(&up)
	}
	publish()
	for w := range 64 {
		writers.Go(func() {
			for try := w; ; try++ {
				select {
				case <-stop:
					return
				default:
				}
				up := *nodes.Load()
				n := up[try%len(up)]
				if n == nil || !n.IsLeader() && try%50 != 0 {
					time.Sleep(time.Millisecond) // a client's pause
					continue
				}
				id := next.Add(1)
				_, _, err := n.Propose(t.Context(), accept(id, bytes.Repeat([]byte{byte(id)}, 300)))
				mu.Lock()
				switch {
				case err == nil:
					acked = append(acked, id)
				case isNotHandedOver(err):
					refused = append(refused, id)
				case errors.Is(err, ErrUnknown):
					unsure = append(unsure, id)
				default:
					t.Errorf("unexpected: %v", err)
				}
				mu.Unlock()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	for range 3 {
		before := count()
		eventually(t, "progress", func() bool { return count() > before+2000 })
		victim := c.leader()
		c.kill(victim)
		publish()
		before = count()
		eventually(t, "progress without it", func() bool { return count() > before+500 })
		c.start(victim)
		publish()
	}
	close(stop)
	writers.Wait()
	c.mustPropose(accept(next.Add(1), nil)) // everybody learns the last commit
	c.settle()

	t.Logf("acknowledged %d, refused %d, unknown %d", len(acked), len(refused), len(unsure))
	for i, n := range c.nodes {
		n.View(func(m *fsm.Machine) {
			for _, id := range acked {
				if _, ok := m.Call(idOf(id)); !ok {
					t.Fatalf("node %d lost acknowledged call %d", i, id)
				}
			}
			for _, id := range refused {
				if _, ok := m.Call(idOf(id)); ok {
					t.Fatalf("node %d has call %d, which was said not to be handed over", i, id)
				}
			}
			for _, counters := range m.Counters() {
				if !counters.Conserved() {
					t.Fatalf("not conserved: %+v", counters)
				}
			}
		})
		for call := range c.calls(n) {
			payload, err := n.Payload(call.Seq)
			if err != nil || uint32(len(payload)) != call.Size {
				t.Fatalf("node %d, payload of %d: %d bytes, %v", i, call.Seq, len(payload), err)
			}
		}
	}
}

// calls, collected so that payloads are read outside of View.
func (c *cluster) calls(n *Node) func(func(fsm.Call) bool) {
	var all []fsm.Call
	n.View(func(m *fsm.Machine) { all = slices.Collect(m.Unfinished()) })
	return slices.Values(all)
}

func TestRestartAndSnapshotGiveTheSameState(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	for i := range uint64(50) {
		c.mustPropose(accept(i+1, []byte("payload")))
	}
	want := c.settle()
	for i := range c.nodes {
		if i == 0 { // one restarts from its snapshot and the rest of the log, two from the log alone
			if err := c.nodes[i].snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		c.kill(i)
	}
	for i := range c.nodes {
		c.start(i)
	}
	eventually(t, "the old state", func() bool { return c.settle() == want })
	if payload, err := c.nodes[0].Payload(50); err != nil || string(payload) != "payload" {
		t.Fatalf("payload %q, %v", payload, err)
	}
	if results := c.mustPropose(accept(7, nil)); !results[0].Repeated {
		t.Fatalf("an id from before the restart: %+v", results)
	}
}

func TestAFollowerFarBehindCatchesUpBySnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(config *Config) {
		config.SnapshotBytes, config.TrailingBytes, config.PayloadLogBytes = 1<<20, 64<<10, 64<<10
	})
	away := (c.leader() + 1) % 3
	c.mustPropose(accept(1, nil))
	c.kill(away)
	for i := range uint64(40) {
		c.mustPropose(accept(100+i, make([]byte, 100<<10)))
	}
	leader := c.nodes[c.leader()]
	eventually(t, "compacted log", func() bool {
		first, err := leader.logStore.FirstIndex()
		return err == nil && first > 10
	})
	back := c.start(away)
	var restored atomic.Bool
	back.OnChange(func(_ uint64, changes []fsm.Change) {
		if changes == nil {
			restored.Store(true)
		}
	})
	c.settle()
	eventually(t, "all calls on the returned node", func() bool {
		unfinished := 0
		back.View(func(m *fsm.Machine) { unfinished, _, _ = m.Sizes() })
		return unfinished == 41
	})
	eventually(t, "word to the listeners that the state came by a snapshot", restored.Load) // after the state can be seen
	for call := range c.calls(back) {
		if payload, err := back.Payload(call.Seq); err != nil || uint32(len(payload)) != call.Size {
			t.Fatalf("payload of %d: %d bytes, %v", call.Seq, len(payload), err)
		}
	}
}

func TestOfficeIsTakenAfterEverythingIsAppliedAndEndsWithTheLeadership(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	leader := c.leader()
	c.mustPropose(accept(1, nil))

	type event struct {
		node  int
		taken bool
		calls int
	}
	events := make(chan event, 64)
	for i, n := range c.nodes {
		n.OnLeading(func(ctx context.Context) { // added late: the one in office starts it at once
			calls := 0
			n.View(func(m *fsm.Machine) { calls, _, _ = m.Sizes() })
			events <- event{i, true, calls}
			<-ctx.Done()
			events <- event{i, false, 0}
		})
	}
	if e := <-events; e != (event{leader, true, 1}) {
		t.Fatalf("%+v", e)
	}
	begin := time.Now()
	if err := c.nodes[leader].Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.nodes[leader] = nil
	// The old one leaves and the new one enters in either order.
	first, second := <-events, <-events
	if first.taken {
		first, second = second, first
	}
	if first != (event{leader, false, 0}) || second.node == leader || !second.taken || second.calls != 1 {
		t.Fatalf("%+v, %+v", first, second)
	}
	t.Logf("hand-over on stop took %v", time.Since(begin).Round(time.Millisecond))
}

func TestAFollowerRefusesAndNamesTheLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	leader := c.leader()
	follower := c.nodes[(leader+1)%3]
	want := ErrNotLeader{Leader: fmt.Sprintf("queue-%d", leader)}
	eventually(t, "known leader", func() bool { return follower.Leader() == want.Leader })
	if _, _, err := follower.Propose(t.Context(), accept(1, nil)); !errors.Is(err, want) {
		t.Fatalf("propose: %v", err)
	}
	if err := follower.ReadBarrier(t.Context()); !errors.Is(err, want) {
		t.Fatalf("read: %v", err)
	}
	if err := c.nodes[leader].ReadBarrier(t.Context()); err != nil {
		t.Fatalf("read on the leader: %v", err)
	}
}

func TestReadBarrierShowsWhatWasCommittedBefore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	read := 0
	for i := uint64(0); read < 200; i++ {
		n := c.nodes[c.leader()]
		if _, _, err := n.Propose(t.Context(), accept(i+1, nil)); err != nil {
			if t.Context().Err() != nil || !errors.Is(err, ErrUnknown) && !isNotHandedOver(err) {
				t.Fatal(err)
			}
			continue // the leader changed, as it may on a busy machine
		}
		if err := n.ReadBarrier(t.Context()); err != nil {
			if !isNotHandedOver(err) {
				t.Fatal(err)
			}
			continue
		}
		read++
		n.View(func(m *fsm.Machine) {
			if _, ok := m.Call(idOf(i + 1)); !ok {
				t.Fatalf("call %d missing", i+1)
			}
		})
	}
}

func TestWithoutAMajorityEveryProposalIsAnsweredTruthfullyInTime(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	leader := c.leader()
	n := c.nodes[leader]
	c.mustPropose(accept(1, nil))
	c.kill((leader + 1) % 3)
	c.kill((leader + 2) % 3)
	begin := time.Now()
	var calls sync.WaitGroup
	for i := range uint64(100) {
		calls.Go(func() {
			_, _, err := n.Propose(t.Context(), accept(10+i, nil))
			if err == nil || !errors.Is(err, ErrUnknown) && !isNotHandedOver(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	calls.Wait()
	if took := time.Since(begin); took > proposeTimeout+time.Second {
		t.Errorf("answers took %v", took)
	}
	if err := n.ReadBarrier(t.Context()); err == nil {
		t.Error("a read without a majority went well")
	}
	begin = time.Now()
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.nodes[leader] = nil
	t.Logf("stop took %v", time.Since(begin).Round(time.Millisecond))
}

func TestAHungPeerDoesNotHoldUpStopping(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	leader := c.leader()
	hung := (leader + 1) % 3
	c.kill(hung)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", c.configs[hung].ListenAddress)
	if err != nil {
		t.Fatal(err)
	}
	dialled := make(chan struct{}, 64)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		var open []net.Conn // accepted, never answered
		for {
			conn, err := l.Accept()
			if err != nil {
				for _, conn := range open {
					_ = conn.Close()
				}
				return
			}
			open = append(open, conn)
			select {
			case dialled <- struct{}{}:
			default:
			}
		}
	})
	<-dialled
	<-dialled // heartbeat and append each wait on a connection of their own
	begin := time.Now()
	if err := c.nodes[leader].Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.nodes[leader] = nil
	if took := time.Since(begin); took > ioTimeout/2 {
		t.Errorf("stop took %v", took)
	}
	_ = l.Close()
	accepting.Wait()
}

func TestALargeProposalIsSplitAndATooLargeCommandRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	n := c.nodes[c.leader()]
	var commands []command.Command
	for i := range uint64(2500) {
		commands = append(commands, accept(i+1, make([]byte, 1000))...)
	}
	results, _, err := n.Propose(t.Context(), commands)
	if err != nil || len(results) != len(commands) {
		t.Fatalf("%d results, %v", len(results), err)
	}
	last := uint64(0)
	for call := range c.calls(n) {
		if call.ID != idOf(call.Seq) || call.Seq != last+1 {
			t.Fatalf("call %v at place %d after %d", call.ID, call.Seq, last)
		}
		last = call.Seq
	}
	if _, _, err := n.Propose(t.Context(), accept(9999, make([]byte, 1<<20+64<<10))); err != nil {
		t.Fatalf("the largest payload: %v", err)
	}
	if _, _, err := n.Propose(t.Context(), accept(9998, make([]byte, 2<<20))); !errors.Is(err, command.ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
}

func TestAnEntryThatCannotBeReadStopsTheNodeBeforeItApplies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	n := c.nodes[c.leader()]
	c.mustPropose(accept(1, nil))
	var before uint64
	n.View(func(m *fsm.Machine) { before = m.Hash() })
	future := n.raft.Apply([]byte{99, 1, 2, 3}, time.Second)
	if err := future.Error(); err != nil {
		t.Fatal(err)
	}
	var version command.VersionError
	if err := <-n.Done(); !errors.As(err, &version) || version.Version != 99 {
		t.Fatalf("done: %v", err)
	}
	if _, _, err := n.Propose(t.Context(), accept(2, nil)); !errors.Is(err, ErrUnknown) {
		t.Fatalf("propose on a failed node: %v", err)
	}
	n.View(func(m *fsm.Machine) {
		if m.Hash() != before {
			t.Fatal("state changed")
		}
	})
	if err := n.snapshot(); err == nil {
		t.Fatal("a failed node made a snapshot")
	}
}

func TestADirectoryWithoutItsLogOrOfAnotherNodeIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.leader()
	c.kill(0)

	foreign := c.configs[0]
	foreign.Name = "queue-9"
	foreign.Members = []Member{{Name: "queue-9", RaftAddress: foreign.ListenAddress}}
	if _, err := Open(foreign); !errors.Is(err, ErrForeignDir) {
		t.Fatalf("foreign: %v", err)
	}
	if err := os.Remove(filepath.Join(c.configs[0].Dir, "raft.db")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c.configs[0]); !errors.Is(err, ErrLostLog) {
		t.Fatalf("lost log: %v", err)
	}
}

// BenchmarkPropose: 1 KiB payloads from 64 callers on three nodes that share one disk, fsync on.
func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			c := newCluster(b, 3, nil)
			n := c.nodes[c.leader()]
			var next atomic.Uint64
			payload := make([]byte, 1024)
			b.ResetTimer()
			var group sync.WaitGroup
			for range callers {
				group.Go(func() {
					for id := next.Add(1); id <= uint64(b.N); id = next.Add(1) {
						if _, _, err := n.Propose(b.Context(), accept(id, payload)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		})
	}
}

// The library's pauses between attempts double up to 10 s; entries that wait in the gate go as soon as their node is back.
func TestEntriesForANodeThatIsDownDoNotWaitLongerAndLonger(t *testing.T) {
	t.Parallel()
	log := &lines{}
	c := newCluster(t, 3, func(config *Config) { config.Log = slog.New(slog.NewTextHandler(log, nil)) })
	c.votes()
	away := (c.leader() + 1) % 3
	c.kill(away)
	c.mustPropose(accept(1, nil))
	eventually(t, "three seconds of heartbeats nobody answers", func() bool { return log.count("failed to heartbeat to") >= 15 })
	if n := log.count("failed to appendEntries to"); n > 4 {
		t.Errorf("the library was told %d times that the node is down, and pauses %v", n, 10*time.Millisecond<<(n-2))
	}
	c.start(away)
	c.settle()
}
