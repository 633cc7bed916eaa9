package raftnode

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func openTestLog(t *testing.T, dir string, kind LogKind) *diskLog {
	t.Helper()
	d, err := openLog(dir, kind)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func entriesOf(t *testing.T, s raft.LogStore) (all []uint64) {
	t.Helper()
	first, err := s.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := first; i != 0 && i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil || l.Index != i || string(l.Data) != string(rune('a'+i)) {
			t.Fatalf("entry %d: %+v %v", i, l, err)
		}
		all = append(all, i)
	}
	return all
}

func someEntries(first, last uint64) (logs []*raft.Log) {
	for i := first; i <= last; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: i / 3, Type: raft.LogCommand, Data: []byte(string(rune('a' + i)))})
	}
	return logs
}

func TestAnEntryComesBackAsItWas(t *testing.T) {
	t.Parallel()
	d := openTestLog(t, t.TempDir(), LogSegments)
	defer d.Close()
	want := raft.Log{
		Index: 5, Term: 7, Type: raft.LogConfiguration, Data: []byte("data"), Extensions: []byte("more"), AppendedAt: time.Unix(3, 4),
	}
	if err := d.StoreLog(&want); err != nil {
		t.Fatal(err)
	}
	var got raft.Log
	if err := d.GetLog(5, &got); err != nil {
		t.Fatal(err)
	}
	if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type || string(got.Data) != "data" ||
		string(got.Extensions) != "more" || !got.AppendedAt.Equal(want.AppendedAt) {
		t.Errorf("got %+v", got)
	}
	if err := d.GetLog(6, &got); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry 6: %v", err)
	}
}

func TestEntriesAreDeletedAtTheEndsOnly(t *testing.T) {
	t.Parallel()
	d := openTestLog(t, t.TempDir(), LogSegments)
	defer d.Close()
	if err := d.StoreLogs(someEntries(1, 9)); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteRange(3, 4); err == nil {
		t.Error("a hole was cut")
	}
	for _, r := range [][2]uint64{{1, 2}, {8, 9}, {20, 30}} {
		if err := d.DeleteRange(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	if got := entriesOf(t, d); !slices.Equal(got, []uint64{3, 4, 5, 6, 7}) {
		t.Errorf("entries %v", got)
	}
}

func TestALogInBoltMovesIntoSegmentsAndNotBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := openTestLog(t, dir, LogBolt)
	if err := errors.Join(old.StoreLogs(someEntries(3, 12)), old.SetUint64([]byte("CurrentTerm"), 4), old.Close()); err != nil {
		t.Fatal(err)
	}
	moved := openTestLog(t, dir, LogSegments)
	if got := entriesOf(t, moved); len(got) != 10 || got[0] != 3 {
		t.Errorf("entries %v", got)
	}
	if term, err := moved.GetUint64([]byte("CurrentTerm")); err != nil || term != 4 {
		t.Errorf("term %d, %v", term, err)
	}
	if left, err := moved.bolt.FirstIndex(); err != nil || left != 0 {
		t.Errorf("raft.db still has entry %d (%v)", left, err)
	}
	if err := moved.Close(); err != nil {
		t.Fatal(err)
	}
	if back, err := openLog(dir, LogBolt); err == nil {
		_ = back.Close()
		t.Error("the entries in segments were overlooked")
	}
}

func TestTheLossOfEitherPartOfTheLogIsNoticed(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"raft.db", "log"} {
		dir := t.TempDir()
		d := openTestLog(t, dir, LogSegments)
		if err := errors.Join(d.StoreLogs(someEntries(1, 3)), d.Close(), os.RemoveAll(filepath.Join(dir, part))); err != nil {
			t.Fatal(err)
		}
		if _, err := openLog(dir, LogSegments); !errors.Is(err, ErrLostLog) {
			t.Errorf("without %s: %v", part, err)
		}
	}
}
