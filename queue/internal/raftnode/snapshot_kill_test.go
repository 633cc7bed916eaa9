package raftnode

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Three processes under load, with a snapshot every hundred entries. In each round a follower is away until only a snapshot can help
// it; it comes back, is killed again at some moment of the restoring, and comes back for good: it has caught up within a minute. Then
// the leader is killed, at whatever moment of making its snapshots. In the end all have the same state, with all that was acknowledged.
// SLIMFAAS_FULL=1 is 50 rounds on a state of 100 MB, else 2 on 3 MB.
func TestNodesAreKilledWhileTheyMakeAndRestoreSnapshots(t *testing.T) {
	if testing.Short() {
		t.Skip("takes about 20 s")
	}
	rounds, calls, seed := 2, 1500, rand.Uint64()
	if os.Getenv("SLIMFAAS_FULL") != "" {
		rounds, calls = 50, 50_000
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 13))
	nodes := startProcesses(t, 3, func(c *processConfig) { c.SnapshotEntries, c.Payload = 100, 2<<10 })
	ledger, end := underLoad(nodes, 16)
	defer end()
	progress := func(what string, more int, limit time.Duration) { t.Helper(); ledger.progress(t, limit, what, more) }
	progress("state to be restored", calls, 5*time.Minute)

	var slowest time.Duration
	restored := 0
	count := func(n *process) {
		if answer, _, err := n.ask("restored", time.Second); err == nil && answer != "0" {
			restored++
		}
	}
	for round := range rounds {
		leader := inOffice(t, nodes)
		follower := nodes[random.IntN(len(nodes))]
		for follower == leader {
			follower = nodes[random.IntN(len(nodes))]
		}
		follower.kill()
		progress("writes that the follower misses", 3000, time.Minute)
		follower.start()
		<-time.After(time.Duration(random.Int64N(int64(500*time.Millisecond + slowest)))) // somewhere in its restoring, or just behind it
		count(follower)
		follower.kill()
		follower.start()
		began := time.Now()
		var target uint64
		within(t, time.Minute, "index to be reached", func() bool { target = applied(inOffice(t, nodes)); return target > 0 })
		within(t, time.Minute, fmt.Sprintf("node that has caught up in round %d", round), func() bool { return applied(follower) >= target })
		slowest = max(slowest, time.Since(began))
		count(follower)
		progress("writes before the leader is killed", 100+random.IntN(1000), time.Minute)
		victim := inOffice(t, nodes)
		victim.kill()
		progress("writes without it", 100, time.Minute)
		victim.start()
	}
	end()
	within(t, time.Minute, "equal states", func() bool {
		seen := map[string]bool{}
		for _, n := range nodes {
			answer, _, err := n.ask("hash", 20*time.Second)
			if err != nil {
				return false
			}
			seen[answer] = true
		}
		return len(seen) == 1
	})
	t.Logf("%d rounds, %d acknowledged, longest gap %v; caught up after at most %v, snapshots restored %d",
		rounds, len(ledger.ok), ledger.longestGap.Round(time.Millisecond), slowest.Round(time.Millisecond), restored)
	if restored == 0 {
		t.Error("no snapshot was restored: this tests nothing")
	}
	for _, s := range ledger.stale {
		t.Error(s)
	}
	for _, n := range nodes {
		checkLedger(t, n, ledger)
	}
}

// applied index of a node; 0: it does not say.
func applied(n *process) uint64 {
	answer, _, err := n.ask("state", time.Second)
	if err != nil {
		return 0
	}
	index, _, _ := strings.Cut(answer, " ")
	at, _ := strconv.ParseUint(index, 10, 64)
	return at
}

func within(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, limit)
		}
	}
}
