package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// layerBytes of operations make a layer full. What is overwritten in it counts too, because its memory may be shared with
// what is not: an entry's payloads are one piece. Two layers are held at most, so a crash costs the replay of about as much
// log. A call that is accepted and finished within one layer never has its payload written.
const layerBytes = 8 << 20

// numberSize of keys that are numbers, in bytes.
const numberSize = 8

// fullPause between attempts to write to a full disk.
const fullPause = time.Second

// opBytes is what an operation takes besides key and value, about.
const opBytes = 40

// layer of operations on their way to the file: for each key the newest value, nil for deleted.
type layer struct {
	numbers [fsm.Buckets]numbered          // of keys of eight bytes, which nearly all are
	names   [fsm.Buckets]map[string][]byte // of all others
	bytes   int
	index   uint64 // the state is at with it; 0: empty
}

func newLayer() *layer { return &layer{} }

func (l *layer) full() bool { return l.bytes >= layerBytes }

func (l *layer) put(op fsm.Op) {
	if len(op.Key) == numberSize {
		l.bytes += l.numbers[op.Bucket].put(binary.BigEndian.Uint64(op.Key), op.Value, op.Source)
	} else {
		if l.names[op.Bucket] == nil {
			l.names[op.Bucket] = map[string][]byte{}
		}
		l.names[op.Bucket][string(op.Key)] = op.Value
	}
	l.bytes += opBytes + len(op.Key) + len(op.Value)
}

// get says what the layer knows of a key, copied.
func (l *layer) get(b fsm.Bucket, key []byte) (value []byte, known bool) {
	if len(key) == numberSize {
		value, known = l.numbers[b].get(binary.BigEndian.Uint64(key))
	} else {
		value, known = l.names[b][string(key)]
	}
	if value != nil {
		value = append([]byte{}, value...)
	}
	return value, known
}

// write layers until the store closes or writing fails.
func (s *Store) write() {
	for {
		l := s.seal()
		if l == nil {
			return
		}
		err := s.writeTo(l)
		for errors.Is(err, syscall.ENOSPC) && s.pause() {
			err = s.writeTo(l)
		}
		s.mu.Lock()
		if err != nil {
			s.err = fmt.Errorf("writing the state up to %d: %w", l.index, err)
		} else {
			s.sealed, s.durable = nil, l.index
		}
		s.moved.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// pause before a full disk is tried again. A node that died of it would die of it again after each start; this one stands
// still, and goes on when there is space. Any other error ends it: what a failed fsync has lost is not known. false: there is no
// time to wait.
func (s *Store) pause() bool {
	timer := time.NewTimer(fullPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.hurry:
		return false
	}
}

// seal waits for a layer that is to be written; nil: none will be.
func (s *Store) seal() *layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		due := s.active.full() || s.wanted > s.durable || s.closing
		switch {
		case due && !s.adopting && s.active.index != 0:
			s.sealed, s.active = s.active, newLayer()
			s.moved.Broadcast()
			return s.sealed
		case s.closing && !s.adopting:
			return nil
		}
		s.moved.Wait()
	}
}

// writeLayer in one transaction, synced.
func (s *Store) writeLayer(l *layer) (err error) {
	s.files.RLock()
	defer s.files.RUnlock()
	defer caught(&err)
	defer s.arena.reset()
	var w writing
	err = s.db.Update(func(tx *bbolt.Tx) error {
		w = writing{tx: tx, arena: &s.arena, mayRefer: s.mayRefer()}
		for i := range fsm.Bucket(fsm.Buckets) {
			if err := w.bucket(i, l.numbers[i].sorted(), l.names[i]); err != nil {
				return err
			}
		}
		return putNumber(tx, keyApplied, l.index)
	})
	if err == nil {
		s.referred.Add(w.referred)
	}
	return err
}

// writing of one layer.
type writing struct {
	tx    *bbolt.Tx
	arena *arena
	// mayRefer to entries above this index; none: to no entry.
	mayRefer uint64
	referred int64 // bytes that are referred to, more than before
}

// none is an index that no entry has.
const none = math.MaxUint64

func (w *writing) bucket(bucket fsm.Bucket, numbers []placed, names map[string][]byte) error {
	b := w.tx.Bucket(bucketNames[bucket])
	b.FillPercent = fillPercent
	if f, ok := familyOf(bucket); ok {
		if err := w.placed(f, numbers); err != nil {
			return err
		}
	} else {
		var key [numberSize]byte
		for _, n := range numbers {
			binary.BigEndian.PutUint64(key[:], n.place)
			if err := w.put(b, bucket, key[:], n.value); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := w.put(b, bucket, []byte(name), names[name]); err != nil {
			return err
		}
	}
	return nil
}

// put a value, or delete the key where it is nil. The key's memory is the caller's again.
func (w *writing) put(b *bbolt.Bucket, bucket fsm.Bucket, key, value []byte) (err error) {
	if value == nil {
		err = b.Delete(key)
	} else {
		err = b.Put(key, w.arena.sealed(bucket, key, value))
	}
	if err != nil {
		return fmt.Errorf("writing key %x of bucket %d: %w", key, bucket, err)
	}
	return nil
}

func checkSum(b fsm.Bucket, key, sealed []byte) ([]byte, error) {
	at := len(sealed) - sumSize
	if at < 0 || binary.BigEndian.Uint32(sealed[at:]) != sum(b, key, sealed[:at]) {
		return nil, fmt.Errorf("checking key %x of bucket %d: %w", key, b, ErrDamaged)
	}
	return sealed[:at:at], nil
}

// caught makes an error of bbolt's panics: it has no other word for a page that makes no sense, and no way to go on from one.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = errors.Join(*err, fmt.Errorf("bbolt: %v: %w\n%s", p, ErrDamaged, debug.Stack()))
	}
}
