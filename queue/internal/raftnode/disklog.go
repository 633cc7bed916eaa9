package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/slimfaas/slimfaas/queue/internal/logfile"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

// LogKind is where the entries of the Raft log are kept (docs/adr/0013-raft-log-in-segments.md). Term and vote are in raft.db always.
type LogKind string

const (
	// LogSegments keeps entries in segment files: one write and one fsync for an append.
	LogSegments LogKind = "segments"
	// LogBolt keeps them in raft.db: two fsyncs for an append, and a tree that is written anew for it.
	LogBolt LogKind = "bolt"
)

// In a data directory: term, vote and, with LogBolt, the entries; the segments; the store.
const (
	boltFile    = "raft.db"
	segmentsDir = "log"
	stateDir    = "state"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *LogKind) UnmarshalText(text []byte) error {
	switch kind := LogKind(text); kind {
	case LogSegments, LogBolt:
		*k = kind
		return nil
	default:
		return fmt.Errorf("%q: expected %s or %s", text, LogSegments, LogBolt)
	}
}

// diskLog is log and stable store of a node.
type diskLog struct {
	raft.LogStore
	raft.StableStore
	bolt     *raftboltdb.BoltStore
	segments *logfile.Log // nil with LogBolt
	// fsyncs of one append.
	fsyncs uint64
}

// IsMonotonic implements raft.MonotonicLogStore: segments have no holes, so raft clears them before it leaves one.
func (d *diskLog) IsMonotonic() bool { return d.segments != nil }

// trailing is how many entries the newest so many bytes of the log are; false: it is not known here.
func (d *diskLog) trailing(size int64) (entries uint64, known bool) {
	if d.segments == nil {
		return 0, false
	}
	_, last := d.segments.Bounds()
	return last + 1 - d.segments.Tail(size), true
}

// Close closes the files.
func (d *diskLog) Close() error {
	err := d.bolt.Close()
	if d.segments != nil {
		err = errors.Join(err, d.segments.Close())
	}
	return err
}

// openLog opens raft.db and the segments. Entries of a raft.db that had them move into the segments first.
// The library of raft.db panics, or reads outside of the file, where the file is damaged.
func openLog(dir string, kind LogKind) (_ *diskLog, err error) {
	defer loudly(&err)()
	d := &diskLog{}
	d.bolt, err = raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, boltFile), BoltOptions: store.LogOptions()})
	if err != nil {
		return nil, fmt.Errorf("opening the raft log (is another process using %s?): %w", dir, err)
	}
	d.LogStore, d.StableStore, d.fsyncs = d.bolt, d.bolt, boltFsyncs
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	segments, err := logfile.Open(filepath.Join(dir, segmentsDir), newestSegment{d.bolt})
	if errors.Is(err, logfile.ErrMissing) {
		return nil, fmt.Errorf("opening the raft log: %w: %w", ErrLostLog, err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the raft log: %w", err)
	}
	if kind == LogBolt {
		_, last := segments.Bounds()
		if err := segments.Close(); err != nil {
			return nil, fmt.Errorf("closing the raft log: %w", err)
		}
		if last != 0 {
			return nil, fmt.Errorf("opening the raft log: %s has entries in segments up to %d; a log does not move back into raft.db", dir, last)
		}
		return d, nil
	}
	entries := segmentLog{segments}
	d.segments, d.LogStore, d.fsyncs = segments, entries, 1
	if err := move(d.bolt, entries); err != nil {
		return nil, fmt.Errorf("moving the raft log into segments: %w", err)
	}
	return d, nil
}

// movedAtOnce entries between two stores.
const movedAtOnce = 64

