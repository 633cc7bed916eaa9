package raftnode

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
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

// howToRejoin ends every refusal of a directory.
func howToRejoin(cluster string) string {
	if cluster == "" {
		cluster = "<installation id, as GET /cluster shows it>"
	}
	return "To give up what is in it and have this node filled by the others, run `queue rejoin " + cluster +
		"` on it, or start it with an empty data directory and QUEUE_REJOIN set to that id (docs/reliability.md)"
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
	stored, printed, err := n.imprint()
	if err != nil {
		return fmt.Errorf("%w. %s", err, howToRejoin(marker.Cluster))
	}
	exists, err := raft.HasExistingState(n.guarded, n.guarded, n.snapshots)
	if err != nil {
		return fmt.Errorf("looking for state: %w. %s", err, howToRejoin(marker.Cluster))
	}
	refuse := func(err error, format string, args ...any) error {
		return fmt.Errorf("%s: %w. %s", fmt.Sprintf(format, args...), err, howToRejoin(marker.Cluster))
	}
	switch {
	case marked && marker.Node != n.config.Name:
		return fmt.Errorf("%s belongs to %q, this node is %q: give each node its own directory back: %w", dir, marker.Node, n.config.Name, ErrForeignDir)
	case !marked && printed && stored.Epoch > 1:
		return refuse(ErrLostLog, "%s has a raft log and no member marker", dir)
	case !marked && (printed || exists): // the first start ended before it had written both
	case !marked:
		return n.begin(rc)
	case marker.Joining && marker.Epoch == 0: // GiveUp wrote it
		n.join()
		return n.mark(marker)
	case !printed:
		return refuse(ErrLostLog, "%s has no raft log although %q has run in it", dir, marker.Node)
	case stored.Directory != marker.Directory:
		return refuse(ErrForeignDir, "the raft log in %s is of another directory than the member marker", dir)
	case stored.Epoch != marker.Epoch && stored.Epoch != marker.Epoch+1:
		return refuse(ErrOlderCopy, "the raft log in %s is of start %d, the member marker of start %d", dir, stored.Epoch, marker.Epoch)
	case !exists && !marker.Joining:
		return refuse(ErrLostLog, "%s has an empty raft log although %q has run in it", dir, marker.Node)
	}
	if err := n.snapshots.checkSeal(); err != nil {
		return fmt.Errorf("%w. %s", err, howToRejoin(marker.Cluster))
	}
	if n.peers.began.Commit, n.peers.began.Term, err = n.guarded.verify(n.snapshots); err != nil {
		return fmt.Errorf("reading the raft log: %w. %s", err, howToRejoin(marker.Cluster))
	}
	if term, err := n.guarded.GetUint64([]byte("CurrentTerm")); err == nil {
		n.peers.began.Term = max(n.peers.began.Term, term)
	}
	marker.Node, marker.Epoch = n.config.Name, max(stored.Epoch, marker.Epoch)
	if stored.Directory != "" {
		marker.Directory = stored.Directory
	}
	switch {
	case marker.Joining:
		n.join()
	case len(n.config.Members) == 1:
		n.gate.become(member)
	default:
		n.gate.become(returning)
	}
	return n.mark(marker)
}

// begin on an empty directory: alone at once; to be filled when an operator says so; else the others are asked first.
func (n *Node) begin(rc *raft.Config) error {
	switch {
	case len(n.config.Members) == 1:
		if err := raft.BootstrapCluster(rc, n.guarded, n.guarded, n.snapshots, n.transport, configuration(n.config.Members)); err != nil {
			return fmt.Errorf("bootstrapping: %w", err)
		}
		n.gate.become(member)
		return n.mark(guard.Marker{Node: n.config.Name})
	case n.config.Rejoin != "":
		n.log.Warn("the data directory is empty, and this node was told to rejoin: the leader fills it", "cluster", n.config.Rejoin)
		n.join()
		return n.mark(guard.Marker{Node: n.config.Name, Cluster: n.config.Rejoin, Joining: true})
	default:
		n.gate.become(blank)
		return nil
	}
}

// join: the others remember this node's lost life, and that is no reproach to this one.
func (n *Node) join() {
	n.peers.began = claim{Term: math.MaxUint64, Commit: math.MaxUint64}
	n.gate.become(joining)
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

// joined: this node has everything, and votes again.
func (n *Node) joined() error {
	if err := n.remark(func(m *guard.Marker) { m.Joining = false }); err != nil {
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
	if marker.Joining && marker.Epoch == 0 {
		marker.Epoch = 1 // a log at its first epoch is taken for one that was just begun, should the marker be lost
	}
	marker.Epoch++
	raw, err := json.Marshal(imprint{marker.Directory, marker.Epoch})
	if err != nil {
		return fmt.Errorf("encoding the log's imprint: %w", err)
	}
	if err := n.guarded.Set(imprintKey, raw); err != nil {
		return fmt.Errorf("writing the log's imprint: %w", err)
	}
	write := func() error { return guard.WriteMarker(n.config.Dir, marker) }
	if err := n.disk.Write(write); err != nil {
		return err
	}
	n.marker.Store(&marker)
	return nil
}

func (n *Node) imprint() (i imprint, found bool, err error) {
	raw, err := n.guarded.Get(imprintKey)
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

func configuration(members []Member) raft.Configuration {
	var c raft.Configuration
	for _, m := range members {
		c.Servers = append(c.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(m.Name), Address: raft.ServerAddress(m.RaftAddress),
		})
	}
	return c
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
