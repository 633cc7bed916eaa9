package raftnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/testkit"
)

// cluster of nodes in this process, on loopback, each with its own directory.
type cluster struct {
	t       testing.TB
	configs []Config
	nodes   []*Node // nil: down
}

func newCluster(t testing.TB, size int, adjust func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, nodes: make([]*Node, size)}
	var members []Member
	for i, address := range testkit.FreeAddresses(t, size) { // none of which a node of another test had, and another's leader calls
		members = append(members, Member{Name: fmt.Sprintf("queue-%d", i), RaftAddress: address})
	}
	log := testLog(t)
	dir := t.TempDir()
	for i := range size {
		config := Config{
			Name: members[i].Name, Members: members, ListenAddress: members[i].RaftAddress,
			Dir: filepath.Join(dir, members[i].Name), Log: log,
		}
		if adjust != nil {
			adjust(&config)
		}
		c.configs = append(c.configs, config)
	}
	for i := range size {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.kill(i)
		}
	})
	return c
}

// testLog is shown if the test fails, or all of it at once with TEST_LOG.
func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("TEST_LOG") != "" {
		return verboseLog()
	}
	return testkit.Log(t)
}

func verboseLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (c *cluster) start(i int) *Node {
	c.t.Helper()
	n, err := Open(c.configs[i])
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i] = n
	return n
}

// kill ends a node without a hand-over, as a crash would; what it has not fsynced stays in the page cache, though.
func (c *cluster) kill(i int) {
	n := c.nodes[i]
	if n == nil {
		return
	}
	c.nodes[i] = nil
	n.stopOnce.Do(func() {
		n.endLife()
		n.stopErr = n.raft.Shutdown().Error()
		n.batcher.abandon()
		n.background.Wait()
		_ = n.transport.Close()
		_ = n.store.Close()
		_ = n.logStore.Close()
	})
}

func (c *cluster) leader() int {
	c.t.Helper()
	found := -1
	eventually(c.t, "a leader in office", func() bool {
		for i, n := range c.nodes {
			if n != nil && n.InOffice() {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

// settle waits until all nodes that are up have applied the same, and gives the hash of it.
func (c *cluster) settle() (hash uint64) {
	c.t.Helper()
	eventually(c.t, "equal states on all nodes", func() bool {
		var hashes []uint64
		for _, n := range c.nodes {
			if n != nil {
				n.View(func(m *fsm.Machine) { hashes = append(hashes, m.Hash()) })
			}
		}
		hash = hashes[0]
		for _, h := range hashes {
			if h != hash {
				return false
			}
		}
		return true
	})
	return hash
}

// eventually polls: raft's own timers are real.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 20 s", what)
		}
	}
}

func idOf(n uint64) (id command.ID) {
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func accept(n uint64, payload []byte) []command.Command {
	return []command.Command{command.Accept{ID: idOf(n), Function: "f", Payload: payload}}
}

// mustPropose to the leader, whoever it is; for set-up only.
func (c *cluster) mustPropose(commands []command.Command) []fsm.Result {
	c.t.Helper()
	var results []fsm.Result
	eventually(c.t, "accepted proposal", func() bool {
		r, _, err := c.nodes[c.leader()].Propose(context.Background(), commands)
		if err != nil && !isNotHandedOver(err) && !errors.Is(err, ErrUnknown) { // unknown: the ids are the same, it may be repeated
			c.t.Fatal(err)
		}
		results = r
		return err == nil
	})
	return results
}

func isNotHandedOver(err error) bool {
	var notLeader ErrNotLeader
	return errors.As(err, &notLeader) || errors.Is(err, ErrBusy) || errors.Is(err, ErrStopped)
}
