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
