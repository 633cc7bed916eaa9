package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"go.etcd.io/bbolt"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// Values of places (numbers that only grow: payloads, and the records of calls) that are written together and are small share one
// value of the file, a block: bbolt takes four times as long for a key and a page of each. Blocks lie in a bucket of their own, under
// their first place, and never overlap. What is alive of a block is a bit each in another bucket; a block without that record is alive
// as a whole. One that is dead goes, and what is left of one that is mostly dead becomes single values in the bucket where larger ones
// are from the beginning, and where a value goes that is written again. A place is in one of the two, never in both.
//
// A block is: how many it has (4 bytes), for each its place (8) and where it ends behind the head (4), CRC-32C over bucket, key and
// all that (4); then the values, each with its sum as it would have alone. Numbers are big endian.

const (
	// blockBytes make a block full.
	blockBytes = 64 << 10
	// largest value that goes into a block, in bytes: of larger ones most of the cost is their bytes.
	largest = 8 << 10
	// fewest values that make a block.
	fewest = 3
	// sparse blocks are dissolved: less than one in so many bytes is alive.
	sparse = 4

	blockHead  = 4
	blockEntry = 12
)

// family of values that go into blocks.
type family struct {
	bucket       fsm.Bucket // where single ones are
	blocks, live []byte     // names of buckets
	sumBlock     fsm.Bucket // stands for the bucket of blocks in their sums
	sumLive      fsm.Bucket
}

var (
	payloads = family{bucket: fsm.BucketPayload, blocks: []byte("blocks"), live: []byte("live"), sumBlock: 254, sumLive: 253}
	records  = family{bucket: fsm.BucketCall, blocks: []byte("records"), live: []byte("records-live"), sumBlock: 252, sumLive: 251}
)

// familyOf a bucket; false: its values are all single.
func familyOf(b fsm.Bucket) (family, bool) {
	switch b {
	case fsm.BucketPayload:
		return payloads, true
	case fsm.BucketCall:
		return records, true
	default:
		return family{}, false
	}
}

func (f family) single(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket(bucketNames[f.bucket]) }

func placeKey(place uint64) []byte { return binary.BigEndian.AppendUint64(nil, place) }

// placed is a value at its place.
type placed struct {
	place  uint64
	value  []byte
	source fsm.Source
}

// newBlock of values in the order of their places.
func (f family) newBlock(values []placed, memory *arena) (key, value []byte) {
	key = placeKey(values[0].place)
	size := blockHead + blockEntry*len(values) + sumSize
	for _, p := range values {
		size += len(p.value) + sumSize
	}
	b := binary.BigEndian.AppendUint32(memory.take(size), uint32(len(values)))
	end := 0
	for _, p := range values {
		end += len(p.value) + sumSize
		b = binary.BigEndian.AppendUint64(b, p.place)
		b = binary.BigEndian.AppendUint32(b, uint32(end))
	}
	b = binary.BigEndian.AppendUint32(b, sum(f.sumBlock, key, b))
	var place [numberSize]byte
	for _, p := range values {
		binary.BigEndian.PutUint64(place[:], p.place)
		b = appendSealed(b, f.bucket, place[:], p.value)
	}
	return key, b
}

// block as it was read. Its memory is the file's.
type block struct {
	key     []byte
	entries []byte
	bodies  []byte
}

func (f family) readBlock(key, value []byte) (block, error) {
	damaged := fmt.Errorf("checking the block at %x: %w", key, ErrDamaged)
	if len(value) < blockHead {
		return block{}, damaged
	}
	n := uint64(binary.BigEndian.Uint32(value))
	head := blockHead + blockEntry*n
	if n == 0 || head+sumSize > uint64(len(value)) || binary.BigEndian.Uint32(value[head:]) != sum(f.sumBlock, key, value[:head]) {
		return block{}, damaged
	}
	b := block{key: key, entries: value[blockHead:head], bodies: value[head+sumSize:]}
	if b.end(b.len()-1) != len(b.bodies) {
		return block{}, damaged
	}
	return b, nil
}

func (b block) len() int           { return len(b.entries) / blockEntry }
func (b block) place(i int) uint64 { return binary.BigEndian.Uint64(b.entries[i*blockEntry:]) }
func (b block) last() uint64       { return b.place(b.len() - 1) }

// end of the i-th value in bodies, its sum included; of the one before the first: 0.
func (b block) end(i int) int {
	if i < 0 {
		return 0
	}
	return int(binary.BigEndian.Uint32(b.entries[i*blockEntry+8:]))
}

// sealed is the i-th value with its sum.
func (b block) sealed(i int) []byte { return b.bodies[b.end(i-1):b.end(i)] }

func (b block) find(place uint64) (i int, ok bool) {
	return findPlace(b.len(), place, b.place)
}

