package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/guard"
)

// ErrDamaged is something that came back from the log's file otherwise than it was written.
var ErrDamaged = errors.New("the raft log is damaged")

// Writers of the log's files, each with one write under way at most.
const (
	slotAppend = iota
	slotTruncate
	slotStable
	writeSlots
)

// sumSize is what a checksum takes, in bytes.
const sumSize = 4

// logFile is log and stable store on disk, entries in either kind of it.
type logFile interface {
	raft.LogStore
	raft.MonotonicLogStore
	Set(key, value []byte) error
	Get(key []byte) ([]byte, error)
}

// guardedLog is the log's file with a checksum on everything read back from it, which the file's own format has not
// (reliability.md §0.4); with an eye on how long writes take; and with a second try for those that must not fail.
// An entry's checksum is kept in its Extensions on disk and never leaves this node; a value's behind the value.
//
// An append that finds the disk full fails, which Raft bears. A term or vote that cannot be saved is a panic of the library:
// for those the ballast is given back.
type guardedLog struct {
	file  logFile
	disk  *guard.Disk // nil where no node runs: there is no ballast to give back
	watch *guard.Watch
	// damaged is told of the first thing that fails its checksum: the node must stop before it answers with it.
	damaged func(error)
	// cutting is told that the log is about to lose its front up to an entry, and says up to which one it may; nil: nobody minds.
	cutting func(last uint64) (uint64, error)
}

var (
	_ raft.LogStore          = (*guardedLog)(nil)
	_ raft.MonotonicLogStore = (*guardedLog)(nil)
	_ raft.StableStore       = (*guardedLog)(nil)
)

// offlineLog is the log of a directory that no node uses.
func offlineLog(file logFile) *guardedLog {
	return &guardedLog{file: file, watch: guard.NewWatch(writeSlots), damaged: func(error) {}} // whoever reads is told, too
}

func (g *guardedLog) write(slot int, f func() error) error {
	if g.disk == nil {
		return f()
	}
	return g.watch.Slot(slot).Write(func() error { return g.disk.Write(f) })
}

func (g *guardedLog) damage(what string, args ...any) error {
	err := fmt.Errorf("%s: %w", fmt.Sprintf(what, args...), ErrDamaged)
	g.damaged(err)
	return err
}

// IsMonotonic implements raft.MonotonicLogStore.
func (g *guardedLog) IsMonotonic() bool { return g.file.IsMonotonic() }

// FirstIndex implements raft.LogStore.
func (g *guardedLog) FirstIndex() (uint64, error) { return g.file.FirstIndex() }

// LastIndex implements raft.LogStore.
func (g *guardedLog) LastIndex() (uint64, error) { return g.file.LastIndex() }

