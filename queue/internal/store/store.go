// Package store keeps the state of a queue node on disk: what fsm's operations say, together with the applied index they
// bring it to.
//
// Nothing is fsynced per entry: the Raft log is the truth. Commit puts operations into a layer in memory, readable at once; a
// goroutine writes full layers to a bbolt file, each in one synced transaction with its applied index. So the file is at all
// times the state at one index, a crash or power cut loses the newest layers only, and what they held is replayed from the
// log. The file is flushed before the log is truncated (docs/adr/0009-engine.md).
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// What reading can end in.
var (
	// ErrNotFound: there is no payload at that place.
	ErrNotFound = errors.New("payload not found")
	// ErrDamaged: the file does not hold what was written to it. The node must stop; its directory is to be emptied.
	ErrDamaged = errors.New("state on disk is damaged: stop this node, empty its data directory and let it join again")
	// ErrLost: the file is older than what the log was truncated by, so that the rest cannot be replayed.
	ErrLost = errors.New("state on disk is missing or older than the log goes back: empty this node's data directory and let it join again")
	// ErrVersion: the file was written by a newer program.
	ErrVersion = errors.New("state on disk is of a version this program does not know: run the program that wrote it, or a newer one")
)

const (
	// fileMode of everything written here: payloads are their callers' secrets.
	fileMode = 0o600
	// lockTimeout of a file that another process has open.
	lockTimeout = 2 * time.Second
	// mapSize is address space, not memory: a growing map would wait for the reader of a running snapshot, in bytes.
	mapSize = 32 << 30
	// fillPercent of pages: keys only ever grow, so pages are left nearly full.
	fillPercent = 0.9

	stateFile     = "state.db"
	incomingFile  = "incoming.db"
	compactedFile = "compacted.db"

	// compactBytes of free pages, and three quarters of the file, make it worth copying the rest when the node starts.
	compactBytes = 64 << 20
	// compactStep is how much of it one transaction copies, in bytes.
	compactStep = 16 << 20
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
	keyVersion    = []byte("version")
)

// stateVersion of the file: 1 has no blocks, and no record of its version; 2 none of records; 3 no references.
const stateVersion = 4

// sumApplied stands for bucketApplied in its value's sum.
const sumApplied fsm.Bucket = 255

// Store of one node. Commit and Adopt are for one goroutine; the rest is safe for any.
type Store struct {
	dir string
	log Log // nil: all payloads are in the file
	// referred is how many bytes of payloads the file has references to.
	referred atomic.Int64

	// writeTo is writeLayer but in tests of a full disk.
	writeTo func(*layer) error
	arena   arena // of writeLayer
	// hurry is closed when a full disk is not waited for any more.
	hurry     chan struct{}
	hurryOnce sync.Once

	files sync.RWMutex // guards db; held for reading while a transaction begins or a payload is read. Taken before mu.
	db    *bbolt.DB

	mu      sync.Mutex // guards all below
	moved   sync.Cond  // any of them changed
	active  *layer     // takes operations
	sealed  *layer     // being written; nil: none is
	applied uint64     // by Commit
	durable uint64     // in the file, fsynced
	wanted  uint64     // durable is to reach it although the active layer is not full
	err     error      // of the writer: nothing is written any more
	closing bool
	// adopting: the file is being replaced, nothing is written.
	adopting bool
	incoming bool // a received snapshot waits for Adopt
	// forgotten entries, up to this one, are not referred to any more; nor are any while whole is above 0, which is how many want it so.
	forgotten uint64
	whole     int
	written   sync.WaitGroup
}

// Open the state in dir, made if absent, whose applied index must be atLeast: a received snapshot that was not adopted yet is
// if it has it. Otherwise ErrLost. Payloads that the log has stay there; nil: all are to be in the file.
func Open(dir string, atLeast uint64, log Log) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	s := &Store{dir: dir, log: log, active: newLayer(), hurry: make(chan struct{})}
	s.moved.L = &s.mu
	s.writeTo = s.writeLayer
	db, applied, err := openState(s.path(stateFile))
	if err != nil {
		return nil, err
	}
	if applied < atLeast {
		if err := db.Close(); err != nil {
			return nil, fmt.Errorf("closing old state: %w", err)
		}
		if db, applied, err = s.openIncoming(atLeast); err != nil {
			return nil, fmt.Errorf("state is at %d, want %d: %w", applied, atLeast, err)
		}
	}
	if err := errors.Join(discard(s.path(incomingFile)), discard(s.path(compactedFile))); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if db, err = s.compact(db); err != nil {
		return nil, err
	}
	s.db, s.applied, s.durable = db, applied, applied
	if err := s.checkReferences(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.written.Go(s.write)
	return s, nil
}