// findPlace among so many that are in order.
func findPlace(n int, place uint64, at func(i int) uint64) (i int, ok bool) {
	i = sort.Search(n, func(i int) bool { return at(i) >= place })
	return i, i < n && at(i) == place
}

// seekUpTo the pair whose key is the place, or else the last one before it; a nil key: there is none.
func seekUpTo(c *bbolt.Cursor, place uint64) (key, value []byte) {
	want := placeKey(place)
	key, value = c.Seek(want)
	switch {
	case key == nil:
		return c.Last()
	case !bytes.Equal(key, want):
		return c.Prev()
	}
	return key, value
}

// blockOf gives the block that has the place, if one does.
func (f family) blockOf(c *bbolt.Cursor, place uint64) (b block, i int, ok bool, err error) {
	key, value := seekUpTo(c, place)
	if key == nil {
		return block{}, 0, false, nil
	}
	if b, err = f.readBlock(key, value); err != nil {
		return block{}, 0, false, err
	}
	i, ok = b.find(place)
	return b, i, ok, nil
}

// alive is a bit for each value of a block, copied.
func (f family) alive(tx *bbolt.Tx, b block) ([]byte, error) {
	size := (b.len() + 7) / 8
	sealed := tx.Bucket(f.live).Get(b.key)
	if sealed == nil {
		return bytes.Repeat([]byte{0xff}, size), nil
	}
	bits, err := checkSum(f.sumLive, b.key, sealed)
	if err != nil {
		return nil, err
	}
	if len(bits) != size {
		return nil, fmt.Errorf("checking what is alive of the block at %x: %w", b.key, ErrDamaged)
	}
	return bytes.Clone(bits), nil
}

func isAlive(bits []byte, i int) bool { return bits[i/8]&(1<<(i%8)) != 0 }

// at gives the value of that key, where it lies in the file. ErrNotFound, ErrDamaged.
func (f family) at(tx *bbolt.Tx, key []byte) ([]byte, error) {
	if sealed := f.single(tx).Get(key); sealed != nil {
		return checkSum(f.bucket, key, sealed)
	}
	if len(key) != numberSize { // a part of a body
		return nil, ErrNotFound
	}
	b, i, ok, err := f.blockOf(tx.Bucket(f.blocks).Cursor(), binary.BigEndian.Uint64(key))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrNotFound
	}
	bits, err := f.alive(tx, b)
	if err != nil {
		return nil, err
	}
	if !isAlive(bits, i) {
		return nil, ErrNotFound
	}
	return checkSum(f.bucket, key, b.sealed(i))
}

// each gives every pair in the order of the keys, and checks it.
func (f family) each(tx *bbolt.Tx, yield func(key, value []byte) error) error {
	checked := func(key, sealed []byte) error {
		value, err := checkSum(f.bucket, key, sealed)
		if err != nil {
			return err
		}
		return yield(key, value)
	}
	singles := f.single(tx).Cursor()
	single, sealed := singles.First()
	err := tx.Bucket(f.blocks).ForEach(func(key, value []byte) error {
		b, err := f.readBlock(key, value)
		if err != nil {
			return err
		}
		bits, err := f.alive(tx, b)
		if err != nil {
			return err
		}
		for i := range b.len() {
			if !isAlive(bits, i) {
				continue
			}
			key := placeKey(b.place(i))
			for ; single != nil && bytes.Compare(single, key) < 0; single, sealed = singles.Next() {
				if err := checked(single, sealed); err != nil {
					return err
				}
			}
			if err := checked(key, b.sealed(i)); err != nil {
				return err
			}
		}
		return nil
	})
	for ; err == nil && single != nil; single, sealed = singles.Next() {
		err = checked(single, sealed)
	}
	return err
}

// placed values of a layer, in the order of their places, and nil for those that go.
func (w *writing) placed(f family, values []placed) error {
	single, blocks := f.single(w.tx), w.tx.Bucket(f.blocks)
	single.FillPercent, blocks.FillPercent = fillPercent, fillPercent
	beyond, err := f.firstFree(blocks)
	if err != nil {
		return err
	}
	var last reference
	if f.refers() {
		if last, err = lastReference(w.tx); err != nil {
			return err
		}
		beyond = max(beyond, last.place+1)
	}
	unused := max(beyond, firstUnused(single))
	var gone []uint64
	var alone, referred []placed
	small := make([]placed, 0, len(values))
	for _, p := range values {
		if p.value == nil && p.place < unused || p.place < beyond { // else it came and went within the layer
			gone = append(gone, p.place)
		}
		switch {
		case p.value == nil:
		case p.place < unused:
			alone = append(alone, p)
		case f.refers() && p.source.Index > w.mayRefer && p.source.Index >= last.index && len(p.value) >= fewestReferred:
			referred = append(referred, p)
			last.index = p.source.Index
		case len(p.value) > largest:
			alone = append(alone, p)
		default:
			small = append(small, p)
		}
	}
	if f.refers() {
		if gone, err = w.unrefer(gone); err != nil {
			return err
		}
		if err := w.refer(referred); err != nil {
			return err
		}
	}
	removal, err := w.remove(f, gone)
	if err != nil {
		return err
	}
	if err := w.carry(f, removal); err != nil {
		return err
	}
	return w.bring(f, small, alone)
}

