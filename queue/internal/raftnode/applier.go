package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

// ringSize is how many entries the sizes of are remembered: more are never kept behind a snapshot.
const ringSize = 8192

var errFailed = errors.New("node has failed, see its log")

// applier is the state machine as raft sees it. Raft calls it from one goroutine (Persist from another).
type applier struct {
	store *store.Store
	log   *slog.Logger
	fail  func(error)

	// committing is held while entries are in the machine and not all in the store yet. Taken before mu.
	committing sync.Mutex
	mu         sync.RWMutex // guards machine
	machine    *fsm.Machine

	failed    atomic.Bool
	listeners atomic.Pointer[[]func(uint64, []fsm.Change)]
	index     waitIndex
	sizes     logSizes
	hashes    hashes
	members   atomic.Uint64 // version of the membership applied last; 0: not known since the start
	collector collector
}

var (
	_ raft.BatchingFSM = (*applier)(nil)
	_ raft.FSMSnapshot = snapshot{}
)

// newApplier begins at the index of the store's file; what the log has above it is applied again.
func newApplier(s *store.Store, log *slog.Logger, fail func(error)) (*applier, error) {
	machine, err := fsm.Load(s.Durable(), s.Each)
	if err != nil {
		return nil, fmt.Errorf("loading the state: %w", err)
	}
	a := &applier{store: s, log: log, fail: fail, machine: machine, collector: newCollector()}
	a.listeners.Store(&[]func(uint64, []fsm.Change){})
	a.index.init()
	a.index.advance(machine.Applied())
	a.sizes.due = make(chan struct{}, 1)
	a.hashes.add(machine.Applied(), machine.Hash())
	a.collector.pace(machine.IndexBytes())
	return a, nil
}

// Apply one entry; raft uses ApplyBatch.
func (a *applier) Apply(l *raft.Log) any { return a.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch gives []fsm.Result or an error per entry. After the first entry that cannot be applied it applies nothing more.
func (a *applier) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	for i := range answers {
		answers[i] = errFailed
	}
	if a.failed.Load() {
		return answers
	}
	if err := a.applyBatch(logs, answers); err != nil {
		a.failed.Store(true)
		a.fail(err)
	}
	return answers
}

func (a *applier) applyBatch(logs []*raft.Log, answers []any) (err error) {
	a.sizes.add(logs)
	for _, l := range logs {
		if l.Type == raft.LogConfiguration {
			a.members.Store(version(l.Data))
		}
	}
	logs, answers = a.news(logs, answers)
	if len(logs) == 0 {
		return nil
	}
	batches := make([]command.Batch, len(logs))
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		if batches[i], err = command.Decode(l.Data); err != nil {
			// Those before it are applied by nobody here: the next start does.
			return fmt.Errorf("reading entry %d (term %d): %w", l.Index, l.Term, err)
		}
	}
	changes := make([][]fsm.Change, len(logs))
	results := make([]any, len(logs))
	if err := a.execute(logs, batches, results, changes); err != nil {
		return err
	}
	copy(answers, results)
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			a.tell(l.Index, changes[i])
		}
	}
	a.index.advance(logs[len(logs)-1].Index)
	return nil
}

// news are the entries that the state does not have yet: after a start, and after the snapshot of a node that went on, the log
// brings some again. Those before are answered with nothing; nobody asked.
func (a *applier) news(logs []*raft.Log, answers []any) ([]*raft.Log, []any) {
	known := 0
	a.view(func(m *fsm.Machine) {
		for known < len(logs) && logs[known].Index <= m.Applied() {
			known++
		}
	})
	return logs[known:], answers[known:]
}

