package raftnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
)

// markerFile says whose directory this is. The log store opens a missing or emptied file as an empty log without a word, and a
// blank voter under an old name can vote away what was committed (reliability.md §0.3).
const markerFile = "member"

// Why a data directory is refused.
var (
	ErrForeignDir = errors.New("the data directory is another node's")
	ErrLostLog    = errors.New("the data directory has lost its raft log")
)

// bootstrap writes the first configuration into a directory without state, the same one on every node, unless the node waits
// to be added to a cluster that is there.
func (n *Node) bootstrap(rc *raft.Config, snapshots raft.SnapshotStore) error {
	path := filepath.Join(n.config.Dir, markerFile)
	marker, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading the member marker: %w", err)
	}
	marked := strings.TrimSpace(string(marker))
	if marked != "" && marked != n.config.Name {
		return fmt.Errorf("%s belongs to %q, this node is %q: %w", n.config.Dir, marked, n.config.Name, ErrForeignDir)
	}
	exists, err := raft.HasExistingState(n.logStore, n.logStore, snapshots)
	if err != nil {
		return fmt.Errorf("looking for state: %w", err)
	}
	if marked != "" && !exists {
		return fmt.Errorf("%s has no raft log although %q has run in it; restore it, or empty the directory if the other "+
			"nodes have everything: %w", n.config.Dir, marked, ErrLostLog)
	}
	if !exists && n.config.Join {
		n.unmarked = true // there is nothing yet that could be lost
		return nil
	}
	if !exists {
		if err := raft.BootstrapCluster(rc, n.logStore, n.logStore, snapshots, n.transport, configuration(n.config.Members)); err != nil {
			return fmt.Errorf("bootstrapping: %w", err)
		}
	}
	if marked == "" {
		if err := writeSynced(path, []byte(n.config.Name+"\n")); err != nil {
			return fmt.Errorf("writing the member marker: %w", err)
		}
	}
	return nil
}

// mark the directory of a node that joined, once it has anything.
func (n *Node) mark() {
	if n.applier.index.wait(n.life, 1) != nil {
		return
	}
	if err := writeSynced(filepath.Join(n.config.Dir, markerFile), []byte(n.config.Name+"\n")); err != nil {
		n.fail(fmt.Errorf("writing the member marker: %w", err))
	}
}

func writeSynced(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}
