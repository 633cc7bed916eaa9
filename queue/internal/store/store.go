// Package store keeps the state of a queue node on disk: what fsm's operations say, in one bbolt transaction per applied
// batch together with the applied index.
//
// Nothing here is fsynced: the Raft log is the truth. A start throws away what a previous process left and rebuilds it from
// snapshot and log, so a power cut can damage nothing that is read again (docs/adr/0008-state-on-disk.md).
package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// ErrNotFound is the answer when there is no payload at that place.
var ErrNotFound = errors.New("payload not found")

const (
	// fileMode of everything written here: payloads are their callers' secrets.
	fileMode = 0o600
	// lockTimeout of a file that another process has open.
	lockTimeout = 2 * time.Second
	// mapSize is address space, not memory: a growing map would wait for the reader of a running snapshot, in bytes.
	mapSize = 4 << 30
	// fillPercent of pages: keys only ever grow, so pages are left nearly full.
	fillPercent = 0.9
)

var (
	bucketNames = func() (names [fsm.Buckets][]byte) {
		for i := range names {
			names[i] = []byte{byte(i)}
		}
		return names
	}()
	bucketApplied = []byte("applied")
	keyApplied    = []byte("index")
)

// Store of one node. Commit and Restore are for one goroutine; the rest is safe for any.
type Store struct {
	dir string

	mu         sync.RWMutex // guards db and generation; held for reading while a transaction begins or a payload is read
	db         *bbolt.DB
	generation int
}

// Open makes an empty store in dir and removes what was there.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "state-*"))
	if err != nil {
		return nil, fmt.Errorf("listing old state: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing old state: %w", err)
		}
	}
	s := &Store{dir: dir, generation: 1}
	if s.db, err = openFile(s.path(s.generation)); err != nil {
		return nil, err
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range bucketNames {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		_, err := tx.CreateBucket(bucketApplied)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making buckets: %w", err), s.db.Close())
	}
	return s, nil
}

func (s *Store) path(generation int) string {
	return filepath.Join(s.dir, fmt.Sprintf("state-%d.db", generation))
}

func openFile(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, fileMode, &bbolt.Options{
		NoSync: true, NoGrowSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
		Timeout: lockTimeout, InitialMmapSize: mapSize,
	})
	if err != nil {
		return nil, fmt.Errorf("opening state %s: %w", filepath.Base(path), err)
	}
	return db, nil
}

// LogOptions are the house's options for the Raft log's file: fsync on, freelist in memory, no endless wait for a lock.
func LogOptions() *bbolt.Options {
	return &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockTimeout}
}

// Commit executes the operations, in order, and records the index they bring the state to.
func (s *Store) Commit(index uint64, ops []fsm.Op) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return fmt.Errorf("beginning: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing after a commit
	var buckets [fsm.Buckets]*bbolt.Bucket
	for _, op := range ops {
		b := buckets[op.Bucket]
		if b == nil {
			b = tx.Bucket(bucketNames[op.Bucket])
			b.FillPercent = fillPercent
			buckets[op.Bucket] = b
		}
		if op.Value == nil {
			err = b.Delete(op.Key)
		} else {
			err = b.Put(op.Key, op.Value)
		}
		if err != nil {
			return fmt.Errorf("writing key %x of bucket %d: %w", op.Key, op.Bucket, err)
		}
	}
	if err := tx.Bucket(bucketApplied).Put(keyApplied, binary.BigEndian.AppendUint64(nil, index)); err != nil {
		return fmt.Errorf("writing the applied index: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// Payload of the call at this place, copied.
func (s *Store) Payload(seq uint64) (payload []byte, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	err = s.db.View(func(tx *bbolt.Tx) error {
		value := tx.Bucket(bucketNames[fsm.BucketPayload]).Get(binary.BigEndian.AppendUint64(nil, seq))
		if value == nil {
			return ErrNotFound
		}
		payload = append([]byte{}, value...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading payload %d: %w", seq, err)
	}
	return payload, nil
}

// Applied is the index the state is at; 0 when new.
func (s *Store) Applied() (index uint64, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	err = s.db.View(func(tx *bbolt.Tx) error {
		index = applied(tx)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("reading the applied index: %w", err)
	}
	return index, nil
}

func applied(tx *bbolt.Tx) uint64 {
	if value := tx.Bucket(bucketApplied).Get(keyApplied); len(value) == 8 {
		return binary.BigEndian.Uint64(value)
	}
	return 0
}

// Each gives every pair but the payloads, buckets and keys in order: what fsm.Load takes. The operations are copies.
func (s *Store) Each(yield func(fsm.Op) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	err := s.db.View(func(tx *bbolt.Tx) error {
		for i, name := range bucketNames {
			if fsm.Bucket(i) == fsm.BucketPayload {
				continue
			}
			err := tx.Bucket(name).ForEach(func(key, value []byte) error {
				return yield(fsm.Op{Bucket: fsm.Bucket(i), Key: bytes.Clone(key), Value: bytes.Clone(value)})
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the state: %w", err)
	}
	return nil
}

// Size of the state's file in use, in bytes: about what a snapshot takes.
func (s *Store) Size() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var size int64
	_ = s.db.View(func(tx *bbolt.Tx) error {
		size = tx.Size()
		return nil
	})
	return size
}

// Close waits for readers.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("closing state: %w", err)
	}
	return nil
}
