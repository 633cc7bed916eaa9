package raftnode

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

// The log is kept for the payloads in it, over a crash, too; when most of its calls have ended it is cut, and what is left of it moves.
func TestTheLogIsKeptForThePayloadsInIt(t *testing.T) {
	t.Parallel()
	const calls, size = 40, 100 << 10
	c := newCluster(t, 1, func(config *Config) { config.TrailingBytes, config.PayloadLogBytes = 64<<10, 64<<20 })
	payload := func(i uint64) []byte { return bytes.Repeat([]byte{byte(i)}, size) }
	for i := range uint64(calls) {
		c.mustPropose(accept(i+1, payload(i+1)))
	}
	check := func(n *Node, seqs ...uint64) {
		t.Helper()
		for _, seq := range seqs {
			if got, err := n.Payload(seq); err != nil || !bytes.Equal(got, payload(seq)) {
				t.Fatalf("payload %d: %d bytes: %v", seq, len(got), err)
			}
		}
	}
	n := c.nodes[0]
	if err := n.snapshot(); err != nil {
		t.Fatal(err)
	}
	first, referred, err := n.store.Referenced()
	if begins, _ := n.logStore.FirstIndex(); err != nil || referred != calls*size || begins != first {
		t.Fatalf("%d bytes are referred to from entry %d on, the log begins at %d: %v", referred, first, begins, err)
	}
	if file, _ := n.StateSize(); file > calls*size {
		t.Errorf("the state takes %d bytes, too", file)
	}
	all := make([]uint64, calls)
	for i := range all {
		all[i] = uint64(i) + 1
	}
	check(n, all...)

	left := filepath.Join(t.TempDir(), "left")
	if err := os.CopyFS(left, os.DirFS(c.configs[0].Dir)); err != nil {
		t.Fatal(err)
	}
	c.kill(0)
	c.configs[0].Dir = left // as kill -9 would leave it
	n = c.start(0)
	eventually(t, "office", n.InOffice)
	check(n, all...)

	for i := range uint64(calls) {
		if i+1 != 1 && i+1 != calls {
			c.mustPropose([]command.Command{command.Cancel{ID: idOf(i + 1)}})
		}
	}
	if err := n.snapshot(); err != nil {
		t.Fatal(err)
	}
	if begins, err := n.logStore.FirstIndex(); err != nil || begins < first+calls/2 {
		t.Errorf("the log is kept from entry %d on for two payloads: %v", begins, err)
	}
	if _, referred, err := n.store.Referenced(); err != nil || referred > size {
		t.Errorf("%d bytes are referred to: %v", referred, err)
	}
	check(n, 1, calls)
}

func TestADamagedPayloadInTheLogEndsTheNodeWhenItIsToMove(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) { config.TrailingBytes, config.PayloadLogBytes = 1, 1 })
	payload := bytes.Repeat([]byte("a payload that is easily found "), 10)
	c.mustPropose(accept(1, payload))
	for i := range uint64(40) { // so that the log is cut
		c.mustPropose(accept(i+2, nil))
	}
	n := c.nodes[0]
	files, err := filepath.Glob(filepath.Join(c.configs[0].Dir, segmentsDir, "*.log"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("b"), int64(bytes.Index(content, payload))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.snapshot(); err == nil { // raft does not wrap it
		t.Error("the log was cut behind a payload that is damaged")
	}
	if err := <-n.Done(); !errors.Is(err, store.ErrDamaged) {
		t.Error(err)
	}
}