// execute brings machine and store to the new state.
func (a *applier) execute(logs []*raft.Log, batches []command.Batch, results []any, changes [][]fsm.Change) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("applying entries %d to %d: panic: %v\n%s", logs[0].Index, logs[len(logs)-1].Index, p, debug.Stack())
		}
	}()
	a.committing.Lock()
	defer a.committing.Unlock()
	var all []fsm.Op
	last := uint64(0)
	func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for i, l := range logs {
			if l.Type != raft.LogCommand {
				continue
			}
			r, c, ops := a.machine.Apply(l.Index, batches[i])
			results[i], changes[i] = r, c
			if changes[i] == nil {
				changes[i] = []fsm.Change{}
			}
			if all == nil {
				all = ops
			} else {
				all = append(all, ops...)
			}
			last = l.Index
			a.hashes.add(last, a.machine.Hash())
		}
		a.collector.pace(a.machine.IndexBytes())
	}()
	if last == 0 {
		return nil
	}
	if err := a.store.Commit(last, all); err != nil {
		return fmt.Errorf("storing entries up to %d: %w", last, err)
	}
	return nil
}

func (a *applier) tell(index uint64, changes []fsm.Change) {
	for _, f := range *a.listeners.Load() {
		f(index, changes)
	}
}

func (a *applier) onChange(f func(uint64, []fsm.Change)) {
	for {
		old := a.listeners.Load()
		added := append(slices.Clone(*old), f)
		if a.listeners.CompareAndSwap(old, &added) {
			return
		}
	}
}

func (a *applier) view(read func(*fsm.Machine)) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	read(a.machine)
}

// payload of a call. Damage is the end of the node: what it has must not be served.
func (a *applier) payload(seq uint64) ([]byte, error) {
	return a.stored(func() ([]byte, error) { return a.store.Payload(seq) })
}

// part of a body, likewise.
func (a *applier) part(place uint64, number uint32) ([]byte, error) {
	return a.stored(func() ([]byte, error) { return a.store.Part(place, number) })
}

func (a *applier) stored(read func() ([]byte, error)) ([]byte, error) {
	payload, err := read()
	if errors.Is(err, store.ErrNotFound) {
		// The machine may know of a call whose operations are still on their way into the store.
		a.committing.Lock()
		payload, err = read()
		a.committing.Unlock()
	}
	if errors.Is(err, store.ErrDamaged) {
		a.failed.Store(true)
		a.fail(err)
	}
	return payload, err
}

// Snapshot is by reference: the store's file, once it is flushed.
func (a *applier) Snapshot() (raft.FSMSnapshot, error) {
	if a.failed.Load() {
		return nil, errFailed // what this node has must not be passed on
	}
	return snapshot{a}, nil
}

type snapshot struct{ a *applier }

// Persist makes the store's file durable up to the sink's index: raft cuts the log next.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if s.a.failed.Load() {
		return errors.Join(errFailed, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("finishing the snapshot: %w", err)
	}
	return nil
}

// Release has nothing to give back.
func (snapshot) Release() {}

// Restore replaces store and machine by the snapshot that the sink received; nothing is read. Without one it is the node's own
// snapshot that is restored, offline by raft.RecoverCluster: the state has it already.
func (a *applier) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	a.committing.Lock()
	defer a.committing.Unlock()
	if !a.store.Incoming() {
		return nil
	}
	if err := a.store.Adopt(); err != nil {
		a.failed.Store(true)
		a.fail(err)
		return err
	}
	index := a.store.Durable()
	restored, err := fsm.Load(index, a.store.Each)
	if err != nil {
		a.failed.Store(true)
		err = fmt.Errorf("loading the restored state: %w", err)
		a.fail(err)
		return err
	}
	a.mu.Lock()
	a.machine = restored
	a.mu.Unlock()
	a.hashes.add(index, restored.Hash())
	a.sizes.restored()
	a.members.Store(0)
	a.tell(index, nil)
	a.index.advance(index)
	return nil
}

// waitIndex is the applied index, and who waits for it.
type waitIndex struct {
	mu      sync.Mutex // guards both
	value   uint64
	changed chan struct{} // closed and replaced at each advance
}

func (w *waitIndex) init() { w.changed = make(chan struct{}) }

func (w *waitIndex) advance(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if index <= w.value {
		return
	}
	w.value = index
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *waitIndex) get() (uint64, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.value, w.changed
}

func (w *waitIndex) wait(ctx context.Context, index uint64) error {
	for {
		value, changed := w.get()
		if value >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting until entry %d is applied (at %d): %w", index, value, ctx.Err())
		}
	}
}
