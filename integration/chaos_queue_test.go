package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// remembersAll: the verdict reads every call of a run, which may be longer than cancelled calls are remembered.
var remembersAll = []string{"QUEUE_HISTORY_AGE=24h", "QUEUE_HISTORY_COUNT=0"}

// TestChaosQueue harms the queue nodes of an ordinary cluster in one way after another, each under a load of its own. Small, they
// share a cluster.
func TestChaosQueue(t *testing.T) {
	inCompany(t)
	start := func(t *testing.T) *cluster.Cluster {
		return cluster.Start(t, cluster.Options{Functions: newRecords(t).yaml(fn{name: "other"}), Env: remembersAll})
	}
	share := start
	if os.Getenv("SLIMFAAS_FULL") == "" {
		c := start(t)
		share = func(t *testing.T) *cluster.Cluster { return c.With(t) }
	}
	for _, part := range []struct {
		name string
		harm func(*testing.T, *cluster.Cluster)
	}{
		{"B6Strangers", chaosB6Strangers}, {"Q1LeaderKilled", chaosQ1LeaderKilled}, {"Q2NodesKilled", chaosQ2NodesKilled}, {"Q3LeaderPaused", chaosQ3LeaderPaused},
		{"Q14RollingRestart", chaosQ14RollingRestart}, {"Q18RetriedAfterUnknown", chaosQ18RetriedAfterUnknown},
	} {
		t.Run(part.name, func(t *testing.T) { part.harm(t, share(t)) })
	}
}

// perSecond of the load: what the table asks for, and what a small run bears beside the race detector.
func (n nemesis) perSecond() int {
	if n.full {
		return 1200
	}
	return 300
}

// healthy waits until all nodes run and follow one leader.
func healthy(c *cluster.Cluster, limit time.Duration) *wire.ClusterResponse {
	var info *wire.ClusterResponse
	c.Eventually(limit, "all queue nodes run and follow one leader", func() (err error) {
		info, err = c.Settled()
		return err
	})
	return info
}

// kill -9 several at once.
func kill(t *testing.T, c *cluster.Cluster, names ...string) {
	t.Helper()
	for _, name := range names {
		c.Signal(name, syscall.SIGKILL) // which knows that 0 is no process, but all of the test's own
	}
}

// chaosQ1LeaderKilled: kill -9 the leader again and again under 32 writers and 16 readers.
func chaosQ1LeaderKilled(t *testing.T, c *cluster.Cluster) {
	n := newNemesis(t)
	l := startLoad(t, c, 32, 16, n.perSecond())
	var gaps []time.Duration
	for range n.runs(2, 200) {
		leader := healthy(c, 20*time.Second).GetLeader()
		pace(n.between(300*time.Millisecond, 1200*time.Millisecond)) // load before the blow
		at := l.rec.Now()
		kill(t, c, leader)
		healthy(c, 20*time.Second)
		l.acked(l.rec.Now(), 10*time.Second)
		gaps = append(gaps, l.gap(at, l.rec.Now()))
	}
	n.atMost(t, "q1_write_gap_p50", percentile(gaps, 50), 1500*time.Millisecond)
	n.atMost(t, "q1_write_gap_p99", percentile(gaps, 99), 3*time.Second)
	l.finish()
}

// chaosQ2NodesKilled: one random node, two of three, all three.
func chaosQ2NodesKilled(t *testing.T, c *cluster.Cluster) {
	n := newNemesis(t)
	l := startLoad(t, c, 32, 16, n.perSecond())
	for _, part := range []struct{ victims, runs int }{{1, n.runs(1, 200)}, {2, n.runs(1, 50)}, {3, n.runs(1, 50)}} {
		var back []time.Duration
		for range part.runs {
			healthy(c, 30*time.Second)
			pace(n.between(200*time.Millisecond, time.Second))
			var names []string
			for _, i := range n.Perm(3)[:part.victims] {
				names = append(names, c.Queues()[i])
			}
			at := l.rec.Now()
			kill(t, c, names...)
			healthy(c, 30*time.Second)
			l.acked(l.rec.Now(), 10*time.Second)
			back = append(back, l.rec.Now()-at)
		}
		n.atMost(t, fmt.Sprintf("q2_ready_after_%d_killed_max", part.victims), percentile(back, 100), 10*time.Second)
	}
	l.finish()
}

// chaosQ3LeaderPaused: SIGSTOP the leader; when it goes on it must not answer from what it knew.
func chaosQ3LeaderPaused(t *testing.T, c *cluster.Cluster) {
	n := newNemesis(t)
	l := startLoad(t, c, 16, 8, n.perSecond())
	longest := 4 * time.Second
	if n.full {
		longest = 15 * time.Second
	}
	for range n.runs(2, 100) {
		leader := healthy(c, 20*time.Second).GetLeader()
		pace(n.between(100*time.Millisecond, 500*time.Millisecond))
		stop := l.witness(leader)
		resume := c.Pause(leader)
		pace(n.between(time.Second, longest))
		resume()
		healthy(c, 20*time.Second)
		stop()
	}
	l.acked(l.rec.Now(), 10*time.Second)
	l.finish()
}