// bring new values, the small ones in blocks, which must not reach into others.
func (w *writing) bring(f family, small, alone []placed) error {
	single, blocks := f.single(w.tx), w.tx.Bucket(f.blocks)
	for len(small) > 0 {
		n, size := 0, 0
		for n < len(small) && size < blockBytes {
			size += blockEntry + len(small[n].value) + sumSize
			n++
		}
		if n < fewest {
			alone = append(alone, small[:n]...)
		} else if err := blocks.Put(f.newBlock(small[:n], w.arena)); err != nil {
			return fmt.Errorf("writing a block: %w", err)
		}
		small = small[n:]
	}
	for _, p := range alone {
		if err := w.put(single, f.bucket, placeKey(p.place), p.value); err != nil {
			return err
		}
	}
	return nil
}

// firstFree is the first place behind all blocks.
func (f family) firstFree(blocks *bbolt.Bucket) (uint64, error) {
	key, value := blocks.Cursor().Last()
	if key == nil {
		return 0, nil
	}
	b, err := f.readBlock(key, value)
	if err != nil {
		return 0, err
	}
	return b.last() + 1, nil
}

// firstUnused is the first place behind all that have a value of their own.
func firstUnused(single *bbolt.Bucket) uint64 {
	key, _ := single.Cursor().Last()
	if len(key) < numberSize {
		return 0
	}
	return binary.BigEndian.Uint64(key) + 1 // a part's key goes on behind the place
}

// removal is what takes values out of the file. It is found before anything is written: a cursor of bbolt's may run for ever over
// pages that its transaction has emptied.
type removal struct {
	single    []uint64 // places of single values, if they are anywhere
	live      []named  // blocks, and what is alive of them now
	dissolved [][]byte // blocks
	survivors []placed // of those, with their sums
}

type named struct{ key, value []byte }

// remove the values from wherever they are. The places are in order.
func (w *writing) remove(f family, places []uint64) (r removal, err error) {
	cursor := w.tx.Bucket(f.blocks).Cursor()
	for len(places) > 0 {
		b, _, in, err := f.blockOf(cursor, places[0])
		if err != nil {
			return r, err
		}
		if !in {
			r.single = append(r.single, places[0])
			places = places[1:]
			continue
		}
		n := 1
		for n < len(places) && places[n] <= b.last() {
			n++
		}
		if err := r.from(f, w.tx, b, places[:n]); err != nil {
			return r, err
		}
		places = places[n:]
	}
	return r, nil
}

// from this block, those that it has.
func (r *removal) from(f family, tx *bbolt.Tx, b block, places []uint64) error {
	bits, err := f.alive(tx, b)
	if err != nil {
		return err
	}
	for _, place := range places {
		if i, ok := b.find(place); ok && isAlive(bits, i) {
			bits[i/8] &^= 1 << (i % 8)
		} else {
			r.single = append(r.single, place)
		}
	}
	left := 0 // bytes
	for i := range b.len() {
		if isAlive(bits, i) {
			left += len(b.sealed(i))
		}
	}
	key := bytes.Clone(b.key)
	if left*sparse >= len(b.bodies) {
		r.live = append(r.live, named{key, bits})
		return nil
	}
	r.dissolved = append(r.dissolved, key)
	for i := range b.len() {
		if isAlive(bits, i) {
			r.survivors = append(r.survivors, placed{place: b.place(i), value: bytes.Clone(b.sealed(i))})
		}
	}
	return nil
}

// carry a removal out.
func (w *writing) carry(f family, r removal) error {
	single, blocks, live := f.single(w.tx), w.tx.Bucket(f.blocks), w.tx.Bucket(f.live)
	for _, place := range r.single {
		if err := single.Delete(placeKey(place)); err != nil {
			return fmt.Errorf("removing the value at %d: %w", place, err)
		}
	}
	for _, key := range r.dissolved {
		if err := errors.Join(blocks.Delete(key), live.Delete(key)); err != nil {
			return fmt.Errorf("removing the block at %x: %w", key, err)
		}
	}
	for _, p := range r.survivors {
		if err := single.Put(placeKey(p.place), p.value); err != nil {
			return fmt.Errorf("moving the value at %d out of its block: %w", p.place, err)
		}
	}
	for _, n := range r.live {
		if err := w.put(live, f.sumLive, n.key, n.value); err != nil {
			return err
		}
	}
	return nil
}
