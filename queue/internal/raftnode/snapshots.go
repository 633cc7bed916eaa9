package raftnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

const (
	// snapshotFile says what the newest snapshot is of; the state itself is the store's.
	snapshotFile = "snapshot"
	// snapshotVersion of that file.
	snapshotVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// snapshots are by reference: one is the fact that the store's file has everything up to an index, so that the log before it
// is not needed. Its bytes are read from the store when a node that is far behind asks, and are then of the store's own,
// later index: what the log brings again after it, apply passes over. Vault's Raft backend does the same.
type snapshots struct {
	dir   string
	log   *guardedLog  // has the seals
	store *store.Store // set after open

	mu     sync.Mutex // guards latest
	latest *raft.SnapshotMeta
}

var (
	_ raft.SnapshotStore = (*snapshots)(nil)
	_ raft.SnapshotSink  = (*snapshotSink)(nil)
)

// record is the file. Damaged is worse than none: the log before it is gone.
type snapshotRecord struct {
	Version int
	Sum     uint32 // CRC-32C of Meta
	Meta    json.RawMessage
}

func openSnapshots(dir string, log *guardedLog) (*snapshots, error) {
	s := &snapshots{dir: dir, log: log}
	content, err := os.ReadFile(s.path())
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the snapshot's record: %w", err)
	}
	var record snapshotRecord
	if err := json.Unmarshal(content, &record); err != nil {
		return nil, fmt.Errorf("reading the snapshot's record: %w", errors.Join(store.ErrDamaged, err))
	}
	if record.Version != snapshotVersion {
		return nil, fmt.Errorf("snapshot's record has version %d, this program knows %d only", record.Version, snapshotVersion)
	}
	if crc32.Checksum(record.Meta, castagnoli) != record.Sum {
		return nil, fmt.Errorf("checking the snapshot's record: %w", store.ErrDamaged)
	}
	if err := json.Unmarshal(record.Meta, &s.latest); err != nil {
		return nil, fmt.Errorf("reading the snapshot's record: %w", errors.Join(store.ErrDamaged, err))
	}
	return s, nil
}

func (s *snapshots) path() string { return filepath.Join(s.dir, snapshotFile) }

// index of the newest; 0: there is none.
func (s *snapshots) index() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest == nil {
		return 0
	}
	return s.latest.Index
}

// List the newest.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest == nil {
		return nil, nil
	}
	meta := *s.latest
	return []*raft.SnapshotMeta{&meta}, nil
}

// Open the state for a node that is behind.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	if s.latest == nil || s.latest.ID != id {
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("snapshot %s is not the newest", id)
	}
	meta := *s.latest
	s.mu.Unlock()
	if s.store.Incoming() {
		// Raft opens what it has just received, for Restore to adopt.
		return &meta, io.NopCloser(eof{}), nil
	}
	snapshot, err := s.store.Snapshot(store.Replica)
	if err != nil {
		return nil, nil, err
	}
	if snapshot.Index() < meta.Index { // never: it was flushed or adopted before
		snapshot.Release()
		return nil, nil, fmt.Errorf("opening snapshot %s of state at %d: %w", id, snapshot.Index(), store.ErrLost)
	}
	meta.Size = snapshot.Size()
	return &meta, send(snapshot), nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// streamed is a snapshot on its way out.
type streamed struct {
	*io.PipeReader
	written sync.WaitGroup
}

func send(snapshot *store.Snapshot) io.ReadCloser {
	r, w := io.Pipe()
	s := &streamed{PipeReader: r}
	s.written.Go(func() {
		defer snapshot.Release()
		_, err := snapshot.WriteTo(w)
		_ = w.CloseWithError(err) // never fails
	})
	return s
}

// Close ends the writer and waits for it.
func (s *streamed) Close() error {
	err := s.PipeReader.Close()
	s.written.Wait()
	return err
}

// Create a snapshot, of this node or from another.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, fmt.Errorf("snapshot version %d is not known", version)
	}
	return &snapshotSink{of: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// snapshotSink of a snapshot by reference, or, with the first byte written to it, of one that is received.
type snapshotSink struct {
	of       *snapshots
	meta     raft.SnapshotMeta
	incoming *store.Incoming
	ended    bool
	err      error
}

func (k *snapshotSink) ID() string { return k.meta.ID }

func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.incoming == nil {
		incoming, err := k.of.store.Receive()
		if err != nil {
			return 0, err
		}
		k.incoming = incoming
	}
	n, err := k.incoming.Write(p)
	k.meta.Size += int64(n)
	return n, err
}

// Close makes the snapshot the newest one. Raft and Persist both call it.
func (k *snapshotSink) Close() error {
	if k.ended {
		return k.err
	}
	k.ended = true
	k.err = k.finish()
	return k.err
}

func (k *snapshotSink) finish() error {
	if k.incoming != nil {
		if err := k.incoming.Finish(k.meta.Index); err != nil {
			return err
		}
	} else if err := k.of.store.Flush(k.meta.Index); err != nil {
		return fmt.Errorf("flushing the state up to %d: %w", k.meta.Index, err)
	}
	return k.of.save(&k.meta)
}

// Cancel leaves the one before as the newest.
func (k *snapshotSink) Cancel() error {
	if k.ended {
		return nil
	}
	k.ended, k.err = true, errors.New("snapshot was cancelled")
	if k.incoming != nil {
		return k.incoming.Cancel()
	}
	return nil
}

// save the record, durably, before raft cuts the log.
func (s *snapshots) save(meta *raft.SnapshotMeta) error {
	encoded, err := json.Marshal(meta)
	if err != nil {
		return fmt.Errorf("encoding the snapshot's record: %w", err)
	}
	content, err := json.Marshal(snapshotRecord{Version: snapshotVersion, Sum: crc32.Checksum(encoded, castagnoli), Meta: encoded})
	if err != nil {
		return fmt.Errorf("encoding the snapshot's record: %w", err)
	}
	s.mu.Lock()
	before := s.latest
	s.mu.Unlock()
	if err := s.log.seal(seals{Newest: sealOf(before), Next: sealOf(meta)}); err != nil {
		return err
	}
	if err := guard.Replace(s.path(), content); err != nil {
		return fmt.Errorf("writing the snapshot's record: %w", err)
	}
	s.mu.Lock()
	s.latest = meta
	s.mu.Unlock()
	return s.log.seal(seals{Newest: sealOf(meta)})
}
