package raftnode

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

// Why a directory is not worked on.
var (
	ErrNoState  = errors.New("the data directory holds no raft log")
	ErrHasState = errors.New("the data directory is not empty")
)

// Names that raft keeps its term and vote under.
var (
	keyCurrentTerm  = []byte("CurrentTerm")
	keyLastVoteTerm = []byte("LastVoteTerm")
	keyLastVoteCand = []byte("LastVoteCand")
)

// Report on a data directory that no node uses.
type Report struct {
	Name                       string // of the node whose directory it is; empty: not marked yet
	Term                       uint64
	VotedTerm                  uint64
	VotedFor                   string
	FirstLog, LastLog, LogTerm uint64         // of the log, 0 when it is empty; the term is the last entry's
	LogFileBytes               int64          // of all its files
	LogPayloadBytes            int64          // of payloads that lie in the log only
	Snapshots                  []SnapshotInfo // the newest one, if any: by reference, of the state on disk
	Members                    []Member       // as the newest membership entry or snapshot says, committed or not
	MembersIndex               uint64
	// State after the last entry of the log. The last entries may not be committed.
	State *fsm.Machine
	// StateIndex is the last entry in State.
	StateIndex uint64
	// Problems that a node would refuse the directory for, and that it was being filled. State has what is before them.
	Problems []error
}

// SnapshotInfo is one snapshot on disk.
type SnapshotInfo struct {
	ID          string
	Index, Term uint64
	Size        int64 // in bytes
}