// partitioned is a cluster whose nodes meet through a RaftNet.
func partitioned(t *testing.T) (*cluster.Cluster, *cluster.RaftNet) {
	t.Helper()
	network := cluster.NewRaftNet(t, 3)
	c := cluster.New(t, cluster.Options{
		Functions: newRecords(t).yaml(fn{name: "other"}), Prelude: map[string]string{"queue": network.Prelude()}, Env: remembersAll,
	})
	network.Attach(c)
	c.Run()
	return c, network
}

// TestChaosQ4Partitions: the leader alone, one-way cuts, two who meet only through the third, flapping.
func TestChaosQ4Partitions(t *testing.T) {
	inCompany(t)
	n := newNemesis(t)
	c, network := partitioned(t)
	l := startLoad(t, c, 16, 8, n.perSecond())

	var gaps, acknowledged []time.Duration
	for range n.runs(1, 100) {
		before := healthy(c, 20*time.Second)
		leader := before.GetLeader()
		pace(n.between(100*time.Millisecond, 500*time.Millisecond))
		stop := l.witness(leader)
		at := l.rec.Now()
		network.Isolate(leader)
		acknowledged = append(acknowledged, lastAcknowledgement(t, l, leader, 3*time.Second))
		l.acked(at+1500*time.Millisecond, 10*time.Second)
		gaps = append(gaps, l.gap(at, l.rec.Now()))
		apart := uint64(0) // the highest term anywhere while they are apart
		for _, name := range c.Queues() {
			if seen, err := c.Node(name).Cluster(t.Context()); err == nil {
				apart = max(apart, seen.GetTerm())
			}
		}
		network.Heal()
		after := healthy(c, 20*time.Second)
		stop()
		if after.GetTerm() > apart+1 {
			t.Errorf("the term rose from %d to %d by the healing, want at most one", apart, after.GetTerm())
		}
	}
	n.atMost(t, "q4_isolated_leader_acknowledges_max", percentile(acknowledged, 100), time.Second)
	n.atMost(t, "q4_write_gap_max", percentile(gaps, 100), 3*time.Second)

	gaps = nil
	for range n.runs(2, 100) { // 50 each direction, by chance
		leader := healthy(c, 20*time.Second).GetLeader()
		other := c.Queues()[n.IntN(3)]
		for other == leader {
			other = c.Queues()[n.IntN(3)]
		}
		at := l.rec.Now()
		if n.IntN(2) == 0 {
			network.Cut(leader, other)
		} else {
			network.Cut(other, leader)
		}
		pace(n.between(time.Second, 2*time.Second))
		l.acked(l.rec.Now(), 10*time.Second)
		gaps = append(gaps, l.gap(at, l.rec.Now()))
		network.Heal()
	}
	n.atMost(t, "q4_one_way_write_gap_max", percentile(gaps, 100), 3*time.Second)

	gaps = nil
	for range n.runs(1, 50) {
		healthy(c, 20*time.Second)
		ends := n.Perm(3)
		a, b := c.Queues()[ends[0]], c.Queues()[ends[1]]
		at := l.rec.Now()
		network.Cut(a, b)
		network.Cut(b, a)
		pace(n.between(2*time.Second, 3*time.Second))
		l.acked(l.rec.Now(), 10*time.Second)
		gaps = append(gaps, l.gap(at, l.rec.Now()))
		network.Heal()
	}
	n.atMost(t, "q4_bridge_write_gap_max", percentile(gaps, 100), 3*time.Second)

	for range n.runs(2, 120) { // 1 Hz
		network.Isolate(c.Queues()[n.IntN(3)])
		pace(500 * time.Millisecond)
		network.Heal()
		pace(500 * time.Millisecond)
	}
	healthy(c, 20*time.Second)
	l.acked(l.rec.Now(), 10*time.Second)
	l.finish()
}

// lastAcknowledgement is how long a node went on acknowledging writes of its own, asked all the time. They are writes of the
// load like any other: what it acknowledged must be there at the end.
func lastAcknowledgement(t *testing.T, l *load, node string, during time.Duration) time.Duration {
	t.Helper()
	var last atomic.Int64
	began := time.Now()
	var work sync.WaitGroup
	asked := l.c.Node(node)
	for range 2 {
		work.Go(func() {
			for time.Since(began) < during {
				k := l.private()
				ctx, cancel := context.WithTimeout(t.Context(), during)
				result, err := asked.Submit(ctx, accept(l.function, k.id))
				cancel()
				if err == nil && result.GetCode() == wire.Code_CODE_OK {
					last.Store(int64(time.Since(began)))
					k.ok.Store(true)
				} else {
					k.open.Store(true) // it may have got out before the cut
				}
				pace(10 * time.Millisecond)
			}
		})
	}
	work.Wait()
	return time.Duration(last.Load())
}

