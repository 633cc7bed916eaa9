package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
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

// fullPause between attempts to write to a full disk.
const fullPause = time.Second

// opBytes is what an operation takes besides key and value, about.
const opBytes = 64

// layer of operations on their way to the file: for each key the newest value, nil for deleted.
type layer struct {
	values [fsm.Buckets]map[string][]byte
	bytes  int
	index  uint64 // the state is at with it; 0: empty
}

func newLayer() *layer { return &layer{} }

func (l *layer) full() bool { return l.bytes >= layerBytes }

func (l *layer) put(op fsm.Op) {
	m := l.values[op.Bucket]
	if m == nil {
		m = make(map[string][]byte)
		l.values[op.Bucket] = m
	}
	m[string(op.Key)] = op.Value
	l.bytes += opBytes + len(op.Key) + len(op.Value)
}

// get says what the layer knows of a key, copied.
func (l *layer) get(b fsm.Bucket, key []byte) (value []byte, known bool) {
	value, known = l.values[b][string(key)]
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
	return s.db.Update(func(tx *bbolt.Tx) error {
		for i, values := range l.values {
			if err := writeBucket(tx, fsm.Bucket(i), values); err != nil {
				return err
			}
		}
		return putNumber(tx, keyApplied, l.index)
	})
}

func writeBucket(tx *bbolt.Tx, bucket fsm.Bucket, values map[string][]byte) error {
	keys := slices.Sorted(maps.Keys(values))
	if bucket == fsm.BucketPayload {
		return writePayloads(tx, values, keys)
	}
	b := tx.Bucket(bucketNames[bucket])
	b.FillPercent = fillPercent
	return putAll(b, bucket, values, keys)
}

// putAll of the keys, which are in order, or delete them where they have no value.
func putAll(b *bbolt.Bucket, bucket fsm.Bucket, values map[string][]byte, keys []string) error {
	for _, key := range keys {
		var err error
		if value := values[key]; value == nil {
			err = b.Delete([]byte(key))
		} else {
			err = b.Put([]byte(key), withSum(bucket, []byte(key), value))
		}
		if err != nil {
			return fmt.Errorf("writing key %x of bucket %d: %w", key, bucket, err)
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumSize of the CRC-32C behind each value in the file.
const sumSize = 4

// sum of a value in its place: one that turns up elsewhere does not fit.
func sum(b fsm.Bucket, key, value []byte) uint32 {
	c := crc32.Update(uint32(b), castagnoli, key)
	return crc32.Update(c, castagnoli, value)
}

func withSum(b fsm.Bucket, key, value []byte) []byte {
	sealed := append(make([]byte, 0, len(value)+sumSize), value...)
	return binary.BigEndian.AppendUint32(sealed, sum(b, key, value))
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
