package history

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestLedgerTellsWhatWasNotKept(t *testing.T) {
	t.Parallel()
	var l Ledger
	for _, a := range []Attempt{{"kept", "1", OK}, {"lost", "2", OK}, {"refused", "", None}, {"untrue", "", None}, {"gone", "3", Unknown}, {"came", "4", Unknown}} {
		l.Add(a)
	}
	r := Check(l.Attempts(), map[string]int{"kept": 3, "untrue": 1, "came": 1, "alien": 1})
	want := "ledger: 2 ok, 2 refused, 2 unknown (1 of them done); lost 1, untrue 1, unexpected 1, again 2"
	if r.String() != want {
		t.Errorf("report %q, want %q", r, want)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "lost [lost (id 2)]") || !strings.Contains(err.Error(), "[alien]") {
		t.Errorf("error %v", err)
	}
	if err := Check([]Attempt{{"a", "", OK}}, map[string]int{"a": 1}).Err(); err != nil {
		t.Errorf("a clean ledger: %v", err)
	}
	if err := Check([]Attempt{{Key: "a"}}, nil).Err(); err == nil {
		t.Error("an attempt without an outcome passed")
	}
}

const metrics = `# HELP slimfaas_async_accepted_total Calls accepted.
# TYPE slimfaas_async_accepted_total counter
slimfaas_async_accepted_total{function="work"} 1.5e+06
slimfaas_async_succeeded_total{function="work"} 1.499998e+06
slimfaas_async_dead_total{function="work"} 1
slimfaas_async_queued{function="work"} 1
slimfaas_async_accepted_total{function="other"} 2
slimfaas_async_cancelled_total{function="other"} 2
slimfaas_queue_applied_index 77
`

func TestNodesAgree(t *testing.T) {
	t.Parallel()
	read := func(node, text string) Counters {
		t.Helper()
		c, err := ParseCounters(node, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := read("a", metrics), read("b", metrics)
	if a.Applied != 77 || a.Functions["work"].Accepted != 1.5e6 || a.Functions["work"].Unfinished() != 1 {
		t.Fatalf("%+v", a)
	}
	if err := Agree([]Counters{a, b}); err != nil {
		t.Error(err)
	}
	for name, change := range map[string][2]string{
		"law broken":       {`_dead_total{function="work"} 1`, `_dead_total{function="work"} 2`},
		"another function": {`function="other"`, `function="mother"`},
	} {
		if err := Agree([]Counters{a, read("b", strings.ReplaceAll(metrics, change[0], change[1]))}); err == nil || errors.Is(err, ErrApart) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Agree([]Counters{a, read("b", strings.Replace(metrics, "index 77", "index 78", 1))}); !errors.Is(err, ErrApart) {
		t.Errorf("different indexes: %v", err)
	}
	if _, err := ParseCounters("c", strings.NewReader("slimfaas_async_queued{function=\"work\"} 1\n")); err == nil {
		t.Error("metrics without an index were taken")
	}
}

func TestRegisterHistories(t *testing.T) {
	t.Parallel()
	at := func(kind Kind, seen Seen, from, to int) Op {
		return Op{Kind: kind, Seen: seen, Call: time.Duration(from), Return: time.Duration(to)}
	}
	for name, c := range map[string]struct {
		ops  []Op
		want bool
	}{
		"a life":                        {[]Op{at(Read, Absent, 1, 2), at(Accept, Done, 3, 4), at(Read, Queued, 5, 6), at(Cancel, Done, 7, 8), at(Accept, Done, 9, 10), at(Read, Cancelled, 11, 12)}, true},
		"stale read of nothing":         {[]Op{at(Accept, Done, 1, 2), at(Read, Absent, 3, 4)}, false},
		"stale read after a cancel":     {[]Op{at(Accept, Done, 1, 2), at(Cancel, Done, 3, 4), at(Read, Queued, 5, 6)}, false},
		"read beside the write":         {[]Op{at(Accept, Done, 1, 10), at(Read, Absent, 2, 3), at(Read, Queued, 4, 5)}, true},
		"reads that go back":            {[]Op{at(Accept, Done, 1, 10), at(Read, Queued, 2, 3), at(Read, Absent, 4, 5)}, false},
		"unknown, done later":           {[]Op{at(Accept, Perhaps, 1, 2), at(Read, Absent, 3, 4), at(Read, Queued, 5, 6)}, true},
		"unknown, never done":           {[]Op{at(Accept, Perhaps, 1, 2), at(Read, Absent, 3, 4), at(Read, Absent, 5, 6)}, true},
		"unknown, done and undone":      {[]Op{at(Accept, Perhaps, 1, 2), at(Read, Queued, 3, 4), at(Read, Absent, 5, 6)}, false},
		"nobody asked":                  {[]Op{at(Read, Queued, 1, 2)}, false},
		"two cancels, both done":        {[]Op{at(Accept, Done, 1, 2), at(Cancel, Done, 3, 4), at(Cancel, Done, 5, 6)}, false},
		"cancel finds it cancelled":     {[]Op{at(Accept, Done, 1, 2), at(Cancel, Done, 3, 4), at(Cancel, Cancelled, 5, 6)}, true},
		"cancel finds nothing, wrong":   {[]Op{at(Accept, Done, 1, 2), at(Cancel, Absent, 3, 4)}, false},
		"cancel finds nothing, rightly": {[]Op{at(Cancel, Absent, 1, 2), at(Accept, Done, 3, 4)}, true},
	} {
		r := NewRecorder()
		for _, o := range c.ops {
			o.Key = "k"
			r.Add(o)
		}
		if err := r.Linearizable(); (err == nil) != c.want {
			t.Errorf("%s: linearizable %v, want %v: %v", name, err == nil, c.want, err)
		}
	}
}
