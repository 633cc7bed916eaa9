package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// A payload is in the Raft log already, fsynced, before anything is applied. While the log has it the file says where it lies instead
// of having it, too (docs/adr/0032-payloads-stay-in-the-log.md). References lie in a bucket of their own, some of them in each value, in
// the order of their places, which is the order of the log. A value under it is, for each: place (8 bytes), index of the entry (8), offset
// in the entry's data (4), length (4), sum of the payload as if it were in the file (4); then the sum of all that. Numbers are big endian.
//
// Before the log is cut, the payloads of what is cut off move into the file (Forget), and before the file is copied, all do (Snapshot).

// Log is what the payloads are read from that the file only refers to. Its methods may be called from any goroutine.
type Log interface {
	// ReadData fills part with an entry's data from offset on. ErrCut when the log does not have the entry.
	ReadData(index uint64, offset uint32, part []byte) error
	// Bounds are the indices of the first and the last entry; 0, 0 when there is none.
	Bounds() (first, last uint64)
}

// ErrCut is the answer of a log that does not have an entry.
var ErrCut = errors.New("the log does not have this entry")

const (
	referenceSize = 28
	// referencesTogether are in one value.
	referencesTogether = 128
	// fewestReferred is the length of payloads that are worth a reference, in bytes.
	fewestReferred = 128
	// movedAtOnce from the log into the file by one transaction, in bytes.
	movedAtOnce = 4 << 20
	// sumReferences stands for the bucket in its values' sums.
	sumReferences fsm.Bucket = 250
)

var bucketReferences = []byte("references")

type reference struct {
	place, index uint64
	offset       uint32
	length       uint32 // in bytes
	sum          uint32
}

// refers says whether values of this family may stay in the log.
func (f family) refers() bool { return f.bucket == fsm.BucketPayload }

func appendReference(to []byte, r reference) []byte {
	to = binary.BigEndian.AppendUint64(to, r.place)
	to = binary.BigEndian.AppendUint64(to, r.index)
	to = binary.BigEndian.AppendUint32(to, r.offset)
	to = binary.BigEndian.AppendUint32(to, r.length)
	return binary.BigEndian.AppendUint32(to, r.sum)
}

// references of one value, as they lie in the file.
type references []byte

// readReferences checks them.
func readReferences(key, sealed []byte) (references, error) {
	list, err := checkSum(sumReferences, key, sealed)
	if err == nil && (len(list) == 0 || len(list)%referenceSize != 0) {
		err = fmt.Errorf("references of %d bytes at %x: %w", len(list), key, ErrDamaged)
	}
	return references(list), err
}

func (r references) len() int { return len(r) / referenceSize }

func (r references) at(i int) reference {
	b := r[i*referenceSize:]
	return reference{
		place: binary.BigEndian.Uint64(b), index: binary.BigEndian.Uint64(b[8:]), offset: binary.BigEndian.Uint32(b[16:]),
		length: binary.BigEndian.Uint32(b[20:]), sum: binary.BigEndian.Uint32(b[24:]),
	}
}

func (r references) last() reference { return r.at(r.len() - 1) }

func (r references) find(place uint64) (i int, ok bool) {
	return findPlace(r.len(), place, func(i int) uint64 { return r.at(i).place })
}

// seekReferences gives the value that has the place, if one does. No key: there is none before it.
func seekReferences(c *bbolt.Cursor, place uint64) (key []byte, list references, err error) {
	key, sealed := seekUpTo(c, place)
	if key == nil {
		return nil, nil, nil
	}
	list, err = readReferences(key, sealed)
	return key, list, err
}

// referenceTo a place, if there is one.
func referenceTo(tx *bbolt.Tx, key []byte) (r reference, ok bool, err error) {
	if len(key) != numberSize { // a part of a body
		return reference{}, false, nil
	}
	place := binary.BigEndian.Uint64(key)
	_, list, err := seekReferences(tx.Bucket(bucketReferences).Cursor(), place)
	if err != nil {
		return reference{}, false, err
	}
	i, ok := list.find(place)
	if !ok {
		return reference{}, false, nil
	}
	return list.at(i), true, nil
}

