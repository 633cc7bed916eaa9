// Package raftnode runs the state machine of a queue node under hashicorp/raft: log, snapshots, leadership, one batcher for
// the commands of everybody, linearizable reads. The only package that imports hashicorp/raft.
package raftnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/queue/internal/store"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// House values, in tests too.
const (
	// raftTimeout is heartbeat, election and lease: a dead leader is replaced in about a second.
	raftTimeout = 500 * time.Millisecond
	// ioTimeout of one RPC between nodes.
	ioTimeout = 5 * time.Second
	// maxAppendEntries is what the library puts into one append message, for it has no limit in bytes: 16 of command.MaxEntry are
	// 18 MiB. The gate adds more as long as they are small.
	maxAppendEntries = 16
	// logCacheEntries in memory, of at most 512 KiB each (rarely more).
	logCacheEntries = 32
	// connectionsPerPeer kept open.
	connectionsPerPeer = 3
	// stopTimeout bounds each step of Stop whatever its context says.
	stopTimeout = 5 * time.Second
)

// Config of a node.
type Config struct {
	Name string
	// Members of a first start, the same list on every node, this one included. Later the log says who is a member, and this
	// where those are that it lists.
	Members []Member
	// Join: a directory without state does not begin a cluster, it waits until it is added to one.
	Join bool
	// ListenAddress for the other nodes, host:port.
	ListenAddress string
	// TLS between the nodes; nil: unencrypted. Each shows a certificate that carries its name.
	TLS *tlsconf.Files
	// Dir holds log, snapshots and state; made if absent, one process at a time.
	Dir string
	Log *slog.Logger
	// LogKind is where entries are kept; empty: segments.
	LogKind LogKind
	// Clock stamps proposals; nil: time.Now.
	Clock func() time.Time

	// SnapshotBytes of log after which a snapshot is made; 0: 64 MiB. It is by reference: the state is flushed, the log cut.
	SnapshotBytes int64
	// SnapshotEntries of log after which a snapshot is made however small they are; 0: 32,768.
	SnapshotEntries int
	// TrailingBytes of log kept behind a snapshot, so that a node that was away a moment needs none; 0: 64 MiB.
	TrailingBytes int64
	// PayloadLogBytes of log kept behind a snapshot while payloads of calls are in it that are not finished, and no more than four
	// times what these are; 0: 2 GiB, or a quarter of the disk where that is less.
	PayloadLogBytes int64

	// WriteTimeout is how long one write may take before a leader goes silent, so that another is elected; 0: 3 s.
	WriteTimeout time.Duration
	// Disk limits; zero: refuse at 85 %, hand over at 90 %, a ballast of 64 MiB.
	Disk guard.Limits
	// Rejoin is the installation id of the cluster that fills an empty directory; empty: an empty directory is refused where
	// there is a cluster already.
	Rejoin string

	// Of tests: faults of the disk.
	stat func(dir string) (guard.Space, error)
	file func(logFile) logFile
}

// Node is one member. Its methods may be called from any goroutine until Stop has returned.
type Node struct {
	config    Config
	log       *slog.Logger
	raft      *raft.Raft
	transport *raft.NetworkTransport
	logStore  *diskLog
	counted   *countedLog // on guarded
	store     *store.Store
	guarded   *guardedLog
	snapshots *snapshots
	disk      *guard.Disk
	watch     *guard.Watch
	gate      *gate
	peers     *peers
	lifeID    string // random, of this Open
	marker    atomic.Pointer[guard.Marker]
	marking   sync.Mutex // held while the marker is changed
	where     *addresses
	applier   *applier
	batcher   *batcher
	office    *office
	changing  sync.Mutex // held while the membership is being changed, I/O included: one change at a time

	done     chan error // buffered: one failure
	failOnce sync.Once
	// life ends first thing in Stop; background is what Stop waits for.
	life       context.Context
	endLife    context.CancelFunc
	background sync.WaitGroup
	stopOnce   sync.Once
	stopErr    error
}

