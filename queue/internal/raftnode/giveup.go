package raftnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/slimfaas/slimfaas/queue/internal/guard"
)

// GiveUp what a data directory holds and have its node filled by the leader at its next start. cluster is the installation id
// an operator typed; the marker of the directory, where it can be read, must agree. The node must not run.
func GiveUp(dir, name, cluster string) error {
	if cluster == "" {
		return errors.New("giving up a data directory: the installation id of the cluster is needed")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	marker, found, err := guard.ReadMarker(dir)
	switch {
	case errors.Is(err, guard.ErrMarker): // what is given up may be damaged
	case err != nil:
		return err
	case found && marker.Node != name:
		return fmt.Errorf("%s belongs to %q, this node is %q: %w", dir, marker.Node, name, ErrForeignDir)
	case found && marker.Cluster != "" && marker.Cluster != cluster:
		return fmt.Errorf("%s is of cluster %s: %w", dir, marker.Cluster, ErrForeignDir)
	}
	log := filepath.Join(dir, boltFile)
	if f, err := os.OpenFile(log, os.O_RDWR, 0); err == nil {
		locked := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		_ = f.Close() // and unlocked
		if locked != nil {
			return fmt.Errorf("%s is in use by a running node: stop it first: %w", log, locked)
		}
	}
	// The marker goes last: until then the directory is one that lost its log, and refused.
	for _, name := range []string{boltFile, segmentsDir, snapshotFile, snapshotFile + ".new", "snapshots", stateDir, peersFile} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("removing what is given up: %w", err)
		}
	}
	return guard.WriteMarker(dir, guard.Marker{Node: name, Cluster: cluster, Joining: true})
}