// lastReference is the newest one; zero: there is none.
func lastReference(tx *bbolt.Tx) (reference, error) {
	key, sealed := tx.Bucket(bucketReferences).Cursor().Last()
	if key == nil {
		return reference{}, nil
	}
	list, err := readReferences(key, sealed)
	if err != nil {
		return reference{}, err
	}
	return list.last(), nil
}

// refer to values, which are in the order of their places and behind all that are there.
func (w *writing) refer(values []placed) error {
	b := w.tx.Bucket(bucketReferences)
	b.FillPercent = fillPercent
	for len(values) > 0 {
		n := min(len(values), referencesTogether)
		list := w.arena.take(n*referenceSize + sumSize)
		var place [numberSize]byte
		for _, p := range values[:n] {
			binary.BigEndian.PutUint64(place[:], p.place)
			list = appendReference(list, reference{
				place: p.place, index: p.source.Index, offset: p.source.Offset, length: uint32(len(p.value)),
				sum: sum(fsm.BucketPayload, place[:], p.value),
			})
			w.referred += int64(len(p.value))
		}
		if err := w.putReferences(b, placeKey(values[0].place), list); err != nil {
			return err
		}
		values = values[n:]
	}
	return nil
}

func (w *writing) putReferences(b *bbolt.Bucket, key, list []byte) error {
	sealed := binary.BigEndian.AppendUint32(list, sum(sumReferences, key, list))
	if err := b.Put(key, sealed); err != nil {
		return fmt.Errorf("writing references at %x: %w", key, err)
	}
	return nil
}

// unrefer takes away the references to places, which are in order. left are those that have none.
func (w *writing) unrefer(places []uint64) (left []uint64, err error) {
	b := w.tx.Bucket(bucketReferences)
	cursor := b.Cursor()
	var changed []named // all are found before one is written, as with removal
	for len(places) > 0 {
		key, list, err := seekReferences(cursor, places[0])
		if err != nil {
			return nil, err
		}
		if key == nil || list.last().place < places[0] {
			left, places = append(left, places[0]), places[1:]
			continue
		}
		kept := w.arena.take(len(list) + sumSize)
		had := 0
		for i := range list.len() {
			r := list.at(i)
			for len(places) > 0 && places[0] < r.place {
				left, places = append(left, places[0]), places[1:]
			}
			if len(places) > 0 && places[0] == r.place {
				places = places[1:]
				w.referred -= int64(r.length)
				had++
				continue
			}
			kept = append(kept, list[i*referenceSize:(i+1)*referenceSize]...)
		}
		if had > 0 {
			changed = append(changed, named{bytes.Clone(key), kept})
		}
	}
	for _, n := range changed {
		if len(n.value) == 0 {
			err = b.Delete(n.key)
		} else {
			err = w.putReferences(b, n.key, n.value)
		}
		if err != nil {
			return nil, fmt.Errorf("taking references away at %x: %w", n.key, err)
		}
	}
	return left, nil
}

// mayRefer is the index above which a transaction that begins now may refer to entries.
func (s *Store) mayRefer() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log == nil || s.whole > 0 {
		return none
	}
	return s.forgotten
}

// InLog are the bytes of payloads that the file only refers to.
func (s *Store) InLog() int64 { return s.referred.Load() }