// openIncoming takes the received snapshot as the state.
func (s *Store) openIncoming(atLeast uint64) (*bbolt.DB, uint64, error) {
	path := s.path(incomingFile)
	if _, err := os.Stat(path); err != nil {
		return nil, 0, errors.Join(ErrLost, err)
	}
	db, applied, err := openState(path)
	if err != nil {
		return nil, 0, errors.Join(ErrLost, err)
	}
	if err := db.Close(); err != nil {
		return nil, applied, fmt.Errorf("closing the received snapshot: %w", err)
	}
	if applied < atLeast {
		return nil, applied, ErrLost
	}
	if err := s.install(); err != nil {
		return nil, applied, err
	}
	return openState(s.path(stateFile))
}

// compact gives the space of a backlog that is gone back to the disk: the file itself never shrinks.
func (s *Store) compact(db *bbolt.DB) (*bbolt.DB, error) {
	var size, free int64
	err := db.View(func(tx *bbolt.Tx) error {
		size, free = tx.Size(), int64(db.Stats().FreePageN)*int64(db.Info().PageSize)
		return nil
	})
	if err != nil || free < compactBytes || free < size/4*3 {
		return db, err
	}
	small, err := bbolt.Open(s.path(compactedFile), fileMode, &bbolt.Options{
		NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockTimeout,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the compacted state: %w", err), db.Close())
	}
	err = errors.Join(bbolt.Compact(small, db, compactStep), small.Sync(), small.Close(), db.Close())
	if err != nil {
		return nil, fmt.Errorf("compacting the state: %w", err)
	}
	if err := os.Rename(s.path(compactedFile), s.path(stateFile)); err != nil {
		return nil, fmt.Errorf("putting the compacted state in place: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return nil, err
	}
	db, _, err = openState(s.path(stateFile))
	return db, err
}

// install puts the received file in place of the state's.
func (s *Store) install() error {
	if err := os.Rename(s.path(incomingFile), s.path(stateFile)); err != nil {
		return fmt.Errorf("putting the received state in place: %w", err)
	}
	return syncDir(s.dir)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// openState with all its buckets, and the index it is at.
func openState(path string) (_ *bbolt.DB, index uint64, err error) {
	defer caught(&err) // bbolt panics on pages it cannot make sense of
	db, err := bbolt.Open(path, fileMode, &bbolt.Options{
		NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockTimeout, InitialMmapSize: mapSize,
	})
	if err != nil {
		return nil, 0, fmt.Errorf("opening %s (is another process using it?): %w", filepath.Base(path), err)
	}
	old := false
	err = db.View(func(tx *bbolt.Tx) error {
		version, err := numberIn(tx, keyVersion)
		if err != nil {
			return err
		}
		if version > stateVersion {
			return fmt.Errorf("version %d, this program knows %d: %w", version, stateVersion, ErrVersion)
		}
		old = version < stateVersion
		index, err = numberIn(tx, keyApplied)
		return err
	})
	if err == nil && old {
		err = db.Update(prepare)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("preparing %s: %w", filepath.Base(path), err), db.Close())
	}
	return db, index, nil
}

// prepare a new file, or one of an older version.
func prepare(tx *bbolt.Tx) error {
	for _, name := range append(bucketNames[:], bucketApplied, bucketReferences, payloads.blocks, payloads.live, records.blocks, records.live) {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return fmt.Errorf("making its buckets: %w", err)
		}
	}
	return putNumber(tx, keyVersion, stateVersion)
}

// numberIn the file's record of itself; 0: it has none.
func numberIn(tx *bbolt.Tx, key []byte) (uint64, error) {
	b := tx.Bucket(bucketApplied)
	if b == nil {
		return 0, nil
	}
	value := b.Get(key)
	if value == nil {
		return 0, nil
	}
	value, err := checkSum(sumApplied, key, value)
	if err != nil || len(value) != 8 {
		return 0, errors.Join(ErrDamaged, err)
	}
	return binary.BigEndian.Uint64(value), nil
}

func putNumber(tx *bbolt.Tx, key []byte, n uint64) error {
	if err := tx.Bucket(bucketApplied).Put(key, withSum(sumApplied, key, binary.BigEndian.AppendUint64(nil, n))); err != nil {
		return fmt.Errorf("writing the %s of the state: %w", key, err)
	}
	return nil
}

// LogOptions are the house's options for the Raft log's file: fsync on, freelist in memory, no endless wait for a lock.
func LogOptions() *bbolt.Options {
	return &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockTimeout}
}

// Commit executes the operations, in order, and records the index they bring the state to. It keeps their memory. It waits
// while a full layer has to wait for the one before it: that is all the pace the disk dictates. An error is for good.
func (s *Store) Commit(index uint64, ops []fsm.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.active.full() && s.err == nil && !s.closing {
		s.moved.Wait()
	}
	switch {
	case s.err != nil:
		return s.err
	case s.closing:
		return errors.New("store is closed")
	}
	for _, op := range ops {
		s.active.put(op)
	}
	s.active.index, s.applied = index, index
	if s.active.full() {
		s.moved.Broadcast()
	}
	return nil
}

// Flush returns when the file holds the state at this index or a later one. The index may be above the last commit's: the
// caller says that nothing up to it is missing.
func (s *Store) Flush(index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active.index < index {
		s.active.index = max(s.applied, index)
	}
	s.wanted = max(s.wanted, index)
	s.moved.Broadcast()
	for s.durable < index && s.err == nil && !s.closing {
		s.moved.Wait()
	}
	if s.durable < index {
		return errors.Join(errors.New("store is closed"), s.err)
	}
	return nil
}

