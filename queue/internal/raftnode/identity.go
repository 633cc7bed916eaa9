package raftnode

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/slimfaas/slimfaas/queue/internal/guard"
)

// Why a data directory is refused.
var (
	ErrForeignDir = errors.New("the data directory is another node's")
	ErrLostLog    = errors.New("the data directory has lost its raft log")
	ErrOlderCopy  = errors.New("the data directory is an older copy")
)

// imprintKey is where the log's own file says which directory it belongs to, and to which start of it.
var imprintKey = []byte("slimfaas-directory")

type imprint struct {
	Directory string `json:"directory"`
	Epoch     uint64 `json:"epoch"`
}

// afterFirst is the first epoch of a directory that did not begin empty: a log at epoch 1 is taken for one that was just begun,
// should the marker be lost.
const afterFirst = 2

// howToRejoin ends every refusal of a directory.
func howToRejoin(cluster string) string {
	return "To give up what is in it and have this node filled by the others, run `queue rejoin " + idOrHint(cluster) +
		"` on it, or start it with an empty data directory and QUEUE_REJOIN set to that id (docs/reliability.md)"
}

// howToJoin ends the refusal of a node that the cluster does not know.
func howToJoin(name string) string {
	return "The cluster has no member " + name + ": to add this node under a name that was never used, start it with QUEUE_JOIN=true " +
		"and an empty data directory, and run `queue add` at a member (docs/operations.md)"
}

func idOrHint(cluster string) string {
	if cluster == "" {
		return "<installation id, as GET /cluster shows it>"
	}
	return cluster
}

func randomID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// identify finds out whose directory this is, and with it what this node may do in Raft.
func (n *Node) identify(rc *raft.Config) error {
	dir := n.config.Dir
	marker, marked, err := guard.ReadMarker(dir)
	if err != nil {
		return fmt.Errorf("%w. %s", err, howToRejoin(""))
	}
	stored, printed, err := n.guarded.imprint()
	if err != nil {
		return fmt.Errorf("%w. %s", err, howToRejoin(marker.Cluster))
	}
	exists, err := raft.HasExistingState(n.guarded, n.guarded, n.snapshots)
	if err != nil {
		return fmt.Errorf("looking for state: %w. %s", err, howToRejoin(marker.Cluster))
	}
	refuse := func(err error) error {
		return fmt.Errorf("%s: %w. %s", dir, err, howToRejoin(marker.Cluster))
	}
	switch {
	case marked && marker.Node != n.config.Name:
		return fmt.Errorf("%s belongs to %q, this node is %q: give each node its own directory back: %w", dir, marker.Node, n.config.Name, ErrForeignDir)
	case !marked && !exists:
		return n.begin(rc)
	case marked && marker.Joining && marker.Epoch == 0: // GiveUp wrote it
		n.become(joining)
		return n.mark(marker)
	}
	if err := mismatch(marker, marked, stored, printed); err != nil {
		return refuse(err)
	}
	if marked && !exists && !marker.Joining {
		return refuse(fmt.Errorf("the raft log is empty although %q has run in the directory: %w", marker.Node, ErrLostLog))
	}
	if err := n.snapshots.checkSeal(); err != nil {
		return refuse(err)
	}
	if n.peers.began.Commit, n.peers.began.Term, err = n.guarded.verify(n.snapshots); err != nil {
		return refuse(fmt.Errorf("reading the raft log: %w", err))
	}
	if term, err := n.guarded.GetUint64(keyCurrentTerm); err == nil {
		n.peers.began.Term = max(n.peers.began.Term, term)
	}
	marker.Node, marker.Epoch = n.config.Name, max(stored.Epoch, marker.Epoch)
	if stored.Directory != "" {
		marker.Directory = stored.Directory
	}
	switch {
	case marker.Added:
		n.become(added)
	case marker.Joining:
		n.become(joining)
	default:
		n.become(returning)
	}
	return n.mark(marker)
}

// mismatch says why marker and imprint are not of one directory, or not of one time. Nil: they agree, or the first start ended
// before it had written both.
func mismatch(marker guard.Marker, marked bool, stored imprint, printed bool) error {
	switch {
	case !marked && printed && stored.Epoch > 1:
		return fmt.Errorf("there is a raft log and no member marker: %w", ErrLostLog)
	case !marked:
		return nil
	case !printed:
		return fmt.Errorf("there is no raft log although %q has run in the directory: %w", marker.Node, ErrLostLog)
	case stored.Directory != marker.Directory:
		return fmt.Errorf("the raft log is of another directory than the member marker: %w", ErrForeignDir)
	case stored.Epoch != marker.Epoch && stored.Epoch != marker.Epoch+1:
		return fmt.Errorf("the raft log is of start %d, the member marker of start %d: %w", stored.Epoch, marker.Epoch, ErrOlderCopy)
	}
	return nil
}

// begin on an empty directory: to be filled when an operator says so; to be added where there is a cluster; alone at once; else
// the others are asked first.
func (n *Node) begin(rc *raft.Config) error {
	switch {
	case n.config.Rejoin != "":
		n.log.Warn("the data directory is empty, and this node was told to rejoin: the leader fills it", "cluster", n.config.Rejoin)
		n.become(joining)
		return n.mark(guard.Marker{Node: n.config.Name, Cluster: n.config.Rejoin, Joining: true})
	case n.config.Join:
		n.become(newcomer) // nothing is written: there is nothing yet that could be lost
	case len(n.config.Members) == 1:
		if err := raft.BootstrapCluster(rc, n.guarded, n.guarded, n.snapshots, n.transport, configuration(n.config.Members)); err != nil {
			return fmt.Errorf("bootstrapping: %w", err)
		}
		n.become(returning)
		return n.mark(guard.Marker{Node: n.config.Name})
	default:
		n.become(blank)
	}
	return nil
}

