package demand_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/shared/wire"
)

var start = time.Unix(1000, 0)

type report struct {
	sequence    uint64
	full        bool
	part, parts uint32
	inFlight    map[string]uint32
	incarnation string
	after       time.Duration
}

func (r report) wire() *wire.LoadReport {
	incarnation := r.incarnation
	if incarnation == "" {
		incarnation = "one"
	}
	m := &wire.LoadReport{Edge: "edge-0", Incarnation: incarnation, Epoch: 4, Sequence: r.sequence, Full: r.full, Part: r.part, Parts: r.parts}
	for name, n := range r.inFlight {
		m.Functions = append(m.Functions, &wire.FunctionLoad{Function: name, InFlight: n})
	}
	return m
}

func TestLoadsKeepTheNewestWhateverComes(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		reports  []report
		inFlight map[string]int
		complete bool
	}{
		"a change of one function leaves the others": {
			reports:  []report{{sequence: 1, inFlight: map[string]uint32{"a": 1, "b": 2}}, {sequence: 2, inFlight: map[string]uint32{"a": 3}}},
			inFlight: map[string]int{"a": 3, "b": 2},
		},
		"an older report is ignored": {
			reports:  []report{{sequence: 2, inFlight: map[string]uint32{"a": 3}}, {sequence: 1, inFlight: map[string]uint32{"a": 1, "b": 2}}},
			inFlight: map[string]int{"a": 3},
		},
		"a full report ends what it does not name": {
			reports:  []report{{sequence: 1, inFlight: map[string]uint32{"a": 1}}, {sequence: 2, full: true, parts: 1, inFlight: map[string]uint32{"b": 1}}},
			inFlight: map[string]int{"b": 1}, complete: true,
		},
		"a full report in parts counts when all are there": {
			reports: []report{
				{sequence: 1, inFlight: map[string]uint32{"old": 1}},
				{sequence: 2, full: true, part: 0, parts: 2, inFlight: map[string]uint32{"a": 1}},
				{sequence: 3, full: true, part: 1, parts: 2, inFlight: map[string]uint32{"b": 1}},
			},
			inFlight: map[string]int{"a": 1, "b": 1}, complete: true,
		},
		"parts may share one sequence": {
			reports: []report{
				{sequence: 2, full: true, part: 0, parts: 2, inFlight: map[string]uint32{"a": 1}},
				{sequence: 2, full: true, part: 1, parts: 2, inFlight: map[string]uint32{"b": 1}},
			},
			inFlight: map[string]int{"a": 1, "b": 1}, complete: true,
		},
		"a lost part keeps what was": {
			reports: []report{
				{sequence: 1, inFlight: map[string]uint32{"old": 1}},
				{sequence: 2, full: true, part: 0, parts: 3, inFlight: map[string]uint32{"a": 1}},
				{sequence: 4, full: true, part: 2, parts: 3, inFlight: map[string]uint32{"c": 1}},
			},
			inFlight: map[string]int{"old": 1, "a": 1, "c": 1},
		},
		"a lost first part is no beginning": {
			reports: []report{
				{sequence: 1, inFlight: map[string]uint32{"old": 1}},
				{sequence: 3, full: true, part: 1, parts: 2, inFlight: map[string]uint32{"b": 1}},
			},
			inFlight: map[string]int{"old": 1, "b": 1},
		},
		"a change between the parts survives": {
			reports: []report{
				{sequence: 1, full: true, part: 0, parts: 2, inFlight: map[string]uint32{"a": 1}},
				{sequence: 2, inFlight: map[string]uint32{"c": 7}},
				{sequence: 3, full: true, part: 1, parts: 2, inFlight: map[string]uint32{"b": 1}},
			},
			inFlight: map[string]int{"a": 1, "b": 1, "c": 7}, complete: true,
		},
		"a new life of an edge counts beside the old one, until that is long silent": {
			reports: []report{
				{sequence: 9, inFlight: map[string]uint32{"a": 1}},
				{sequence: 1, incarnation: "two", after: time.Second, inFlight: map[string]uint32{"a": 2}},
			},
			inFlight: map[string]int{"a": 3},
		},
		"an old life that is silent is superseded": {
			reports: []report{
				{sequence: 9, inFlight: map[string]uint32{"a": 1}},
				{sequence: 1, incarnation: "two", after: 4 * time.Second, inFlight: map[string]uint32{"a": 2}},
			},
			inFlight: map[string]int{"a": 2},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			loads := demand.NewLoads()
			now := start
			for _, r := range test.reports {
				now = now.Add(r.after)
				loads.Apply(now, r.wire())
				loads.Apply(now, r.wire()) // doubled
			}
			sums := loads.Functions()
			for name, want := range test.inFlight {
				if sums[name].InFlight != want {
					t.Errorf("%s has %d in flight, want %d", name, sums[name].InFlight, want)
				}
			}
			for name, sum := range sums {
				if sum.InFlight != test.inFlight[name] {
					t.Errorf("%s has %d in flight, want %d", name, sum.InFlight, test.inFlight[name])
				}
			}
			edges := loads.Edges()
			if got := edges[len(edges)-1]; got.Complete != test.complete || got.Epoch != 4 || !got.Heard.Equal(now) {
				t.Errorf("the edge stands as %+v", got)
			}
		})
	}
}