// Payload of the call at this place, copied. ErrNotFound, or ErrDamaged.
func (s *Store) Payload(seq uint64) ([]byte, error) {
	payload, err := s.payload(binary.BigEndian.AppendUint64(nil, seq))
	if err != nil {
		return nil, fmt.Errorf("reading payload %d: %w", seq, err)
	}
	return payload, nil
}

// Part of a body, copied: one by one, so that no body is in memory as a whole. ErrNotFound, or ErrDamaged.
func (s *Store) Part(place uint64, number uint32) ([]byte, error) {
	part, err := s.payload(fsm.PartKey(place, number))
	if err != nil {
		return nil, fmt.Errorf("reading part %d of the body at %d: %w", number, place, err)
	}
	return part, nil
}

func (s *Store) payload(key []byte) ([]byte, error) {
	// Newest first: what leaves a layer while this looks is in the next place before.
	if value, known := s.pending(fsm.BucketPayload, key); known {
		if value == nil {
			return nil, ErrNotFound
		}
		return value, nil
	}
	for range readsOfMoved {
		if value, err := s.read(key); !errors.Is(err, ErrCut) {
			return value, err
		}
	}
	return nil, fmt.Errorf("the log does not have the entry it is in: %w", ErrDamaged)
}

// readsOfMoved payloads: one that the log has no more when it is read there has moved into the file in between.
const readsOfMoved = 3

// pending looks in the layers. known with a nil value: deleted.
func (s *Store) pending(b fsm.Bucket, key []byte) (value []byte, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range []*layer{s.active, s.sealed} {
		if l == nil {
			continue
		}
		if value, known = l.get(b, key); known {
			return value, true
		}
	}
	return nil, false
}

// read a payload from the file, copied.
func (s *Store) read(key []byte) (value []byte, err error) {
	s.files.RLock()
	defer s.files.RUnlock()
	defer caught(&err)
	err = s.db.View(func(tx *bbolt.Tx) error {
		found, err := payloads.at(tx, key)
		if errors.Is(err, ErrNotFound) {
			r, referred, lookErr := referenceTo(tx, key)
			if lookErr != nil {
				return lookErr
			}
			if referred {
				value = make([]byte, r.length)
				return s.inLog(r, value)
			}
		}
		value = append([]byte{}, found...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return value, nil
}

// Applied is the index Commit brought the state to; 0 when new.
func (s *Store) Applied() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

// Durable is the index the file is at: what a crash leaves.
func (s *Store) Durable() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}

// Each gives every pair of the file but the payloads, buckets and keys in order, and checks it: what fsm.Load takes, at the
// index Durable. The operation's memory is the file's: valid during the call only. Nothing may be committed meanwhile.
func (s *Store) Each(yield func(fsm.Op) error) (err error) {
	s.files.RLock()
	defer s.files.RUnlock()
	defer caught(&err)
	err = s.db.View(func(tx *bbolt.Tx) error {
		for i, name := range bucketNames {
			b := fsm.Bucket(i)
			if b == fsm.BucketPayload {
				continue
			}
			if f, ok := familyOf(b); ok {
				if err := f.each(tx, func(key, value []byte) error { return yield(fsm.Op{Bucket: b, Key: key, Value: value}) }); err != nil {
					return err
				}
				continue
			}
			err := tx.Bucket(name).ForEach(func(key, sealed []byte) error {
				value, err := checkSum(b, key, sealed)
				if err != nil {
					return err
				}
				return yield(fsm.Op{Bucket: b, Key: key, Value: value})
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

// Size of the state's file in use, in bytes: what a snapshot takes when it is sent.
func (s *Store) Size() int64 {
	s.files.RLock()
	defer s.files.RUnlock()
	return s.size()
}

func (s *Store) size() (size int64) {
	_ = s.db.View(func(tx *bbolt.Tx) error {
		size = tx.Size()
		return nil
	})
	return size
}

// Space is the size of the state's file, and what of it is free, in bytes. What is in memory is in neither.
func (s *Store) Space() (file, free int64) {
	s.files.RLock()
	defer s.files.RUnlock()
	stats := s.db.Stats()
	return s.size(), int64(stats.FreePageN+stats.PendingPageN) * int64(s.db.Info().PageSize)
}

// Hurry ends waiting for space on a full disk, now and later: the node stops.
func (s *Store) Hurry() { s.hurryOnce.Do(func() { close(s.hurry) }) }

// Close writes what is in memory and waits for readers.
func (s *Store) Close() error {
	s.Hurry()
	s.mu.Lock()
	s.closing = true
	s.moved.Broadcast()
	s.mu.Unlock()
	s.written.Wait()
	s.files.Lock()
	defer s.files.Unlock()
	if err := s.db.Close(); err != nil {
		return errors.Join(fmt.Errorf("closing state: %w", err), s.err)
	}
	return s.err
}