// chaosQ14RollingRestart: SIGTERM to each node in turn under load. A client with three seconds' patience fails never.
func chaosQ14RollingRestart(t *testing.T, c *cluster.Cluster) {
	n := newNemesis(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := startLoad(t, c, 1, 1, 20) // for its verdicts; the load that is measured is below
	var work sync.WaitGroup
	var calls, failed atomic.Int64
	for range 4 {
		client := c.Client(queueclient.Options{Name: "budget", LeaderWait: 3 * time.Second})
		for range 4 {
			work.Go(func() {
				for ctx.Err() == nil {
					budget, done := context.WithTimeout(t.Context(), 3*time.Second)
					k := l.private()
					_, err := client.Do(budget, accept(l.function, k.id))
					done()
					calls.Add(1)
					if err != nil {
						k.open.Store(errors.Is(err, queueclient.ErrUnknown))
						failed.Add(1)
						t.Errorf("a write with a budget of 3 s failed: %v", err)
						continue
					}
					k.ok.Store(true)
					l.mu.Lock()
					l.acks = append(l.acks, l.rec.Now())
					l.mu.Unlock()
					pace(20 * time.Millisecond)
				}
			})
		}
	}
	var gaps []time.Duration
	for range n.runs(1, 20) {
		for _, name := range c.Queues() {
			healthy(c, 20*time.Second)
			pace(500 * time.Millisecond)
			pid, at := c.PID(name), l.rec.Now()
			c.Signal(name, syscall.SIGTERM)
			c.Eventually(20*time.Second, name+" has started again", func() error {
				if now := c.PID(name); now == 0 || now == pid {
					return errNotYet
				}
				return nil
			})
			healthy(c, 20*time.Second)
			l.acked(l.rec.Now(), 10*time.Second)
			gaps = append(gaps, l.gap(at, l.rec.Now()))
		}
	}
	cancel()
	work.Wait()
	t.Logf("%d writes, %d failed", calls.Load(), failed.Load())
	n.atMost(t, "q14_write_gap_p99", percentile(gaps, 99), 500*time.Millisecond)
	l.finish()
}

// chaosQ18RetriedAfterUnknown: clients that give up after milliseconds ask again with the same id, while leaders die.
func chaosQ18RetriedAfterUnknown(t *testing.T, c *cluster.Cluster) {
	n := newNemesis(t)
	const clients = 16
	function, calls := newRegister(), int64(n.runs(200, 10_000))
	var ledger history.Ledger
	var next, unknown, repeated atomic.Int64
	var work sync.WaitGroup
	before := healthy(c, 20*time.Second)
	for range clients {
		client := c.Client(queueclient.Options{Name: "hasty"})
		random := n.Uint64()
		work.Go(func() {
			for next.Add(1) <= calls {
				id, told := newID(), history.None
				for try := range uint64(200) {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration((random+try*7919)%8+1)*time.Millisecond)
					if try > 20 {
						cancel()
						ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
					}
					result, err := client.Do(ctx, accept(function, id))
					cancel()
					if err == nil && result.GetCode() == wire.Code_CODE_OK {
						if result.GetRepeated() {
							repeated.Add(1)
						}
						told = history.OK
						break
					}
					if errors.Is(err, queueclient.ErrUnknown) {
						told = history.Unknown
						unknown.Add(1)
					}
				}
				ledger.Add(history.Attempt{Key: hexID(id), Outcome: told})
			}
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for kills := 0; ; kills++ {
		select {
		case <-done:
		case <-time.After(n.between(time.Second, 3*time.Second)):
			kill(t, c, healthy(c, 20*time.Second).GetLeader())
			continue
		}
		t.Logf("%d kills from term %d on", kills, before.GetTerm())
		break
	}
	nodes := c.Agreed(30 * time.Second)
	client := c.Client(queueclient.Options{Name: "check"})
	seen := map[string]int{}
	for _, a := range ledger.Attempts() {
		id := unhex(t, a.Key)
		if r, err := client.GetCall(t.Context(), &wire.GetCallRequest{Id: id}); err != nil {
			t.Errorf("reading %s: %v", a.Key, err)
		} else if r.GetCall() != nil {
			seen[a.Key]++
		}
	}
	report := history.Check(ledger.Attempts(), seen)
	t.Logf("%v; %d unknown answers, %d repeats recognised", report, unknown.Load(), repeated.Load())
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if got := nodes[0].Functions[function]; int(got.Accepted) != len(seen) || int(got.Queued) != len(seen) {
		t.Errorf("%d ids have a record, and the queue has accepted %.0f and holds %.0f", len(seen), got.Accepted, got.Queued)
	}
	if repeated.Load() == 0 {
		t.Error("no repeat reached a queue that had carried out the first: the test tests nothing")
	}
}