// Inspect reads a copy of a data directory, for opening one repairs what a crash has left. scratch is an empty directory for it.
func Inspect(dir, scratch string, log *slog.Logger) (r *Report, err error) {
	if err := duplicate(dir, scratch); err != nil {
		return nil, err
	}
	d, err := openOffline(scratch, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	r = &Report{Name: d.marker.Node, Problems: d.problems()}
	if r.LogFileBytes, err = logBytes(dir); err != nil {
		return nil, err
	}
	if err := r.tolerate(d.describe(r)); err != nil {
		return nil, err
	}
	return r, r.tolerate(d.replay(r))
}

// tolerate damage, which is a problem of the directory and no reason to say nothing of it.
func (r *Report) tolerate(err error) error {
	if errors.Is(err, ErrDamaged) {
		if !slices.ContainsFunc(r.Problems, func(p error) bool { return p.Error() == err.Error() }) {
			r.Problems = append(r.Problems, err)
		}
		return nil
	}
	return err
}

// problems of who the directory belongs to.
func (d *offline) problems() (found []error) {
	add := func(err error) {
		if err != nil {
			found = append(found, err)
		}
	}
	add(d.unmarked)
	stored, printed, err := d.guarded.imprint()
	if add(err); err == nil && d.unmarked == nil {
		add(mismatch(d.marker, true, stored, printed))
	}
	if d.marker.Joining {
		add(errors.New("the leader was filling the directory: it may lack what was accepted"))
	}
	add(d.snapshots.checkSeal())
	return found
}

// duplicate what a node needs of a directory, which no node may use meanwhile.
func duplicate(dir, to string) (err error) {
	path := filepath.Join(dir, boltFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", dir, ErrNoState)
	}
	options := store.LogOptions()
	options.ReadOnly = true
	lock, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: options})
	if err != nil {
		return fmt.Errorf("opening the raft log (does a node run on %s?): %w", dir, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	for _, name := range []string{boltFile, guard.MarkerFile, snapshotFile, segmentsDir, stateDir} {
		if err := duplicateTree(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
			return fmt.Errorf("copying the data directory: %w", err)
		}
	}
	return nil
}

// duplicateTree copies a file, or a directory of files; nothing when it is not there.
func duplicateTree(from, to string) error {
	info, err := os.Stat(from)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return duplicateFile(from, to)
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if err := duplicateFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func duplicateFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

func logBytes(dir string) (sum int64, err error) {
	names := []string{filepath.Join(dir, boltFile)}
	segments, err := os.ReadDir(filepath.Join(dir, segmentsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("measuring the log: %w", err)
	}
	for _, e := range segments {
		names = append(names, filepath.Join(dir, segmentsDir, e.Name()))
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return 0, fmt.Errorf("measuring the log: %w", err)
		}
		sum += info.Size()
	}
	return sum, nil
}

// Recovered is what a node is after Recover.
type Recovered struct {
	Index, Term uint64 // of the last entry it kept
	Member      Member // the only one
}

// Recover makes the node of a data directory the only member of its cluster. The cluster's other nodes, and what only they
// had, are forgotten; entries of this node's log that no majority ever had become committed. self replaces the member's
// addresses unless it has none, and is who it is where the marker is lost. What is damaged is refused before anything is changed.
func Recover(dir string, self Member, log *slog.Logger) (out *Recovered, err error) {
	d, err := openOffline(dir, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.snapshots.checkSeal(); err != nil {
		return nil, err
	}
	if _, _, err := d.guarded.verify(d.snapshots); err != nil {
		return nil, fmt.Errorf("reading the raft log: %w", err)
	}
	var r Report
	if err := d.describe(&r); err != nil {
		return nil, err
	}
	only, err := survivor(d.marker.Node, self, r.Members)
	if err != nil {
		return nil, err
	}
	var failure error
	applier, err := newApplier(d.store, log, func(err error) { failure = err })
	if err != nil {
		return nil, err
	}
	machine := recovering{applier}
	if err := raft.RecoverCluster(raftConfig(only.Name, hclogger(log)), machine, d.guarded, d.guarded, d.snapshots, d.transport, configuration([]Member{only})); err != nil {
		return nil, fmt.Errorf("recovering: %w", errors.Join(err, failure))
	}
	list, err := d.snapshots.List()
	if err != nil || len(list) == 0 {
		return nil, fmt.Errorf("looking for the recovered state: %w", errors.Join(err, ErrNoState))
	}
	marker := guard.Marker{Node: only.Name}
	applier.view(func(m *fsm.Machine) { marker.Cluster = m.Installation() })
	if err := renew(dir, d.guarded, marker); err != nil {
		return nil, err
	}
	return &Recovered{Index: list[0].Index, Term: list[0].Term, Member: only}, nil
}

// recovering releases its snapshot when it is written: RecoverCluster never does.
type recovering struct{ *applier }

// Snapshot implements raft.FSM.
func (r recovering) Snapshot() (raft.FSMSnapshot, error) {
	s, err := r.applier.Snapshot()
	return releasing{s}, err
}

type releasing struct{ raft.FSMSnapshot }

// Persist implements raft.FSMSnapshot.
func (r releasing) Persist(sink raft.SnapshotSink) error {
	defer r.FSMSnapshot.Release()
	return r.FSMSnapshot.Persist(sink)
}

// Release implements raft.FSMSnapshot.
func (releasing) Release() {}

func survivor(name string, self Member, known []Member) (Member, error) {
	if name == "" {
		name = self.Name
	}
	if self.Name != "" && self.Name != name {
		return Member{}, fmt.Errorf("the directory is %q's, not %q's: %w", name, self.Name, ErrForeignDir)
	}
	if self.RaftAddress != "" {
		return self, nil
	}
	for _, m := range known {
		if m.Name == name {
			return m, nil
		}
	}
	return Member{}, fmt.Errorf("the address of %q is not known: set QUEUE_MEMBERS", name)
}

// Restore fills an empty data directory with a state, of which members is the membership. Every one of them must be given the
// same. The directory is a new one: it has an id of its own and no memory of other nodes, so nobody takes it for an older copy.
// content must fail instead of ending when it is not whole.
func Restore(dir, name string, members []Member, index, term uint64, content io.Reader, log *slog.Logger) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	// "snapshots" is an older version's.
	for _, left := range []string{boltFile, guard.MarkerFile, snapshotFile, "snapshots", segmentsDir, stateDir, peersFile} {
		if _, err := os.Stat(filepath.Join(dir, left)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s has %s: %w", dir, left, errors.Join(ErrHasState, err))
		}
	}
	logs, err := openLog(dir, LogBolt) // without entries it is a log of either kind
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	guarded := offlineLog(logs)
	snapshots, err := openSnapshots(dir, guarded)
	if err != nil {
		return err
	}
	s, err := store.Open(filepath.Join(dir, stateDir), 0, nil)
	if err != nil {
		return fmt.Errorf("making the store: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	snapshots.store = s
	_, transport := raft.NewInmemTransport("")
	sink, err := snapshots.Create(raft.SnapshotVersionMax, index, term, configuration(members), 1, transport)
	if err != nil {
		return fmt.Errorf("making the snapshot: %w", err)
	}
	if _, err := io.Copy(sink, content); err != nil {
		return fmt.Errorf("writing the snapshot: %w", errors.Join(err, sink.Cancel()))
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("finishing the snapshot: %w", err)
	}
	state, err := adopt(s, log)
	if err != nil {
		return err
	}
	if err := guarded.SetUint64(keyCurrentTerm, term); err != nil {
		return fmt.Errorf("writing the term: %w", err)
	}
	return renew(dir, guarded, guard.Marker{Node: name, Cluster: state.Installation()})
}

// offline is a data directory that no node uses.
type offline struct {
	marker    guard.Marker
	unmarked  error // why there is no marker
	logs      *diskLog
	guarded   *guardedLog // on logs
	snapshots *snapshots
	store     *store.Store
	transport raft.Transport
	log       *slog.Logger
}

func openOffline(dir string, log *slog.Logger) (_ *offline, err error) {
	if _, err := os.Stat(filepath.Join(dir, boltFile)); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoState)
	}
	d := &offline{log: log}
	marker, marked, err := guard.ReadMarker(dir)
	switch {
	case errors.Is(err, guard.ErrMarker):
		d.unmarked = err
	case err != nil:
		return nil, err
	case !marked:
		d.unmarked = errors.New("there is no member marker")
	default:
		d.marker = marker
	}
	_, d.transport = raft.NewInmemTransport("")
	kind, err := kindIn(dir)
	if err != nil {
		return nil, err
	}
	if d.logs, err = openLog(dir, kind); err != nil {
		return nil, fmt.Errorf("%w (does a node run on it?)", err)
	}
	d.guarded = offlineLog(d.logs)
	if d.snapshots, err = openSnapshots(dir, d.guarded); err != nil {
		return nil, errors.Join(err, d.logs.Close())
	}
	if d.store, err = store.Open(filepath.Join(dir, stateDir), d.snapshots.index(), d.logs.payloads()); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store: %w", err), d.logs.Close())
	}
	d.snapshots.store = d.store
	d.guarded.cutting = func(last uint64) (uint64, error) { return last, d.store.Forget(last) }
	return d, nil
}

// kindIn is where the directory has its entries, so that they are not moved.
func kindIn(dir string) (LogKind, error) {
	segments, err := os.ReadDir(filepath.Join(dir, segmentsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("looking for the log: %w", err)
	}
	if len(segments) > 0 {
		return LogSegments, nil
	}
	return LogBolt, nil
}

func (d *offline) close() error { return errors.Join(d.store.Close(), d.logs.Close()) }

// describe all but the state.
func (d *offline) describe(r *Report) (err error) {
	r.LogPayloadBytes = d.store.InLog()
	if r.Term, err = number(d.guarded.GetUint64(keyCurrentTerm)); err != nil {
		return fmt.Errorf("reading the term: %w", err)
	}
	if r.VotedTerm, err = number(d.guarded.GetUint64(keyLastVoteTerm)); err != nil {
		return fmt.Errorf("reading the vote: %w", err)
	}
	if candidate, err := d.guarded.Get(keyLastVoteCand); err == nil {
		r.VotedFor, _, _ = decodeAddress(raft.ServerAddress(candidate))
	}
	if r.FirstLog, err = d.guarded.FirstIndex(); err == nil {
		r.LastLog, err = d.guarded.LastIndex()
	}
	if err != nil {
		return fmt.Errorf("reading the range of the log: %w", err)
	}
	list, err := d.snapshots.List()
	if err != nil {
		return fmt.Errorf("listing the snapshots: %w", err)
	}
	for _, s := range list {
		r.Snapshots = append(r.Snapshots, SnapshotInfo{ID: s.ID, Index: s.Index, Term: s.Term, Size: d.store.Size()})
	}
	if len(list) > 0 {
		r.Members, r.MembersIndex = decodeMembers(list[0].Configuration), list[0].ConfigurationIndex
	}
	err = d.each(r.FirstLog, r.LastLog, func(l *raft.Log) error {
		r.LogTerm = l.Term
		if l.Type == raft.LogConfiguration && l.Index > r.MembersIndex {
			r.Members, r.MembersIndex = decodeMembers(raft.DecodeConfiguration(l.Data)), l.Index
		}
		return nil
	})
	r.VotedFor = named(r.VotedFor, r.Members)
	return err
}

// named is the member of an address, where one has it: raft notes its vote by address.
func named(address string, members []Member) string {
	for _, m := range members {
		if m.RaftAddress == address {
			return m.Name
		}
	}
	return address
}

// number is 0 where nothing was ever written: the log store has an error for it, not a value.
func number(n uint64, err error) (uint64, error) {
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return 0, nil
	}
	return n, err
}

func (d *offline) each(first, last uint64, f func(*raft.Log) error) error {
	for i := first; i <= last && i > 0; i++ {
		var l raft.Log
		if err := d.guarded.GetLog(i, &l); err != nil {
			return fmt.Errorf("reading entry %d: %w", i, err)
		}
		if err := f(&l); err != nil {
			return err
		}
	}
	return nil
}

// replay brings the log after the state on disk into it.
func (d *offline) replay(r *Report) error {
	var failure error
	a, err := newApplier(d.store, d.log, func(err error) { failure = err })
	if err != nil {
		return err
	}
	r.StateIndex = d.store.Durable()
	err = d.each(max(r.FirstLog, r.StateIndex+1), r.LastLog, func(l *raft.Log) error {
		if l.Index > r.StateIndex+1 {
			return fmt.Errorf("entries %d to %d are missing", r.StateIndex+1, l.Index-1)
		}
		if l.Type == raft.LogCommand {
			a.Apply(l)
		}
		r.StateIndex = l.Index
		return failure
	})
	a.view(func(m *fsm.Machine) { r.State = m })
	return err
}

// ReadState gives the state in a Copy's content, of this index. scratch is an empty directory for it. content must fail instead
// of ending when it is not whole.
func ReadState(content io.Reader, index uint64, scratch string, log *slog.Logger) (state *fsm.Machine, err error) {
	s, err := store.Open(scratch, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("opening a scratch store: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	incoming, err := s.Receive()
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(incoming, content); err != nil {
		return nil, fmt.Errorf("reading the state: %w", errors.Join(err, incoming.Cancel()))
	}
	if err := incoming.Finish(index); err != nil {
		return nil, err
	}
	return adopt(s, log)
}

// adopt the received state, and read it.
func adopt(s *store.Store, log *slog.Logger) (state *fsm.Machine, err error) {
	if err := s.Adopt(); err != nil {
		return nil, err
	}
	a, err := newApplier(s, log, func(error) {}) // nothing is applied
	if err != nil {
		return nil, err
	}
	a.view(func(m *fsm.Machine) { state = m })
	return state, nil
}
