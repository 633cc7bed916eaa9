package table

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func record(name string, epoch, seq uint64) *wire.FunctionRecord {
	return &wire.FunctionRecord{Name: name, Version: &wire.Version{Epoch: epoch, Seq: seq}, Wanted: int32(seq)}
}

func deletion(name string, epoch, seq uint64) *wire.FunctionRecord {
	r := record(name, epoch, seq)
	r.Deleted = true
	return r
}

func names(entries []*Entry) (all []string) {
	for _, e := range entries {
		all = append(all, fmt.Sprintf("%s@%d.%d", e.Record.Name, e.Record.Version.Epoch, e.Record.Version.Seq))
	}
	return all
}

func TestTheHigherVersionWins(t *testing.T) {
	t.Parallel()
	table := New()
	for _, step := range []struct {
		r       *wire.FunctionRecord
		changed bool
	}{
		{record("a", 1, 5), true},
		{record("a", 1, 5), false},
		{record("a", 1, 4), false},
		{record("a", 2, 1), true},
		{record("a", 1, 9), false},
		{record("b", 1, 9), true},
		{deletion("b", 2, 2), true},
		{record("b", 2, 1), false},
		{record("", 9, 9), false},
		{&wire.FunctionRecord{Name: "c"}, false},
		{nil, false},
	} {
		if table.Apply(step.r) != step.changed {
			t.Errorf("%v: changed is not %v", step.r, step.changed)
		}
	}
	if got := names(table.All()); !slices.Equal(got, []string{"a@2.1"}) {
		t.Errorf("live: %v", got)
	}
	if _, ok := table.Get("b"); ok {
		t.Error("a deleted function is found")
	}
	if e, ok := table.Get("a"); !ok || e.Record.Wanted != 1 || e.Spec.ReplicasAtStart != function.Default().ReplicasAtStart {
		t.Errorf("a is %v, %v", e, ok)
	}
	d := table.Digest()
	if d.Count != 2 || d.Version.Epoch != 2 || d.Version.Seq != 2 {
		t.Errorf("digest %v", d)
	}
}

func TestTheHashIsTheOneOfTheWire(t *testing.T) {
	t.Parallel()
	table := New()
	table.Apply(record("a", 1, 2))
	table.Apply(record("bc", 1, 258))
	want := uint64(0)
	for _, identity := range []string{"a\x00" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x02", "bc\x00" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x01\x02"} {
		h := fnv.New64a()
		_, _ = h.Write([]byte(identity))
		want += h.Sum64()
	}
	if got := table.Digest().Hash; got != want {
		t.Errorf("hash %x, want %x", got, want)
	}
}

func TestABadSpecificationHurtsOnlyItsFunction(t *testing.T) {
	t.Parallel()
	table := New()
	spec := function.Default()
	spec.ReplicasMin = 7
	good, bad := record("good", 1, 1), record("bad", 1, 2)
	good.Specification, bad.Specification = function.Encode(spec), []byte("{")
	table.Apply(good)
	table.Apply(bad)
	if e, _ := table.Get("good"); e.Err != nil || e.Spec.ReplicasMin != 7 {
		t.Errorf("good: %+v", e)
	}
	if e, _ := table.Get("bad"); e.Err == nil || e.Spec == nil {
		t.Errorf("bad: %+v", e)
	}
}

func TestReplaceAllRemovesWhatIsNotListedUnlessNewer(t *testing.T) {
	t.Parallel()
	table := New()
	var told []string
	table.Changed(func(e *Entry) { told = append(told, fmt.Sprint(e.Record.Name, " ", e.Record.Deleted)) })
	table.Apply(record("old", 1, 1))
	table.Apply(record("kept", 1, 2))
	table.Apply(record("newer", 1, 9))
	table.Apply(deletion("gone", 1, 3))
	told = nil
	table.ReplaceAll([]*wire.FunctionRecord{record("kept", 1, 2), record("new", 1, 5)}, &wire.Version{Epoch: 1, Seq: 6})
	if got := names(table.All()); !slices.Equal(got, []string{"kept@1.2", "new@1.5", "newer@1.9"}) {
		t.Errorf("live: %v", got)
	}
	if want := []string{"new false", "old true"}; !slices.Equal(told, append(want, "gone true")) && !slices.Equal(told, want) {
		t.Errorf("told: %v", told)
	}
	other := New()
	for _, r := range table.Since(nil) {
		other.Apply(r)
	}
	if !other.Matches(table.Digest()) {
		t.Errorf("the digest %v is not that of the content %v", table.Digest(), other.Digest())
	}
}

func TestOnlyOldDeletionsAreForgotten(t *testing.T) {
	t.Parallel()
	table := New()
	table.Apply(record("a", 1, 1))
	table.Apply(deletion("b", 1, 2))
	if n := table.Forget(time.Hour); n != 0 {
		t.Errorf("forgot %d", n)
	}
	if n := table.Forget(0); n != 1 {
		t.Errorf("forgot %d", n)
	}
	table.Apply(record("b", 1, 3)) // the name may come back
	if d := table.Digest(); d.Count != 2 || table.Forget(0) != 0 {
		t.Errorf("%v", d)
	}
}