// Open starts the node: the state on disk, then the log above it as far as the cluster has committed it. A directory without state
// begins the cluster of the configuration together with the others, or waits to be added to one; one that lost its log is refused.
func Open(config Config) (_ *Node, err error) {
	config, err = config.complete()
	if err != nil {
		return nil, err
	}
	n := &Node{config: config, log: config.Log, done: make(chan error, 1), lifeID: randomID()}
	n.marker.Store(&guard.Marker{})
	// Not a child of any caller's context: the node's life ends with Stop, which has work to do in it.
	n.life, n.endLife = context.WithCancel(context.Background())
	var opened []func() error
	defer func() {
		if err == nil {
			return
		}
		n.endLife()
		for i := len(opened) - 1; i >= 0; i-- {
			err = errors.Join(err, opened[i]())
		}
	}()

	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the data directory: %w", err)
	}
	if n.disk, err = guard.NewDisk(config.Dir, config.Disk, config.stat, config.Log); err != nil {
		return nil, fmt.Errorf("looking at the disk: %w", err)
	}
	if n.config.PayloadLogBytes == 0 {
		n.config.PayloadLogBytes = min(payloadLogBytes, n.disk.Space().Total/payloadLogShare)
	}
	n.watch = guard.NewWatch(writeSlots)
	if n.logStore, err = openLog(config.Dir, config.LogKind); err != nil {
		return nil, fmt.Errorf("%w. %s", err, howToRejoin(""))
	}
	opened = append(opened, n.logStore.Close)
	file := logFile(n.logStore)
	if config.file != nil {
		file = config.file(file)
	}
	n.guarded = &guardedLog{file: file, disk: n.disk, watch: n.watch, damaged: n.fail}
	if n.snapshots, err = openSnapshots(config.Dir, n.guarded); err != nil {
		return nil, fmt.Errorf("%w. %s", err, howToRejoin(""))
	}
	if n.store, err = store.Open(filepath.Join(config.Dir, stateDir), n.snapshots.index(), n.logStore.payloads()); err != nil {
		return nil, fmt.Errorf("opening the store: %w. %s", err, howToRejoin(""))
	}
	opened = append(opened, n.store.Close)
	n.snapshots.store = n.store
	n.guarded.cutting = n.cutting
	if n.applier, err = newApplier(n.store, config.Log, n.fail); err != nil {
		return nil, fmt.Errorf("%w. %s", err, howToRejoin(""))
	}

	logger := hclogger(config.Log)
	n.where = &addresses{listed: config.Members}
	stream, err := newStream(n.life, config, n.where)
	if err != nil {
		return nil, err
	}
	n.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: n.where,
		Logger:                logger,
		Stream:                stream,
		MaxPool:               connectionsPerPeer,
		Timeout:               ioTimeout,
	})
	opened = append(opened, n.transport.Close)
	n.gate = newGate(n, n.transport)

	notify := make(chan bool, 16)
	rc := raftConfig(config.Name, logger)
	rc.NotifyCh = notify

	n.peers = newPeers(n)
	if err := n.identify(rc); err != nil {
		return nil, err
	}
	n.counted = &countedLog{LogStore: n.guarded, fsyncs: n.logStore.fsyncs}
	cache, err := raft.NewLogCache(logCacheEntries, n.counted)
	if err != nil {
		return nil, fmt.Errorf("making the log cache: %w", err)
	}
	n.gate.log = cache
	if n.raft, err = startRaft(rc, n.applier, cache, n.guarded, n.snapshots, n.gate); err != nil {
		return nil, err
	}
	n.where.raft.Store(n.raft)
	n.peers.know(n.peers.others())
	n.batcher = newBatcher(n)
	n.office = newOffice(n)
	n.background.Go(func() { n.gate.pass(n.life) })
	n.background.Go(func() { n.peers.rise(n.life) })
	n.background.Go(func() { n.peers.keep(n.life) })
	n.background.Go(func() { n.peers.meet(n.life) })
	n.background.Go(n.watchWrites)
	n.background.Go(n.watchDisk)
	n.background.Go(func() { n.office.watch(notify) })
	n.background.Go(n.keepSnapshots)
	for range batchesInFlight {
		n.background.Go(n.batcher.work)
	}
	return n, nil
}

// raftConfig is the house's.
func raftConfig(name string, logger hclog.Logger) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(name)
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = raftTimeout, raftTimeout, raftTimeout
	rc.MaxAppendEntries = maxAppendEntries
	rc.SnapshotThreshold = math.MaxUint64 // the keeper decides, by bytes
	rc.TrailingLogs = uint64(ringSize)
	rc.NoSnapshotRestoreOnStart = true // the store is at the snapshot's index or later
	rc.Logger = logger
	rc.NoLegacyTelemetry = true
	rc.ShutdownOnRemove = false // a node that was removed stays, says so, and waits to be stopped (docs/adr/0011-membership.md)
	return rc
}

