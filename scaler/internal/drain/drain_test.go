package drain_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/drain"
)

// script plays a drain step by step: every line sets something or steps and says what came out.
type script struct {
	t       *testing.T
	now     time.Time
	drain   *drain.Drain
	in      drain.Input
	reports map[string]drain.Report // "edge/victim"
	seq     uint64
}

func newScript(t *testing.T, wanted int) *script {
	t.Helper()
	s := &script{t: t, now: time.Unix(1000, 0), reports: map[string]drain.Report{}}
	s.in = drain.Input{Wanted: wanted, Timeout: 30 * time.Second, Edges: []string{"edge-0", "edge-1"}}
	for i := range wanted {
		s.in.Replicas = append(s.in.Replicas, drain.Replica{Victim: victim(i), Routable: true})
	}
	s.in.Said = func(edge string, v drain.Victim) drain.Report { return s.reports[edge+"/"+v.Name] }
	return s
}

func victim(i int) drain.Victim {
	return drain.Victim{Name: fmt.Sprintf("fn-hello-%d", i), Instance: "1"}
}

func (s *script) after(d time.Duration) *script { s.now = s.now.Add(d); return s }

func (s *script) target(n int) *script { s.in.Target = n; return s }

// says is a report of an edge for the version published last.
func (s *script) says(edge string, v drain.Victim, open int) *script {
	s.reports[edge+"/"+v.Name] = drain.Report{Version: drain.Version{Epoch: 1, Seq: s.seq}, Open: open, Known: true}
	return s
}

// step moves on and checks what comes out; a Publish is carried out.
func (s *script) step(want drain.Action, awaited string, victims ...drain.Victim) *script {
	s.t.Helper()
	s.in.Now = s.now
	var got drain.Action
	var words string
	s.drain, got, words = drain.Step(s.drain, s.in)
	if got != want || !strings.Contains(words, awaited) {
		s.t.Fatalf("step says %d, awaiting %q; want %d, … %s …", got, words, want, awaited)
	}
	var have []drain.Victim
	if s.drain != nil {
		have = s.drain.Victims
	}
	if !slices.Equal(have, victims) {
		s.t.Fatalf("victims are %v, want %v", have, victims)
	}
	if got == drain.Publish {
		s.seq++
		s.drain.Published = drain.Version{Epoch: 1, Seq: s.seq}
	}
	return s
}

func TestDrainToZeroWaitsForEveryEdge(t *testing.T) {
	t.Parallel()
	newScript(t, 1).target(0).
		step(drain.Publish, "the table", victim(0)).
		step(drain.Wait, "edge-0 to stop routing", victim(0)).
		says("edge-0", victim(0), 0).
		step(drain.Wait, "edge-1 to stop routing", victim(0)).
		says("edge-1", victim(0), 2).
		step(drain.Wait, "2 open on fn-hello-0 at edge-1", victim(0)).
		says("edge-1", victim(0), 0).
		step(drain.Ask, "live edges", victim(0)).
		facts().
		step(drain.Patch, "", victim(0))
}

func (s *script) facts() *script { s.in.FactsAt = s.now; return s }

func TestActivityCancelsADrain(t *testing.T) {
	t.Parallel()
	newScript(t, 1).target(0).
		step(drain.Publish, "", victim(0)).
		says("edge-0", victim(0), 0).says("edge-1", victim(0), 0).
		step(drain.Ask, "", victim(0)).
		target(1).
		step(drain.Wait, ""). // cancelled: no victims
		target(0).
		step(drain.Publish, "", victim(0)).
		// What was said about the drain before does not count for this one.
		step(drain.Wait, "edge-0 to stop routing", victim(0))
}

func TestAReportOfALaterVersionCounts(t *testing.T) {
	t.Parallel()
	s := newScript(t, 1).target(0).step(drain.Publish, "", victim(0))
	s.seq += 5
	s.says("edge-0", victim(0), 0).says("edge-1", victim(0), 0).step(drain.Ask, "", victim(0))
}