func TestSubscribersHearEveryChangeInOrderAndMayChangeTheTable(t *testing.T) {
	t.Parallel()
	table := New()
	seen := map[string]uint64{}
	echoed := 0
	table.Changed(func(e *Entry) { // never two at a time: no lock
		if e.Record.Version.Seq <= seen[e.Record.Name] {
			t.Errorf("%s: %d after %d", e.Record.Name, e.Record.Version.Seq, seen[e.Record.Name])
		}
		seen[e.Record.Name] = e.Record.Version.Seq
	})
	stop := table.Changed(func(e *Entry) {
		if e.Record.Name != "echo" {
			table.Apply(record("echo", 1, table.Digest().Version.Seq+1))
			echoed++
		}
	})
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 200 {
				table.Apply(record(fmt.Sprint("f", (w+i)%7), 1, uint64(i*4+w+1)))
			}
		})
	}
	writers.Wait()
	stop()
	for _, e := range table.All() {
		if e.Record.Name != "echo" && seen[e.Record.Name] != e.Record.Version.Seq {
			t.Errorf("%s is at %d, the last change told was %d", e.Record.Name, e.Record.Version.Seq, seen[e.Record.Name])
		}
	}
	before := echoed
	table.Apply(record("f0", 1, 1<<20))
	if echoed != before || before == 0 {
		t.Errorf("echoed %d, then %d", before, echoed)
	}
}

func TestPagesAreOneStateInBoundedPieces(t *testing.T) {
	t.Parallel()
	table := New()
	if _, err := table.Pages(nil); err != ErrNotSynced { //nolint:errorlint // returned bare
		t.Errorf("got %v", err)
	}
	table.MarkSynced()
	for i := range 100 {
		r := record(fmt.Sprintf("f%03d", i), 3, uint64(i+1))
		r.Reason = string(make([]byte, 10<<10))
		table.Apply(r)
	}
	for _, c := range []struct {
		since *wire.Version
		full  bool
		n     int
	}{{nil, true, 100}, {&wire.Version{Epoch: 2, Seq: 500}, true, 100}, {&wire.Version{Epoch: 3, Seq: 90}, false, 10}, {&wire.Version{Epoch: 3, Seq: 100}, false, 0}} {
		pages, err := table.Pages(c.since)
		if err != nil {
			t.Fatal(err)
		}
		n, count := 0, 0
		for p := range pages {
			if proto.Size(p) > pageBytes+1<<10 {
				t.Errorf("a page of %d bytes", proto.Size(p))
			}
			if (p.Digest != nil) != (n == 0) || p.Full != (n == 0 && c.full) {
				t.Errorf("page %d since %v: digest %v, full %v", n, c.since, p.Digest, p.Full)
			}
			n++
			count += len(p.Records)
		}
		if count != c.n || n == 0 || (c.n == 100 && n < 4) {
			t.Errorf("since %v: %d records on %d pages", c.since, count, n)
		}
	}
}

// TestTablesConverge: whatever is lost, doubled or reordered, a pull makes two tables equal, and equal digests mean equal tables.
func TestTablesConverge(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 2))
		source := New()
		source.MarkSynced()
		var sent []*wire.FunctionRecord
		seq, epoch := uint64(0), uint64(1)
		for range random.IntN(60) + 1 {
			if random.IntN(15) == 0 { // a new leader states what it knows afresh, in its own counting
				epoch++
				seq = 0
				for _, e := range source.All() {
					seq++
					r := record(e.Record.Name, epoch, seq)
					source.Apply(r)
					sent = append(sent, r)
				}
			}
			seq++
			r := record(fmt.Sprint("f", random.IntN(9)), epoch, seq)
			r.Deleted = random.IntN(4) == 0
			source.Apply(r)
			sent = append(sent, r)
		}
		receiver := New()
		for range len(sent) * 2 {
			if random.IntN(3) > 0 {
				receiver.Apply(sent[random.IntN(len(sent))])
			}
		}
		if random.IntN(2) == 0 {
			source.Forget(0)
		}
		var since *wire.Version
		if random.IntN(2) == 0 {
			since = &wire.Version{Epoch: epoch - 1}
		}
		pages, err := source.Pages(since)
		if err != nil {
			t.Fatal(err)
		}
		var records []*wire.FunctionRecord
		for p := range pages {
			records = append(records, p.Records...)
		}
		receiver.ReplaceAll(records, source.Digest().Version)
		want, got := names(source.All()), names(receiver.All())
		if !slices.Equal(want, got) || !proto.Equal(source.Digest(), receiver.Digest()) {
			t.Fatalf("seed %d: %v and %v, digests %v and %v", seed, want, got, source.Digest(), receiver.Digest())
		}
	}
}

func TestReadersNeedNoLock(t *testing.T) {
	t.Parallel()
	table := New()
	table.Apply(record("a", 1, 1))
	table.mu.Lock() // a writer that never ends
	defer table.mu.Unlock()
	if _, ok := table.Get("a"); !ok || len(table.All()) != 1 {
		t.Error("a is not found")
	}
}

func BenchmarkGet(b *testing.B) {
	table := New()
	for i := range 10_000 {
		table.Apply(record(fmt.Sprint("function-", i), 1, uint64(i+1)))
	}
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, ok := table.Get("function-77"); !ok {
				b.Error("not found")
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	table := New()
	for i := range 10_000 {
		table.Apply(record(fmt.Sprint("function-", i), 1, uint64(i+1)))
	}
	all := table.All()
	seq := uint64(10_000)
	b.ResetTimer()
	for i := range b.N {
		seq++
		table.Apply(record(all[i%len(all)].Record.Name, 1, seq))
	}
}
