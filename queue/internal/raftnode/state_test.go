package raftnode

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

func TestARestartBeginsWhereTheStateOnDiskIs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	for i := range uint64(20) {
		c.mustPropose(accept(i+1, []byte("payload")))
	}
	c.settle()
	var hash, applied uint64
	c.nodes[0].View(func(m *fsm.Machine) { hash, applied = m.Hash(), m.Applied() })
	for i := range c.nodes {
		c.kill(i)
	}
	alone := c.start(0) // and without the others nothing of the log can be applied
	alone.View(func(m *fsm.Machine) {
		if m.Hash() != hash || m.Applied() != applied {
			t.Fatalf("at %d, was at %d", m.Applied(), applied)
		}
	})
	if alone.Applied() != applied {
		t.Fatalf("says %d", alone.Applied())
	}
	if payload, err := alone.Payload(20); err != nil || string(payload) != "payload" {
		t.Fatalf("payload %q, %v", payload, err)
	}
	c.start(1)
	c.mustPropose(accept(21, nil))
}

func TestStateThatIsGoneAfterTheLogWasCutIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	for i := range uint64(20) {
		c.mustPropose(accept(i+1, nil))
	}
	dir := c.configs[0].Dir
	if err := c.nodes[0].snapshot(); err != nil {
		t.Fatal(err)
	}
	c.kill(0)
	kept := filepath.Join(dir, "kept")
	if err := os.Rename(filepath.Join(dir, "state"), kept); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c.configs[0]); !errors.Is(err, store.ErrLost) {
		t.Fatalf("without its state: %v", err)
	}
	record, err := os.ReadFile(filepath.Join(dir, snapshotFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "state")), os.Rename(kept, filepath.Join(dir, "state"))); err != nil {
		t.Fatal(err)
	}
	for at := range record {
		damaged := bytes.Clone(record)
		damaged[at] ^= 1
		if err := os.WriteFile(filepath.Join(dir, snapshotFile), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := openSnapshots(dir, nil); err == nil {
			t.Fatalf("flipped bit in byte %d: read as %+v", at, s.latest)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, snapshotFile), record, 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.mustPropose(accept(21, nil))
}

// What the log brings again after a start would not be the same the second time: a session's older incarnation ends the newer.
func TestEntriesThatTheStateHasAreNotAppliedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	for i := range 20 {
		if i == 10 {
			if err := c.nodes[0].snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		c.mustPropose([]command.Command{command.OpenSession{Name: "edge", Incarnation: string(rune('a' + i))}})
	}
	want := c.settle()
	c.kill(0)
	n := c.start(0)
	eventually(t, "office", n.InOffice) // all of the log is applied by then
	n.View(func(m *fsm.Machine) {
		if m.Hash() != want {
			t.Fatalf("another state: %+v", m.Sessions())
		}
	})
}

// The directory as kill -9 would leave it after a snapshot: the state must be no older than what the log was cut by.
func TestTheStateIsDurableBeforeTheLogIsCut(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) { config.TrailingBytes, config.PayloadLogBytes = 1, 1 })
	for i := range uint64(40) {
		c.mustPropose(accept(i+1, []byte("payload")))
	}
	if err := c.nodes[0].snapshot(); err != nil {
		t.Fatal(err)
	}
	first, err := c.nodes[0].logStore.FirstIndex()
	if err != nil || first < 10 {
		t.Fatalf("the log was not cut: begins at %d, %v", first, err)
	}
	left := filepath.Join(t.TempDir(), "left")
	if err := os.CopyFS(left, os.DirFS(c.configs[0].Dir)); err != nil {
		t.Fatal(err)
	}
	want := c.settle()
	c.kill(0)
	c.configs[0].Dir = left
	n := c.start(0)
	eventually(t, "office", n.InOffice)
	if c.settle() != want {
		t.Fatal("another state")
	}
}

func TestADamagedPayloadEndsTheNodeInsteadOfBeingServed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	payload := []byte("a payload that is easily found")
	c.mustPropose(accept(1, payload))
	c.kill(0)
	file := filepath.Join(c.configs[0].Dir, "state", "state.db")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content[bytes.Index(content, payload)] ^= 1
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	n := c.start(0)
	if got, err := n.Payload(1); !errors.Is(err, store.ErrDamaged) || got != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if err := <-n.Done(); !errors.Is(err, store.ErrDamaged) {
		t.Fatal(err)
	}
}

func TestAClusterIsRecoveredFromOneNodesStateAndLog(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	for i := range uint64(20) {
		if i == 10 {
			if err := c.nodes[0].snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		c.mustPropose(accept(i+1, bytes.Repeat([]byte{byte(i + 1)}, 1000)))
	}
	c.settle()
	for i := range c.nodes {
		c.kill(i)
	}
	// As the offline sub-command: node 0 is the whole cluster from now on.
	if _, err := Recover(c.configs[0].Dir, Member{}, c.configs[0].Log); err != nil {
		t.Fatal(err)
	}
	n := c.start(0)
	eventually(t, "office alone", n.InOffice)
	for i := range uint64(20) { // which lay in the log that is gone
		if payload, err := n.Payload(i + 1); err != nil || !bytes.Equal(payload, bytes.Repeat([]byte{byte(i + 1)}, 1000)) {
			t.Fatalf("payload %d: %q: %v", i+1, payload, err)
		}
	}
	for i := range uint64(20) {
		n.View(func(m *fsm.Machine) {
			if _, ok := m.Call(idOf(i + 1)); !ok {
				t.Fatalf("call %d is lost", i+1)
			}
		})
	}
	if _, _, err := n.Propose(t.Context(), accept(21, nil)); err != nil {
		t.Fatal(err)
	}
}

func TestHashesAreEqualAtEqualIndex(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	for i := range uint64(30) {
		c.mustPropose(accept(i+1, []byte("payload")))
	}
	c.settle()
	last := c.nodes[0].Applied()
	seen := map[uint64]bool{}
	for index := uint64(10); index <= last; index++ {
		want, ok := c.nodes[0].HashAt(index)
		if !ok {
			t.Fatalf("hash at %d is not known", index)
		}
		seen[want] = true
		for i, n := range c.nodes {
			if got, ok := n.HashAt(index); !ok || got != want {
				t.Fatalf("node %d at %d: %x, %t, want %x", i, index, got, ok, want)
			}
		}
	}
	if len(seen) < 20 {
		t.Fatalf("%d different hashes of %d entries", len(seen), last)
	}
	if _, ok := c.nodes[0].HashAt(last + 100); ok {
		t.Fatal("the hash of the future is known")
	}
}
