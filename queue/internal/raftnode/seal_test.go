package raftnode

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A record that is whole and of this node may still not be the one the log was cut by.
func TestASnapshotsRecordIsTheOneTheLogWasCutBy(t *testing.T) {
	t.Parallel()
	for _, kind := range []LogKind{LogSegments, LogBolt} {
		c := newCluster(t, 1, func(config *Config) { config.LogKind = kind })
		record := filepath.Join(c.configs[0].Dir, snapshotFile)
		var kept [2][]byte
		for i := range kept {
			for j := range uint64(20) {
				c.mustPropose(accept(100*uint64(i)+j+1, nil))
			}
			if err := c.nodes[0].snapshot(); err != nil {
				t.Fatal(err)
			}
			var err error
			if kept[i], err = os.ReadFile(record); err != nil {
				t.Fatal(err)
			}
		}
		c.kill(0)
		refused := func(what string) {
			t.Helper()
			n, err := Open(c.configs[0])
			if err == nil {
				_ = n.Stop(t.Context())
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "queue rejoin ") {
				t.Errorf("%s, %s: %v", kind, what, err)
			}
		}
		if err := os.WriteFile(record, kept[0], 0o600); err != nil {
			t.Fatal(err)
		}
		refused("an older record")
		if err := os.Remove(record); err != nil {
			t.Fatal(err)
		}
		refused("no record")
		if err := os.WriteFile(record, kept[1], 0o600); err != nil {
			t.Fatal(err)
		}
		c.start(0)
		c.mustPropose(accept(1000, nil))
	}
}

// The power may go between any two of the three writes.
func TestASnapshotIsWholeWhereverItsWritingEnds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.mustPropose(accept(1, nil))
	n := c.nodes[0]
	if err := n.snapshot(); err != nil {
		t.Fatal(err)
	}
	older := *n.snapshots.latest
	newer := older
	newer.ID, newer.Index = "newer", older.Index+1
	found := &snapshots{log: n.guarded}
	for _, s := range []seals{{sealOf(&older), sealOf(&newer)}, {nil, sealOf(&older)}, {sealOf(&older), nil}} {
		if err := n.guarded.seal(s); err != nil {
			t.Fatal(err)
		}
		found.latest = &older
		if err := found.checkSeal(); err != nil {
			t.Errorf("the older one: %v", err)
		}
		if s.Next.is(sealOf(&newer)) {
			found.latest = &newer
			if err := found.checkSeal(); err != nil {
				t.Errorf("the newer one: %v", err)
			}
		}
		if s.Newest == nil {
			found.latest = nil
			if err := found.checkSeal(); err != nil {
				t.Errorf("before the first: %v", err)
			}
		}
	}
}
