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

// bootstrap writes the fixed configuration into a directory without state. Every node writes the same one.
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

func configuration(members []Member) raft.Configuration {
	var c raft.Configuration
	for _, m := range members {
		c.Servers = append(c.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(m.Name), Address: raft.ServerAddress(m.RaftAddress),
		})
	}
	return c
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