func TestAgesBecomeTimesOfThisClock(t *testing.T) {
	t.Parallel()
	loads := demand.NewLoads()
	apply := func(sequence uint64, f *wire.FunctionLoad) {
		f.Function = "a"
		loads.Apply(start, &wire.LoadReport{Edge: "e", Sequence: sequence, Functions: []*wire.FunctionLoad{f}})
	}
	apply(1, &wire.FunctionLoad{})
	if last := loads.Functions()["a"].Last; !last.IsZero() {
		t.Errorf("never active, and last is %v", last)
	}
	apply(2, &wire.FunctionLoad{ActiveBefore: true, AgeMs: 3000})
	if last := loads.Functions()["a"].Last; !last.Equal(start.Add(-3 * time.Second)) {
		t.Errorf("last is %v", last)
	}
	apply(3, &wire.FunctionLoad{Streams: 1, AgeMs: 3000, ActiveBefore: true})
	if last := loads.Functions()["a"].Last; !last.Equal(start) {
		t.Errorf("with an open stream, last is %v", last)
	}
	apply(4, &wire.FunctionLoad{ActiveBefore: true, AgeMs: 1 << 63})
	if last := loads.Functions()["a"].Last; !last.Equal(start) {
		t.Errorf("an older age moved last to %v", last)
	}
}

func TestEdgesWithoutASessionAreForgottenInTime(t *testing.T) {
	t.Parallel()
	loads := demand.NewLoads()
	loads.Apply(start, report{sequence: 1, inFlight: map[string]uint32{"a": 1}}.wire())
	nobody := func(demand.Edge) bool { return false }
	all := func(string) bool { return true }
	loads.Keep(start.Add(5*time.Second), nobody, all)
	if loads.Functions()["a"].InFlight != 1 {
		t.Error("forgotten too early")
	}
	loads.Keep(start.Add(time.Hour), func(demand.Edge) bool { return true }, all)
	if loads.Functions()["a"].InFlight != 1 {
		t.Error("forgotten although its session lives")
	}
	loads.Keep(start.Add(time.Hour), nobody, all)
	if sum := loads.Functions()["a"]; sum.InFlight != 0 || sum.Last.IsZero() {
		t.Errorf("%+v: its load should be gone, its activity not", sum)
	}
	loads.Keep(start, nobody, func(string) bool { return false })
	if len(loads.Functions()) != 0 {
		t.Error("a function nobody knows is remembered")
	}
}

func TestDrainReports(t *testing.T) {
	t.Parallel()
	loads := demand.NewLoads()
	loads.Apply(start, &wire.LoadReport{Edge: "e", Incarnation: "1", Sequence: 1, Functions: []*wire.FunctionLoad{{
		Function: "a", Draining: []*wire.DrainReport{{Replica: "a-1", Version: &wire.Version{Epoch: 1, Seq: 9}, Open: 2}},
	}}})
	edge := demand.Edge{Name: "e", Incarnation: "1"}
	if version, open, ok := loads.Draining(edge, "a", "a-1"); !ok || open != 2 || version.GetSeq() != 9 {
		t.Errorf("got %v, %d, %v", version, open, ok)
	}
	for _, unknown := range [][2]string{{"a", "a-2"}, {"b", "a-1"}} {
		if _, _, ok := loads.Draining(edge, unknown[0], unknown[1]); ok {
			t.Errorf("%v was never reported", unknown)
		}
	}
}

