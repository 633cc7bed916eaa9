package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// A snapshot is received, and the process dies at each step on the way to having it as its state.
func TestAReceivedSnapshotIsTheStateOnceItsRecordSaysSo(t *testing.T) {
	t.Parallel()
	source, m := open(t), fsm.New()
	accept(t, m, source, 1, "one")
	accept(t, m, source, 5, "five")
	sent := snapshotOf(t, source)

	dir := t.TempDir()
	begin := func(atLeast uint64) *Store {
		t.Helper()
		s, err := Open(dir, atLeast, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s, own := begin(0), fsm.New()
	accept(t, own, s, 2, "own")
	in, err := s.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(sent[:len(sent)-10]); err != nil {
		t.Fatal(err)
	}
	// Dies half way: nothing came.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = begin(0)
	if _, err := os.Stat(s.path(incomingFile)); !errors.Is(err, os.ErrNotExist) || s.Durable() != 2 {
		t.Fatalf("at %d, %v", s.Durable(), err)
	}
	// Dies before raft's record of it: nothing came.
	if err := receive(s, bytes.NewReader(sent), 5); err != nil || !s.Incoming() {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = begin(0)
	if s.Durable() != 2 || s.Incoming() {
		t.Fatalf("at %d", s.Durable())
	}
	// Dies after it: the state is the received one.
	if err := receive(s, bytes.NewReader(sent), 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = begin(7)
	if s.Durable() != 7 || load(t, s).Hash() != m.Hash() {
		t.Fatalf("at %d", s.Durable())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The log was cut and the state is older: there is nothing to go on from.
	if _, err := Open(dir, 8, nil); !errors.Is(err, ErrLost) {
		t.Fatalf("older than the log goes back: %v", err)
	}
	s = begin(7)
	accept(t, load(t, s), s, 8, "goes on")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestABackupIsAtTheIndexOfTheLogThatAdoptsIt(t *testing.T) {
	t.Parallel()
	source, m := open(t), fsm.New()
	accept(t, m, source, 500, "one")
	for _, c := range []struct {
		purpose Purpose
		want    uint64
	}{{Replica, 500}, {Backup, 3}} {
		snapshot, err := source.Snapshot(c.purpose)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if n, err := snapshot.WriteTo(&b); err != nil || n != snapshot.Size() {
			t.Fatalf("%d bytes, said %d: %v", n, snapshot.Size(), err)
		}
		snapshot.Release()
		s := open(t)
		if err := errors.Join(receive(s, &b, 3), s.Adopt()); err != nil {
			t.Fatal(err)
		}
		if s.Durable() != c.want {
			t.Fatalf("purpose %d is at %d, want %d", c.purpose, s.Durable(), c.want)
		}
	}
}

func TestCommitKeepsItsPaceWhileTheFileIsWritten(t *testing.T) {
	t.Parallel()
	s, m := open(t), fsm.New()
	payload := string(make([]byte, 1<<20))
	for index := range uint64(64) { // many layers
		accept(t, m, s, index+1, payload)
		if s.Applied() != index+1 || s.Durable() > index+1 {
			t.Fatalf("applied %d, durable %d", s.Applied(), s.Durable())
		}
	}
	if s.Durable() < 30 {
		t.Fatalf("durable is %d of 64 MiB", s.Durable())
	}
	if err := s.Flush(70); err != nil || s.Durable() != 70 { // entries that are not ours are in between
		t.Fatalf("durable %d: %v", s.Durable(), err)
	}
	if load(t, s).Hash() != m.Hash() {
		t.Fatal("state differs")
	}
}

func TestADrainedBacklogGivesItsSpaceBackAtTheNextStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := fsm.New()
	payload := string(make([]byte, 1<<20))
	for index := range uint64(90) {
		accept(t, m, s, index+1, payload)
	}
	if err := s.Flush(90); err != nil {
		t.Fatal(err)
	}
	for index := range uint64(89) {
		_, _, ops := m.Apply(91+index, command.Batch{Commands: []command.Command{command.Cancel{ID: command.ID{byte(index + 1)}}}})
		if err := s.Commit(91+index, ops); err != nil {
			t.Fatal(err)
		}
	}
	before := s.Size()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = Open(dir, 179, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if s.Size() > before/8 || load(t, s).Hash() != m.Hash() {
		t.Fatalf("%d bytes, were %d; or another state", s.Size(), before)
	}
	if p, err := s.Payload(90); err != nil || string(p) != payload {
		t.Fatalf("%d bytes, %v", len(p), err)
	}
	accept(t, m, s, 180, "goes on")
}

func TestAFullDiskIsWaitedForAndABrokenOneIsNot(t *testing.T) {
	t.Parallel()
	full := fmt.Errorf("write state.db: %w", syscall.ENOSPC)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.TempDir(), 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		left := 3
		var broken error
		s.mu.Lock()
		s.writeTo = func(l *layer) error {
			if left--; left >= 0 {
				return full
			}
			return errors.Join(broken, s.writeLayer(l))
		}
		s.mu.Unlock()
		m := fsm.New()
		accept(t, m, s, 1, "one")
		begin := time.Now()
		if err := s.Flush(1); err != nil || left != -1 || time.Since(begin) != 3*fullPause {
			t.Fatalf("after %v, %d attempts left: %v", time.Since(begin), left, err)
		}
		broken = syscall.EIO
		accept(t, m, s, 2, "two")
		if err := s.Flush(2); !errors.Is(err, syscall.EIO) {
			t.Fatalf("a broken disk: %v", err)
		}
		if err := s.Commit(3, nil); !errors.Is(err, syscall.EIO) {
			t.Fatalf("after it: %v", err)
		}
		if err := s.Close(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("close: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.TempDir(), 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.writeTo = func(*layer) error { return full }
		s.mu.Unlock()
		accept(t, fsm.New(), s, 1, "one")
		if err := s.Close(); !errors.Is(err, syscall.ENOSPC) { // does not wait for space
			t.Fatalf("close: %v", err)
		}
	})
}
