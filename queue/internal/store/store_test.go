package store

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func accept(t *testing.T, m *fsm.Machine, s *Store, index uint64, payload string) {
	t.Helper()
	_, _, ops := m.Apply(index, command.Batch{NowUnixMs: int64(index), Commands: []command.Command{
		command.Accept{ID: command.ID{byte(index)}, Function: "f", Payload: []byte(payload)},
	}})
	if err := s.Commit(index, ops); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, s *Store) *fsm.Machine {
	t.Helper()
	if err := s.Flush(s.Applied()); err != nil {
		t.Fatal(err)
	}
	m, err := fsm.Load(s.Durable(), s.Each)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func snapshotOf(t *testing.T, s *Store) []byte {
	t.Helper()
	snapshot, err := s.Snapshot(Replica)
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Release()
	var b bytes.Buffer
	n, err := snapshot.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("wrote %d, said %d: %v", b.Len(), n, err)
	}
	return b.Bytes()
}

// receive a snapshot in pieces.
func receive(s *Store, r io.Reader, index uint64) error {
	in, err := s.Receive()
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(in, struct{ io.Reader }{r}, make([]byte, 1000)); err != nil {
		return errors.Join(err, in.Cancel())
	}
	return in.Finish(index)
}

func TestStateAndPayloadsComeBack(t *testing.T) {
	t.Parallel()
	s, m := open(t), fsm.New()
	accept(t, m, s, 1, "one")
	accept(t, m, s, 2, "")
	loaded := load(t, s)
	if loaded.Hash() != m.Hash() || loaded.Applied() != 2 {
		t.Fatal("loaded state differs")
	}
	if p, err := s.Payload(1); err != nil || string(p) != "one" {
		t.Fatalf("payload %q, %v", p, err)
	}
	if p, err := s.Payload(2); err != nil || len(p) != 0 {
		t.Fatalf("empty payload %q, %v", p, err)
	}
	if _, err := s.Payload(3); !errors.Is(err, ErrNotFound) {
		t.Fatalf("missing payload: %v", err)
	}
}

func TestSnapshotIsOfItsMomentAndRestores(t *testing.T) {
	t.Parallel()
	s, m := open(t), fsm.New()
	accept(t, m, s, 1, "one")
	want := m.Hash()
	snapshot, err := s.Snapshot(Replica)
	if err != nil {
		t.Fatal(err)
	}
	accept(t, m, s, 2, "two")
	var b bytes.Buffer
	if _, err := snapshot.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if snapshot.Index() != 1 {
		t.Fatalf("index %d", snapshot.Index())
	}
	snapshot.Release()

	other, otherMachine := open(t), fsm.New()
	accept(t, otherMachine, other, 7, "gone after the restore")
	if err := receive(other, &b, 0); err != nil {
		t.Fatal(err)
	}
	if err := other.Adopt(); err != nil {
		t.Fatal(err)
	}
	if got := load(t, other); got.Hash() != want || got.Applied() != 1 {
		t.Fatal("restored state differs")
	}
	if p, err := other.Payload(1); err != nil || string(p) != "one" {
		t.Fatalf("payload %q, %v", p, err)
	}
	files, _ := filepath.Glob(filepath.Join(other.dir, "*"))
	if len(files) != 1 {
		t.Fatalf("files left: %v", files)
	}
	accept(t, load(t, other), other, 8, "goes on")
}

func TestDamagedSnapshotIsRefusedAndChangesNothing(t *testing.T) {
	t.Parallel()
	source, m := open(t), fsm.New()
	accept(t, m, source, 1, "one")
	good := snapshotOf(t, source)

	s, own := open(t), fsm.New()
	accept(t, own, s, 3, "own")
	for _, at := range []int{0, 7, 9, 17, 23, snapshotHeader, snapshotHeader + 4096, len(good) - 5, len(good) - 1} {
		damaged := bytes.Clone(good)
		damaged[at] ^= 1
		if err := receive(s, bytes.NewReader(damaged), 0); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	for _, cut := range []int{0, 5, snapshotHeader, len(good) / 2, len(good) - 1} {
		if err := receive(s, bytes.NewReader(good[:cut]), 0); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	if load(t, s).Hash() != own.Hash() {
		t.Fatal("state changed")
	}
}
