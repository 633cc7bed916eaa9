package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// Parts can be read one by one, from memory and from the file; they go with their call, and their space is used again.
func TestPartsOfABody(t *testing.T) {
	t.Parallel()
	s, m := open(t), fsm.New()
	index := uint64(0)
	commit := func(commands ...command.Command) {
		t.Helper()
		index++
		results, _, ops := m.Apply(index, command.Batch{NowUnixMs: 1, Commands: commands})
		for i, r := range results {
			if r.Code != fsm.OK {
				t.Fatalf("command %d: %+v", i, r)
			}
		}
		if err := s.Commit(index, ops); err != nil {
			t.Fatal(err)
		}
	}
	const parts, size = 40, 256 << 10 // more than a layer
	part := func(n int) []byte { return bytes.Repeat([]byte{byte(n + 1)}, size) }
	id := command.ID{1}
	commit(command.OpenSession{Name: "edge-0", Incarnation: "i", Kind: 1})
	for n := range parts {
		commit(command.PutPart{ID: id, Session: 1, Number: uint32(n), Data: part(n)})
	}
	commit(command.Accept{ID: id, Function: "f", Payload: []byte("head"), Body: command.Body{Parts: parts, Size: parts * size}})
	check := func(m *fsm.Machine) {
		t.Helper()
		c, _ := m.Call(id)
		for n := range parts {
			if got, err := s.Part(c.Body.Place, uint32(n)); err != nil || !bytes.Equal(got, part(n)) {
				t.Fatalf("part %d: %d bytes, %v", n, len(got), err)
			}
		}
		if head, err := s.Payload(c.Seq); err != nil || string(head) != "head" {
			t.Fatalf("head %q, %v", head, err)
		}
	}
	check(m)
	loaded := load(t, s)
	check(loaded)
	if loaded.Hash() != m.Hash() {
		t.Error("loaded state differs")
	}
	c, _ := m.Call(id)
	commit(command.Cancel{ID: id})
	gone := func() {
		t.Helper()
		if _, err := s.Part(c.Body.Place, parts-1); !errors.Is(err, ErrNotFound) {
			t.Errorf("a part of a call that is over: %v", err)
		}
	}
	gone()
	if err := s.Flush(index); err != nil {
		t.Fatal(err)
	}
	gone()
	if file, free := s.Space(); free < parts*size || free > file {
		t.Errorf("%d bytes of %d are free", free, file)
	}
}