// GetLog implements raft.LogStore.
func (g *guardedLog) GetLog(index uint64, l *raft.Log) error {
	err := g.file.GetLog(index, l)
	if errors.Is(err, raft.ErrLogNotFound) {
		return err // asked for by a leader that wants to know whether a snapshot is needed; verify looks for holes
	}
	if err != nil {
		return g.damage("reading entry %d: %v", index, err)
	}
	n := len(l.Extensions) - sumSize
	if l.Index != index || n < 0 || !g.fits(l, l.Extensions[:n], binary.BigEndian.Uint32(l.Extensions[n:])) {
		return g.damage("entry %d fails its checksum", index)
	}
	if l.Extensions = l.Extensions[:n]; n == 0 {
		l.Extensions = nil
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (g *guardedLog) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. The entries themselves stay as they are: others read them at the same time.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	summed := make([]*raft.Log, len(logs))
	copies := make([]raft.Log, len(logs))
	for i, l := range logs {
		copies[i] = *l
		copies[i].Extensions = binary.BigEndian.AppendUint32(l.Extensions[:len(l.Extensions):len(l.Extensions)], g.sum(l))
		summed[i] = &copies[i]
	}
	return g.watch.Slot(slotAppend).Write(func() error { return g.file.StoreLogs(summed) })
}

// DeleteRange implements raft.LogStore.
func (g *guardedLog) DeleteRange(first, last uint64) error {
	from, err := g.file.FirstIndex()
	if err != nil {
		return err
	}
	if g.cutting != nil && first <= from {
		wanted := last
		if last, err = g.cutting(wanted); err != nil {
			return fmt.Errorf("before cutting the log up to %d: %w", wanted, err)
		}
		if last < first {
			return nil
		}
	}
	return g.write(slotTruncate, func() error { return g.file.DeleteRange(first, last) })
}

// sum of an entry to be written. Segments have a checksum of their own over every record, which is verified whenever it is read: there
// it is enough to know that a record is the entry it should be.
func (g *guardedLog) sum(l *raft.Log) uint32 {
	if g.IsMonotonic() {
		return headSum(l, l.Extensions)
	}
	return entrySum(l, l.Extensions)
}

// fits says whether an entry that was read is as it was written: earlier releases wrote entrySum everywhere.
func (g *guardedLog) fits(l *raft.Log, extensions []byte, sum uint32) bool {
	return g.IsMonotonic() && sum == headSum(l, extensions) || sum == entrySum(l, extensions)
}

// entrySum covers what of an entry means something.
func entrySum(l *raft.Log, extensions []byte) uint32 {
	return crc32.Update(crc32.Update(headOf(l), castagnoli, l.Data), castagnoli, extensions)
}

// headSum covers it but for the data.
func headSum(l *raft.Log, extensions []byte) uint32 {
	return crc32.Update(headOf(l), castagnoli, extensions)
}

func headOf(l *raft.Log) uint32 {
	var head [25]byte
	binary.BigEndian.PutUint64(head[:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(l.Data)))
	return crc32.Checksum(head[:], castagnoli)
}

// Set implements raft.StableStore.
func (g *guardedLog) Set(key, value []byte) error {
	stored := binary.BigEndian.AppendUint32(value[:len(value):len(value)], valueSum(key, value))
	return g.write(slotStable, func() error { return g.file.Set(key, stored) })
}

// Get implements raft.StableStore.
func (g *guardedLog) Get(key []byte) ([]byte, error) {
	stored, err := g.file.Get(key)
	if err != nil {
		return nil, err // "not found" is compared by raft as it is
	}
	n := len(stored) - sumSize
	if n < 0 || binary.BigEndian.Uint32(stored[n:]) != valueSum(key, stored[:n]) {
		return nil, g.damage("value %q fails its checksum", key)
	}
	return stored[:n], nil
}

// SetUint64 implements raft.StableStore.
func (g *guardedLog) SetUint64(key []byte, value uint64) error {
	return g.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore.
func (g *guardedLog) GetUint64(key []byte) (uint64, error) {
	value, err := g.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, g.damage("value %q has %d bytes", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}

func valueSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// verify reads the log behind the newest snapshot: a start must not find out half-way. Nothing may be missing there; what is
// older is checked when a follower wants it. It gives index and term of the last entry, those of the snapshot when it is newer.
func (g *guardedLog) verify(snapshots raft.SnapshotStore) (last, term uint64, err error) {
	snapshot, term, err := newestSnapshot(snapshots)
	if err != nil {
		return 0, 0, err
	}
	first, err := g.file.FirstIndex()
	if err != nil {
		return 0, 0, fmt.Errorf("finding the first entry: %w", err)
	}
	if last, err = g.file.LastIndex(); err != nil {
		return 0, 0, fmt.Errorf("finding the last entry: %w", err)
	}
	if last <= snapshot {
		return snapshot, term, nil
	}
	if first > snapshot+1 {
		return 0, 0, fmt.Errorf("the log begins at entry %d, the newest snapshot ends at %d: %w", first, snapshot, ErrDamaged)
	}
	for index := snapshot + 1; index <= last; index++ {
		var l raft.Log
		if err := g.GetLog(index, &l); errors.Is(err, raft.ErrLogNotFound) {
			return 0, 0, fmt.Errorf("entry %d of %d to %d is missing: %w", index, snapshot+1, last, ErrDamaged)
		} else if err != nil {
			return 0, 0, err
		}
		term = l.Term
	}
	return last, term, nil
}

// newestSnapshot gives the index and term of the newest snapshot, 0 without one.
func newestSnapshot(snapshots raft.SnapshotStore) (index, term uint64, err error) {
	list, err := snapshots.List()
	if err != nil {
		return 0, 0, fmt.Errorf("listing the snapshots: %w", err)
	}
	if len(list) == 0 {
		return 0, 0, nil
	}
	return list[0].Index, list[0].Term, nil
}