// become something at the start. While the leader fills a directory, what the others remember of an earlier one is no reproach.
func (n *Node) become(s standing) {
	if s == joining || s == added {
		n.peers.began = claim{Term: math.MaxUint64, Commit: math.MaxUint64}
	}
	n.gate.become(s)
}

// found the cluster: write the fixed configuration, as every other node does, into the empty log.
func (n *Node) found() error {
	err := n.raft.BootstrapCluster(configuration(n.config.Members)).Error()
	if err != nil && !errors.Is(err, raft.ErrRaftShutdown) {
		return fmt.Errorf("bootstrapping: %w", err)
	}
	if err := n.mark(guard.Marker{Node: n.config.Name}); err != nil {
		return err
	}
	n.gate.become(returning)
	return nil
}

// enter the cluster as a node that is new in it.
func (n *Node) enter(cluster string) error {
	if err := n.mark(guard.Marker{Node: n.config.Name, Cluster: cluster, Joining: true, Added: true}); err != nil {
		return err
	}
	n.become(added)
	return nil
}

// joined: this node has everything, and is a member as the others are.
func (n *Node) joined() error {
	if err := n.remark(func(m *guard.Marker) { m.Joining, m.Added = false, false }); err != nil {
		return err
	}
	n.gate.become(member)
	return nil
}

// remark changes the marker within its epoch.
func (n *Node) remark(change func(*guard.Marker)) error {
	n.marking.Lock()
	defer n.marking.Unlock()
	marker := *n.marker.Load()
	change(&marker)
	if err := n.disk.Write(func() error { return guard.WriteMarker(n.config.Dir, marker) }); err != nil {
		return err
	}
	n.marker.Store(&marker)
	return nil
}

// learnCluster notes the installation id in the marker, once it is known, and refuses another one's state.
func (n *Node) learnCluster() {
	known, marked := n.cluster(), n.marker.Load()
	switch {
	case known == "" || marked.Epoch == 0 || known == marked.Cluster:
	case marked.Cluster != "":
		n.fail(fmt.Errorf("%s is of cluster %s and has the state of cluster %s: %w", n.config.Dir, marked.Cluster, known, ErrForeignDir))
	default:
		if err := n.remark(func(m *guard.Marker) { m.Cluster = known }); err != nil {
			n.log.Warn("the marker does not know its cluster yet", "err", err)
		}
	}
}

// mark the directory and the log's file with the next epoch, the file first.
func (n *Node) mark(marker guard.Marker) error {
	n.marking.Lock()
	defer n.marking.Unlock()
	if marker.Directory == "" {
		marker.Directory = randomID()
	}
	if marker.Epoch++; marker.Joining {
		marker.Epoch = max(marker.Epoch, afterFirst)
	}
	if err := n.guarded.print(marker); err != nil {
		return err
	}
	write := func() error { return guard.WriteMarker(n.config.Dir, marker) }
	if err := n.disk.Write(write); err != nil {
		return err
	}
	n.marker.Store(&marker)
	return nil
}

// renew makes what an operator has put into a directory a directory of its own: nothing that is kept of the one it came from
// fits it, and it has heard nothing from others yet.
func renew(dir string, log *guardedLog, marker guard.Marker) error {
	if err := os.RemoveAll(filepath.Join(dir, peersFile)); err != nil {
		return fmt.Errorf("forgetting the other nodes: %w", err)
	}
	marker.Directory, marker.Epoch = randomID(), afterFirst
	if err := log.print(marker); err != nil {
		return err
	}
	return guard.WriteMarker(dir, marker)
}

// print what the marker says into the log's file.
func (g *guardedLog) print(m guard.Marker) error {
	raw, err := json.Marshal(imprint{m.Directory, m.Epoch})
	if err != nil {
		return fmt.Errorf("encoding the log's imprint: %w", err)
	}
	if err := g.Set(imprintKey, raw); err != nil {
		return fmt.Errorf("writing the log's imprint: %w", err)
	}
	return nil
}

func (g *guardedLog) imprint() (i imprint, found bool, err error) {
	raw, err := g.Get(imprintKey)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return i, false, nil
	}
	if err != nil {
		return i, false, fmt.Errorf("reading the log's imprint: %w", err)
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		return i, false, fmt.Errorf("decoding the log's imprint: %w", err)
	}
	return i, true, nil
}

// startRaft starts Raft, which panics over a log that it cannot read.
func startRaft(c *raft.Config, a *applier, logs raft.LogStore, stable raft.StableStore, snapshots raft.SnapshotStore, g *gate) (r *raft.Raft, err error) {
	defer loudly(&err)()
	if r, err = raft.NewRaft(c, a, logs, stable, snapshots, g); err != nil {
		return nil, fmt.Errorf("starting raft: %w. %s", err, howToRejoin(""))
	}
	return r, nil
}

// loudly turns a panic of this goroutine, or a read outside of a mapped file, into an error. Deferred as `defer loudly(&err)()`.
func loudly(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = fmt.Errorf("reading the raft log: %v: %w. %s", p, ErrDamaged, howToRejoin(""))
		}
	}
}