// Referenced says from which entry on the log is needed, and how many bytes of it. 0, 0: none of it.
func (s *Store) Referenced() (first uint64, size int64, err error) {
	s.files.RLock()
	defer s.files.RUnlock()
	defer caught(&err)
	err = s.db.View(func(tx *bbolt.Tx) error {
		key, sealed := tx.Bucket(bucketReferences).Cursor().First()
		if key == nil {
			return nil
		}
		list, err := readReferences(key, sealed)
		if err != nil {
			return err
		}
		first, size = list.at(0).index, s.referred.Load()
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("looking for the oldest reference: %w", err)
	}
	return first, size, nil
}

// checkReferences counts them, and says whether the log has what they are to.
func (s *Store) checkReferences() (err error) {
	defer caught(&err)
	var size int64
	var first, last uint64
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketReferences).ForEach(func(key, sealed []byte) error {
			list, err := readReferences(key, sealed)
			if err != nil {
				return err
			}
			if first == 0 {
				first = list.at(0).index
			}
			last = list.last().index
			for i := range list.len() {
				size += int64(list.at(i).length)
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("reading the references: %w", err)
	}
	s.referred.Store(size)
	if first == 0 {
		return nil
	}
	var from, to uint64
	if s.log != nil {
		from, to = s.log.Bounds()
	}
	if from == 0 || first < from || last > to {
		return fmt.Errorf("payloads are in entries %d to %d of the log, which has %d to %d: %w", first, last, from, to, ErrLost)
	}
	return nil
}

// Forget brings the payloads that are in entries up to this one into the file: the log may be cut behind it when Forget returns nil.
// All of these entries must be in the file otherwise (Flush).
func (s *Store) Forget(upTo uint64) error {
	s.mu.Lock()
	s.forgotten = max(s.forgotten, upTo) // of the transactions that begin from now on
	s.mu.Unlock()
	return s.moveAll(upTo)
}

func (s *Store) moveAll(upTo uint64) error {
	for {
		more, err := s.move(upTo)
		if err != nil {
			return fmt.Errorf("bringing payloads of the log up to %d into the state: %w", upTo, err)
		}
		if !more {
			return nil
		}
	}
}

// move some of the payloads that lie in entries up to this one. more: there may be others.
func (s *Store) move(upTo uint64) (more bool, err error) {
	s.files.RLock()
	defer s.files.RUnlock()
	defer caught(&err)
	w := writing{arena: &arena{}}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		w.tx, w.referred, more = tx, 0, false
		var keys [][]byte
		var values []placed
		size := 0
		b := tx.Bucket(bucketReferences)
		c := b.Cursor()
		for key, sealed := c.First(); key != nil; key, sealed = c.Next() {
			list, err := readReferences(key, sealed)
			if err != nil {
				return err
			}
			if list.at(0).index > upTo {
				break
			}
			if size >= movedAtOnce {
				more = true
				break
			}
			for i := range list.len() {
				r := list.at(i)
				value := w.arena.take(int(r.length))[:r.length]
				if err := s.inLog(r, value); err != nil {
					return err
				}
				values = append(values, placed{place: r.place, value: value})
				size += len(value)
			}
			keys = append(keys, bytes.Clone(key))
		}
		for _, key := range keys {
			if err := b.Delete(key); err != nil {
				return fmt.Errorf("taking references away at %x: %w", key, err)
			}
		}
		w.referred = -int64(size)
		return w.settle(values)
	})
	if err == nil {
		s.referred.Add(w.referred)
	}
	return more, err
}

// inLog reads the payload a reference is to, and checks it. value is as long as it.
func (s *Store) inLog(r reference, value []byte) error {
	if s.log == nil {
		return ErrCut
	}
	if err := s.log.ReadData(r.index, r.offset, value); err != nil {
		return err
	}
	if sum(fsm.BucketPayload, placeKey(r.place), value) != r.sum {
		return fmt.Errorf("checking the payload at %d in entry %d of the log: %w", r.place, r.index, ErrDamaged)
	}
	return nil
}

// settle values of the log, which are in the order of their places, in the file. Those among which there are others already are
// single ones: blocks do not overlap.
func (w *writing) settle(values []placed) error {
	blocks := w.tx.Bucket(payloads.blocks)
	var small, alone []placed
	for len(values) > 0 {
		n, size := 0, 0
		for n < len(values) && size < blockBytes && len(values[n].value) <= largest {
			size += blockEntry + len(values[n].value) + sumSize
			n++
		}
		if n == 0 {
			alone, values = append(alone, values[0]), values[1:]
			continue
		}
		free, err := payloads.between(blocks, values[0].place, values[n-1].place)
		if err != nil {
			return err
		}
		if free {
			small = append(small, values[:n]...)
		} else {
			alone = append(alone, values[:n]...)
		}
		if err := w.bring(payloads, small, alone); err != nil {
			return err
		}
		small, alone, values = small[:0], alone[:0], values[n:]
	}
	return w.bring(payloads, nil, alone)
}

// between says whether no block has a place between these.
func (f family) between(blocks *bbolt.Bucket, first, last uint64) (bool, error) {
	c := blocks.Cursor()
	b, _, _, err := f.blockOf(c, first)
	if err != nil {
		return false, err
	}
	if b.key != nil && b.last() >= first && bytes.Compare(b.key, placeKey(first)) <= 0 {
		return false, nil
	}
	next, _ := c.Seek(placeKey(first))
	return next == nil || binary.BigEndian.Uint64(next) > last, nil
}