func TestTheDeadlineEndsTheWait(t *testing.T) {
	t.Parallel()
	newScript(t, 2).target(1).
		step(drain.Publish, "", victim(1)).
		says("edge-0", victim(1), 1).
		after(30*time.Second-1).
		step(drain.Wait, "1 open", victim(1)).
		after(1).
		step(drain.Ask, "", victim(1)).
		facts().
		step(drain.Patch, "", victim(1))
}

func TestFactsOlderThanTheLastZeroAreReadAgain(t *testing.T) {
	t.Parallel()
	s := newScript(t, 1).target(0).facts().after(time.Second).
		step(drain.Publish, "", victim(0)).
		says("edge-0", victim(0), 0).says("edge-1", victim(0), 0).
		step(drain.Ask, "", victim(0)).
		facts()
	s.after(time.Second).says("edge-1", victim(0), 1).
		step(drain.Wait, "1 open", victim(0)).
		after(time.Second).says("edge-1", victim(0), 0).
		step(drain.Ask, "", victim(0))
}

func TestANewEdgeInTheFreshFactsIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newScript(t, 1).target(0).
		step(drain.Publish, "", victim(0)).
		says("edge-0", victim(0), 0).says("edge-1", victim(0), 0).
		step(drain.Ask, "", victim(0))
	s.in.Edges = append(s.in.Edges, "edge-2")
	s.facts().step(drain.Wait, "edge-2 to stop routing", victim(0))
}

func TestNothingShrinksOnHold(t *testing.T) {
	t.Parallel()
	s := newScript(t, 1).target(0)
	s.in.Hold = "history is not read"
	s.step(drain.Wait, "history is not read")
	s.in.Hold = ""
	s.step(drain.Publish, "", victim(0)).says("edge-0", victim(0), 0).says("edge-1", victim(0), 0)
	s.in.Hold = "edge-7 vanished"
	s.facts().step(drain.Wait, "edge-7 vanished", victim(0))
	s.in.Hold = ""
	s.step(drain.Patch, "", victim(0))
}

func TestATargetThatMovesKeepsTheVictimsItCan(t *testing.T) {
	t.Parallel()
	newScript(t, 3).target(1).
		step(drain.Publish, "", victim(1), victim(2)).
		says("edge-0", victim(2), 0).says("edge-1", victim(2), 0).
		target(2).
		step(drain.Publish, "", victim(2)).
		says("edge-0", victim(2), 0).says("edge-1", victim(2), 0).
		step(drain.Ask, "", victim(2)).
		target(0).
		step(drain.Publish, "", victim(0), victim(1), victim(2))
}

func TestReplicasWithoutAddressNeedNoDrain(t *testing.T) {
	t.Parallel()
	s := newScript(t, 2).target(1)
	s.in.Replicas[0].Routable = false
	s.step(drain.Ask, "", victim(0)).facts().step(drain.Patch, "", victim(0))
}

func TestMoreAskedForThanThereAreNeedsNoVictim(t *testing.T) {
	t.Parallel()
	s := newScript(t, 3).target(1)
	s.in.Replicas = s.in.Replicas[:1]
	s.step(drain.Ask, "").facts().step(drain.Patch, "")
}

func TestChooseTakesTheHighestIndexByNumber(t *testing.T) {
	t.Parallel()
	var replicas []drain.Replica
	for i := range 12 {
		replicas = append(replicas, drain.Replica{Victim: victim(i), Routable: true})
	}
	got := drain.Choose(replicas, nil, 10, false)
	if !slices.Equal(got, []drain.Victim{victim(10), victim(11)}) {
		t.Errorf("chose %v", got)
	}
	if got := drain.Choose(replicas, []drain.Victim{victim(3)}, 11, false); !slices.Equal(got, []drain.Victim{victim(3)}) {
		t.Errorf("did not keep the one chosen before: %v", got)
	}
}

func TestWhereTheOrchestratorGoesByTheIndexOnlyThatCounts(t *testing.T) {
	t.Parallel()
	replicas := []drain.Replica{{Victim: victim(0)}, {Victim: victim(1), Routable: true}, {Victim: victim(2), Routable: true}}
	if got := drain.Choose(replicas, []drain.Victim{victim(1)}, 2, true); !slices.Equal(got, []drain.Victim{victim(2)}) {
		t.Errorf("chose %v", got)
	}
}
