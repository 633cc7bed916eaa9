package raftnode

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestOnlyAnswersToLaterMessagesConfirm(t *testing.T) {
	t.Parallel()
	var c confirmations
	noted := time.Now()
	nodes := []string{"b", "c"}
	want := func(what string, term uint64, n int) {
		t.Helper()
		if got, _ := c.since(nodes, term, noted); got != n {
			t.Errorf("%s: %d confirm term %d, want %d", what, got, term, n)
		}
	}
	want("nobody has said anything", 3, 0)
	c.answered("b", noted.Add(-time.Second), 3, 3)
	c.answered("c", noted, 3, 3)
	want("answers to what was sent before, or at that moment", 3, 0)
	c.answered("b", noted.Add(time.Millisecond), 3, 4)
	want("an answer of a later term", 3, 0)
	_, changed := c.since(nodes, 3, noted)
	c.answered("b", noted.Add(time.Millisecond), 3, 3)
	select {
	case <-changed:
	default:
		t.Error("who waits is not told")
	}
	want("one", 3, 1)
	want("one, of another term", 2, 0)
	c.answered("b", noted.Add(-time.Second), 3, 3)
	want("and an older answer that comes later", 3, 1)
	c.answered("x", noted.Add(time.Millisecond), 3, 3)
	want("and one who has no vote", 3, 1)
	c.answered("c", noted.Add(time.Millisecond), 3, 3)
	want("both", 3, 2)
	c.answered("b", noted.Add(2*time.Millisecond), 5, 5)
	c.answered("b", noted.Add(3*time.Millisecond), 3, 3)
	want("one has gone on", 3, 1)
	want("in the next term", 5, 1)
}

func TestAReadIsNotConfirmedByWhatWasSaidBefore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	leader := c.nodes[c.leader()]
	if err := leader.confirmed(t.Context(), leader.Term(), time.Now()); err != nil {
		t.Fatal(err) // heartbeats go on by themselves
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := leader.confirmed(ctx, leader.Term(), time.Now().Add(time.Hour)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("confirmed by answers of the past: %v", err)
	}
	if err := leader.ReadBarrier(t.Context()); err != nil {
		t.Error(err)
	}
}

// What would depose a leader, or make a follower of another term, is for the library's own loop.
func TestOnlyHeartbeatsThatChangeNothingGoPastTheLoop(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.mustPropose(accept(1, nil))
	at := c.leader()
	leader, follower := c.nodes[at], c.nodes[(at+1)%3]
	eventually(t, "one term", func() bool { return follower.Term() == leader.Term() })
	term := leader.Term()
	for _, x := range []struct {
		who  string
		node *Node
		term uint64
		want bool
	}{
		{"a follower, of its leader", follower, term, true},
		{"a follower, of an old one", follower, term - 1, true},
		{"a follower, of a new one", follower, term + 1, false},
		{"the leader, of an old one", leader, term - 1, true},
		{"the leader, of its own term", leader, term, false},
		{"the leader, of the one that deposes it", leader, term + 1, false},
	} {
		if got := x.node.gate.routine(x.term); got != x.want {
			t.Errorf("%s: routine is %t", x.who, got)
		}
	}
}