// move copies the entries of a raft.db and removes them there. A crash in between: it copies them again.
func move(from *raftboltdb.BoltStore, to segmentLog) error {
	first, err := from.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	last, err := from.LastIndex()
	if err != nil {
		return err
	}
	if err := to.log.CutFront(last); err != nil { // of a move that did not come to its end
		return err
	}
	for next := first; next <= last; {
		var logs []*raft.Log
		for ; next <= last && len(logs) < movedAtOnce; next++ {
			l := &raft.Log{}
			if err := from.GetLog(next, l); err != nil {
				return fmt.Errorf("reading entry %d: %w", next, err)
			}
			logs = append(logs, l)
		}
		if err := to.StoreLogs(logs); err != nil {
			return err
		}
	}
	return from.DeleteRange(first, last)
}

// newestSegment is kept in raft.db, beside term and vote.
type newestSegment struct{ bolt *raftboltdb.BoltStore }

var keyNewestSegment = []byte("NewestSegment")

// Load implements logfile.Newest.
func (n newestSegment) Load() (uint64, error) {
	first, err := n.bolt.GetUint64(keyNewestSegment)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return 0, nil
	}
	return first, err
}

// Store implements logfile.Newest.
func (n newestSegment) Store(first uint64) error { return n.bolt.SetUint64(keyNewestSegment, first) }

// segmentLog is the segments in raft's words.
type segmentLog struct{ log *logfile.Log }

// FirstIndex implements raft.LogStore.
func (s segmentLog) FirstIndex() (uint64, error) {
	first, _ := s.log.Bounds()
	return first, nil
}

// LastIndex implements raft.LogStore.
func (s segmentLog) LastIndex() (uint64, error) {
	_, last := s.log.Bounds()
	return last, nil
}

// entryHeader is term (8 bytes), time it was appended at (8), type (1), length of the extensions (4).
const entryHeader = 21

// GetLog implements raft.LogStore.
func (s segmentLog) GetLog(index uint64, l *raft.Log) error {
	raw, err := s.log.Read(index)
	if errors.Is(err, logfile.ErrNotFound) {
		return raft.ErrLogNotFound // compared by raft as it is
	}
	if err != nil {
		return err
	}
	if len(raw) < entryHeader || uint64(len(raw)-entryHeader) < uint64(binary.BigEndian.Uint32(raw[17:])) {
		return fmt.Errorf("entry %d has %d bytes: %w", index, len(raw), logfile.ErrDamaged)
	}
	*l = raft.Log{Index: index, Term: binary.BigEndian.Uint64(raw), Type: raft.LogType(raw[16])}
	if at := int64(binary.BigEndian.Uint64(raw[8:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	rest := raw[entryHeader:]
	if n := binary.BigEndian.Uint32(raw[17:]); n > 0 {
		l.Extensions, rest = rest[:n:n], rest[n:]
	}
	if len(rest) > 0 {
		l.Data = rest
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (s segmentLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s segmentLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	records := make([][][]byte, len(logs))
	headers := make([]byte, 0, len(logs)*entryHeader)
	for i, l := range logs {
		if l.Index != logs[0].Index+uint64(i) {
			return fmt.Errorf("appending entry %d behind %d", l.Index, logs[0].Index+uint64(i)-1)
		}
		at := int64(0)
		if !l.AppendedAt.IsZero() {
			at = l.AppendedAt.UnixNano()
		}
		from := len(headers)
		headers = binary.BigEndian.AppendUint64(headers, l.Term)
		headers = binary.BigEndian.AppendUint64(headers, uint64(at))
		headers = append(headers, byte(l.Type))
		headers = binary.BigEndian.AppendUint32(headers, uint32(len(l.Extensions)))
		records[i] = [][]byte{headers[from:], l.Extensions, l.Data}
	}
	return s.log.Append(logs[0].Index, records)
}

// DeleteRange implements raft.LogStore. Raft deletes at the ends only.
func (s segmentLog) DeleteRange(first, last uint64) error {
	from, to := s.log.Bounds()
	switch {
	case to == 0 || last < from || first > to:
		return nil
	case first <= from:
		return s.log.CutFront(last)
	case last >= to:
		return s.log.CutBack(first)
	default:
		return fmt.Errorf("deleting entries %d to %d in the middle of %d to %d", first, last, from, to)
	}
}