func (c Config) complete() (Config, error) {
	if c.Log == nil {
		return c, errors.New("no logger given")
	}
	if c.LogKind == "" {
		c.LogKind = LogSegments
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 64 << 20
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = 32 << 10
	}
	if c.TrailingBytes == 0 {
		c.TrailingBytes = 64 << 20
	}
	if c.WriteTimeout == 0 {
		c.WriteTimeout = 3 * time.Second
	}
	if c.stat == nil {
		c.stat = guard.Stat
	}
	if c.Disk == (guard.Limits{}) {
		c.Disk = guard.Limits{Refuse: 85, HandOver: 90, Ballast: 64 << 20}
	}
	if err := c.Disk.Validate(); err != nil {
		return c, err
	}
	if _, ok := c.member(c.Name); !ok {
		return c, fmt.Errorf("node %q is not among its members", c.Name)
	}
	return c, nil
}

func (c Config) member(name string) (Member, bool) {
	for _, m := range c.Members {
		if m.Name == name {
			return m, true
		}
	}
	return Member{}, false
}

// Done gives the error of a node that cannot go on: an entry it cannot read, a panic in apply, a store that does not write.
// The program must stop; nothing more is applied.
func (n *Node) Done() <-chan error { return n.done }

func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.log.Error("queue node cannot go on", "err", err)
		n.done <- err
	})
}

// Transfer hands leadership to another member, if this node has it. Nil when it does not lead any more.
func (n *Node) Transfer(ctx context.Context) error {
	if n.voters() == 1 || n.raft.State() != raft.Leader {
		return nil
	}
	answer := make(chan error, 1)
	n.background.Go(func() { answer <- n.raft.LeadershipTransfer().Error() })
	select {
	case err := <-answer:
		if err != nil && n.raft.State() == raft.Leader {
			return fmt.Errorf("handing over leadership: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("handing over leadership: %w", ctx.Err())
	}
}

// Stop refuses new proposals, waits for those under way, hands leadership over, ends what OnLeading started and closes the
// files. ctx bounds the waiting, not the closing. A second call returns what the first did.
func (n *Node) Stop(ctx context.Context) error {
	n.stopOnce.Do(func() { n.stopErr = n.stop(ctx) })
	return n.stopErr
}

func (n *Node) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	n.batcher.close(ctx)
	transferErr := n.Transfer(ctx)
	if transferErr != nil {
		n.log.Warn("stopping without a hand-over", "err", transferErr)
	}
	n.office.end()
	n.endLife()
	n.store.Hurry()
	err := n.raft.Shutdown().Error()
	n.batcher.abandon()
	n.background.Wait()
	n.peers.save()
	return errors.Join(err, n.transport.Close(), n.store.Close(), n.logStore.Close())
}

// View runs a function on the state, which does not move meanwhile. It must be short and keep nothing of the machine.
func (n *Node) View(read func(*fsm.Machine)) { n.applier.view(read) }

// Payload of the call at this place. store.ErrNotFound when it is gone.
func (n *Node) Payload(seq uint64) ([]byte, error) { return n.applier.payload(seq) }

// StateSize is the state's file and what of it is free, in bytes.
func (n *Node) StateSize() (file, free int64) { return n.applier.store.Space() }

// PayloadsInLog are the bytes of payloads that lie in the log only.
func (n *Node) PayloadsInLog() int64 { return n.applier.store.InLog() }

// Part of the body at this place. store.ErrNotFound when it is gone.
func (n *Node) Part(place uint64, number uint32) ([]byte, error) {
	return n.applier.part(place, number)
}

// OnChange adds a function that is called after every applied entry, in order, with the entry's index and what it changed.
// State and payloads are readable by then. It runs in the apply goroutine: it must not block or propose. Nil changes at an
// index mean that the whole state was replaced by a snapshot.
func (n *Node) OnChange(f func(index uint64, changes []fsm.Change)) { n.applier.onChange(f) }

// OnLeading adds a function that is called in its own goroutine each time this node takes office: it leads, and has applied
// everything committed before. Its context ends with the leadership. The next term, and Stop, wait until it has returned.
func (n *Node) OnLeading(f func(ctx context.Context)) { n.office.add(f) }