func queued(term, sequence uint64, full bool, functions map[string]uint64) *wire.DemandReport {
	m := &wire.DemandReport{Term: term, Sequence: sequence, Full: full, Parts: 1}
	for name, n := range functions {
		m.Functions = append(m.Functions, &wire.FunctionDemand{Function: name, Queued: n})
	}
	return m
}

func TestDemandFollowsTheNewestLeader(t *testing.T) {
	t.Parallel()
	q := demand.NewQueue()
	expect := func(what string, want map[string]uint64) {
		t.Helper()
		got := q.Functions()
		for name, n := range want {
			if got[name].Queued != n {
				t.Errorf("%s: %s has %d queued, want %d", what, name, got[name].Queued, n)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	q.Apply(start, queued(1, 5, false, map[string]uint64{"a": 1, "b": 1}))
	if q.Complete() {
		t.Error("a change is not everything")
	}
	q.Apply(start, queued(1, 4, false, map[string]uint64{"a": 9}))
	expect("an older report", map[string]uint64{"a": 1, "b": 1})
	q.Apply(start, queued(2, 1, false, map[string]uint64{"a": 2}))
	expect("a new leader's change leaves what the old one said", map[string]uint64{"a": 2, "b": 1})
	q.Apply(start, queued(1, 6, true, map[string]uint64{"z": 1}))
	expect("the old leader is not heard any more", map[string]uint64{"a": 2, "b": 1})
	q.Apply(start, queued(2, 2, true, map[string]uint64{"a": 3}))
	expect("everything of the new leader", map[string]uint64{"a": 3})
	if !q.Complete() {
		t.Error("everything was said")
	}
	later := start.Add(time.Minute)
	q.Apply(later.Add(time.Second), queued(2, 3, false, map[string]uint64{"new": 1}))
	q.Answer(later, later.Add(2*time.Second), queued(2, 0, true, map[string]uint64{"c": 1, "new": 7}))
	expect("an answer replaces what was heard before the question", map[string]uint64{"c": 1, "new": 1})
	q.Answer(later, later, queued(1, 0, true, nil))
	expect("an answer of an old leader", map[string]uint64{"c": 1, "new": 1})
}

func TestNextTryIsATimeOfThisClock(t *testing.T) {
	t.Parallel()
	q := demand.NewQueue()
	q.Apply(start, &wire.DemandReport{Term: 1, Sequence: 1, Functions: []*wire.FunctionDemand{
		{Function: "a", Waiting: 1, HasNextTry: true, NextTryInMs: 1500}, {Function: "b", Waiting: 1},
	}})
	if next := q.Functions()["a"].NextTry; !next.Equal(start.Add(1500 * time.Millisecond)) {
		t.Errorf("next try at %v", next)
	}
	if !q.Functions()["b"].NextTry.IsZero() {
		t.Error("no next try was said")
	}
}

// Whatever is lost, doubled and reordered, one full report that arrives whole makes the sums right.
func TestAnyHistoryConvergesWithAFullReport(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		truth := map[string]uint32{}
		var reports []*wire.LoadReport
		for sequence := uint64(1); sequence <= 30; sequence++ {
			name := string(rune('a' + random.IntN(6)))
			truth[name] = uint32(random.IntN(3)) //nolint:gosec // small
			r := report{sequence: sequence, inFlight: map[string]uint32{name: truth[name]}}
			if random.IntN(5) == 0 {
				r.full, r.parts, r.inFlight = true, 1, truth
			}
			reports = append(reports, r.wire())
		}
		random.Shuffle(len(reports), func(i, j int) { reports[i], reports[j] = reports[j], reports[i] })
		loads := demand.NewLoads()
		for _, r := range reports {
			if random.IntN(4) > 0 {
				loads.Apply(start, r)
			}
		}
		loads.Apply(start, report{sequence: 31, full: true, parts: 1, inFlight: truth}.wire())
		for name, sum := range loads.Functions() {
			if sum.InFlight != int(truth[name]) {
				t.Fatalf("seed %d: %s has %d, want %d", seed, name, sum.InFlight, truth[name])
			}
		}
	}
}
