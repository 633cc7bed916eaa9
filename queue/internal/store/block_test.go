package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/logfile"
)

// payloadWorld is a store and what must be in it.
type payloadWorld struct {
	t      *testing.T
	s      *Store
	dir    string
	rand   *rand.Rand
	alive  map[uint64][]byte
	gone   map[uint64]bool
	next   uint64 // place
	index  uint64
	log    *logfile.Log // nil: there is none to refer to
	logDir string
}

func (w *payloadWorld) random(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(w.rand.Uint32())
	}
	return b
}

// layer commits some payloads, and the end of some that were there, and writes them.
func (w *payloadWorld) layer() {
	w.t.Helper()
	var ops []fsm.Op
	w.index++
	entry := []byte("an entry")
	put := func(place uint64, payload []byte) {
		w.alive[place] = payload
		delete(w.gone, place)
		op := fsm.Op{Bucket: fsm.BucketPayload, Key: placeKey(place), Value: payload}
		if w.log != nil && w.rand.IntN(8) > 0 { // the others are answers, which nobody asks for in the log
			op.Source = fsm.Source{Index: w.index, Offset: uint32(len(entry))}
			entry = append(entry, payload...)
		}
		ops = append(ops, op)
	}
	remove := func(place uint64) {
		delete(w.alive, place)
		w.gone[place] = true
		ops = append(ops, fsm.Op{Bucket: fsm.BucketPayload, Key: placeKey(place)})
	}
	for range w.rand.IntN(300) {
		w.next += 1 + w.rand.Uint64N(3)
		size := w.rand.IntN(2000)
		if w.rand.IntN(10) == 0 {
			size = w.rand.IntN(2 * largest)
		}
		put(w.next, w.random(size))
		if w.rand.IntN(5) == 0 { // over before it was written
			remove(w.next)
		}
	}
	places := slices.Sorted(maps.Keys(w.alive))
	switch w.rand.IntN(4) {
	case 0: // the oldest, as a queue does
		for _, place := range places[:w.rand.IntN(len(places)+1)] {
			remove(place)
		}
	case 1: // nearly all, which leaves sparse blocks
		for _, place := range places {
			if w.rand.IntN(10) > 0 {
				remove(place)
			}
		}
	default:
		for _, place := range places {
			if w.rand.IntN(5) == 0 {
				remove(place)
			}
		}
	}
	if w.next > 0 && w.rand.IntN(3) == 0 { // what nobody does: a place anew, before others
		put(1+w.rand.Uint64N(w.next), w.random(w.rand.IntN(2000)))
	}
	if w.log != nil {
		if err := w.log.Append(w.index, [][][]byte{{entry}}); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := errors.Join(w.s.Commit(w.index, ops), w.s.Flush(w.index)); err != nil {
		w.t.Fatal(err)
	}
}

// cut the log somewhere, as a node does.
func (w *payloadWorld) cut() {
	w.t.Helper()
	upTo := w.rand.Uint64N(w.index + 1)
	if err := errors.Join(w.s.Forget(upTo), w.log.CutFront(upTo)); err != nil {
		w.t.Fatal(err)
	}
}

// readableLog is a log as the store reads it.
type readableLog struct{ *logfile.Log }

func (l readableLog) ReadData(index uint64, offset uint32, part []byte) error {
	err := l.ReadPart(index, int64(offset), part)
	if errors.Is(err, logfile.ErrNotFound) {
		return ErrCut
	}
	return err
}

type newestSegment struct{ first uint64 }

func (n *newestSegment) Load() (uint64, error)    { return n.first, nil }
func (n *newestSegment) Store(first uint64) error { n.first = first; return nil }

func (w *payloadWorld) open() {
	w.t.Helper()
	var log Log
	if w.log != nil {
		log = readableLog{w.log}
	}
	s, err := Open(w.dir, w.index, log)
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
}

func (w *payloadWorld) reopen() {
	w.t.Helper()
	if err := w.s.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

// check that each payload is where it should be, and none in two places.
func (w *payloadWorld) check() (blocks int) {
	w.t.Helper()
	for place, want := range w.alive {
		if got, err := w.s.Payload(place); err != nil || !bytes.Equal(got, want) {
			w.t.Fatalf("payload %d: %d bytes, want %d: %v", place, len(got), len(want), err)
		}
	}
	for place := range w.gone {
		if _, err := w.s.Payload(place); !errors.Is(err, ErrNotFound) {
			w.t.Fatalf("payload %d, which is gone: %v", place, err)
		}
	}
	err := w.s.db.View(func(tx *bbolt.Tx) error {
		found, last := 0, uint64(0)
		err := tx.Bucket(payloads.blocks).ForEach(func(key, value []byte) error {
			b, err := payloads.readBlock(key, value)
			if err != nil {
				return err
			}
			bits, err := payloads.alive(tx, b)
			if err != nil {
				return err
			}
			left := 0
			for i := range b.len() {
				if b.place(i) <= last {
					w.t.Errorf("the block at %x has place %d, which is not beyond %d", key, b.place(i), last)
				}
				last = b.place(i)
				if isAlive(bits, i) {
					found++
					left += len(b.sealed(i))
					if _, ok := w.alive[b.place(i)]; !ok || tx.Bucket(bucketNames[fsm.BucketPayload]).Get(placeKey(b.place(i))) != nil {
						w.t.Errorf("payload %d of the block at %x is dead, or lies in two places", b.place(i), key)
					}
				}
			}
			if left*sparse < len(b.bodies) {
				w.t.Errorf("the block at %x has %d bytes alive of %d", key, left, len(b.bodies))
			}
			blocks++
			return nil
		})
		found += tx.Bucket(bucketNames[fsm.BucketPayload]).Stats().KeyN
		referred := int64(0)
		err = errors.Join(err, tx.Bucket(bucketReferences).ForEach(func(key, sealed []byte) error {
			list, err := readReferences(key, sealed)
			if err != nil {
				return err
			}
			for i := range list.len() {
				found++
				referred += int64(list.at(i).length)
				if _, err := payloads.at(tx, placeKey(list.at(i).place)); !errors.Is(err, ErrNotFound) {
					w.t.Errorf("payload %d lies in the file, and a reference is to it: %v", list.at(i).place, err)
				}
			}
			return nil
		}))
		if referred != w.s.referred.Load() {
			w.t.Errorf("references to %d bytes, counted as %d", referred, w.s.referred.Load())
		}
		if found != len(w.alive) {
			w.t.Errorf("the file has %d payloads, want %d", found, len(w.alive))
		}
		if n := tx.Bucket(payloads.live).Stats().KeyN; n > blocks {
			w.t.Errorf("%d records of what is alive for %d blocks", n, blocks)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
	return blocks
}

func newPayloadWorld(t *testing.T, seed uint64, withLog bool) *payloadWorld {
	t.Helper()
	w := &payloadWorld{t: t, dir: t.TempDir(), rand: rand.New(rand.NewPCG(seed, 1)), alive: map[uint64][]byte{}, gone: map[uint64]bool{}}
	if withLog {
		w.logDir = t.TempDir()
		log, err := logfile.Open(w.logDir, &newestSegment{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = log.Close() })
		w.log = log
	}
	w.open()
	t.Cleanup(func() { _ = w.s.Close() })
	return w
}

func TestPayloadsComeAndGoInAnyOrder(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newPayloadWorld(t, seed, false)
	most := 0
	for i := range 60 {
		w.layer()
		most = max(most, w.check())
		if i%10 == 9 {
			w.reopen()
			w.check()
		}
	}
	if most < 3 {
		t.Errorf("never more than %d blocks: this tests nothing", most)
	}
	var ops []fsm.Op
	for place := range w.alive {
		ops = append(ops, fsm.Op{Bucket: fsm.BucketPayload, Key: placeKey(place)})
		w.gone[place] = true
	}
	clear(w.alive)
	w.index++
	if err := errors.Join(w.s.Commit(w.index, ops), w.s.Flush(w.index)); err != nil {
		t.Fatal(err)
	}
	if blocks := w.check(); blocks != 0 {
		t.Errorf("%d blocks are left of nothing", blocks)
	}
}

// A bit that is flipped in a block, or in its record of what is alive, is damage, or nothing: never another payload.
func TestADamagedBlockServesNothingWrong(t *testing.T) {
	t.Parallel()
	values := []placed{{place: 7, value: []byte("one")}, {place: 9, value: []byte("the other")}, {place: 12, value: bytes.Repeat([]byte("x"), 99)}}
	key, good := payloads.newBlock(values, &arena{})
	for bit := range len(good) * 8 {
		value := bytes.Clone(good)
		value[bit/8] ^= 1 << (bit % 8)
		b, err := payloads.readBlock(key, value)
		if err != nil {
			continue
		}
		intact := 0
		for i, p := range values {
			got, err := checkSum(fsm.BucketPayload, placeKey(p.place), b.sealed(i))
			if err == nil && !bytes.Equal(got, p.value) {
				t.Fatalf("bit %d: payload %d is %q", bit, p.place, got)
			}
			if err == nil {
				intact++
			}
		}
		if intact == len(values) {
			t.Fatalf("bit %d is not missed", bit)
		}
	}
	for size := range len(good) {
		if _, err := payloads.readBlock(key, good[:size]); err == nil {
			t.Fatalf("the first %d bytes of %d are a block", size, len(good))
		}
	}
	if _, err := payloads.readBlock(placeKey(8), good); !errors.Is(err, ErrDamaged) {
		t.Errorf("a block in another's place: %v", err)
	}
}

func TestStateOfANewerProgramIsRefusedAndOfAnOlderOneTaken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	change := func(with func(tx *bbolt.Tx) error) {
		t.Helper()
		db, err := bbolt.Open(dir+"/"+stateFile, fileMode, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(with), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	// Version 1 is without blocks and without a record of its version.
	change(func(tx *bbolt.Tx) error {
		for _, name := range append(bucketNames[:], bucketApplied) {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		key := placeKey(3)
		return errors.Join(putNumber(tx, keyApplied, 5), tx.Bucket(bucketNames[fsm.BucketPayload]).Put(key, withSum(fsm.BucketPayload, key, []byte("old"))))
	})
	s, err := Open(dir, 5, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Payload(3); string(got) != "old" || s.Durable() != 5 {
		t.Errorf("payload %q, %v, of a state at %d", got, err, s.Durable())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	change(func(tx *bbolt.Tx) error { return putNumber(tx, keyVersion, stateVersion+1) })
	if _, err := Open(dir, 5, nil); !errors.Is(err, ErrVersion) {
		t.Errorf("a newer version: %v", err)
	}
}

func BenchmarkWriteLayer(b *testing.B) {
	payload, record := bytes.Repeat([]byte("x"), 1100), bytes.Repeat([]byte("y"), 120)
	s, err := Open(b.TempDir(), 0, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	const calls = 6500
	for place := uint64(0); b.Loop(); {
		l := newLayer()
		for range calls {
			place++
			key := binary.BigEndian.AppendUint64(nil, place)
			l.put(fsm.Op{Bucket: fsm.BucketPayload, Key: key, Value: payload})
			l.put(fsm.Op{Bucket: fsm.BucketCall, Key: key, Value: record})
		}
		l.index = place
		if err := s.writeLayer(l); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/calls, "µs/call")
}

// Records are written again with each step of a call: whatever comes and goes, the file gives each once, as it was written last, in
// the order of the calls.
func TestRecordsComeChangeAndGoInAnyOrder(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	dir := t.TempDir()
	s, err := Open(dir, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	now, place, index, most := map[uint64]string{}, uint64(0), uint64(0), 0
	for round := range 80 {
		var ops []fsm.Op
		put := func(at uint64) {
			value := fmt.Sprintf("%d in round %d %s", at, round, strings.Repeat("x", random.IntN(200)))
			now[at] = value
			ops = append(ops, fsm.Op{Bucket: fsm.BucketCall, Key: placeKey(at), Value: []byte(value)})
		}
		for range []int{0, 1, 2, 700}[random.IntN(4)] {
			place += 1 + random.Uint64N(3)
			put(place)
		}
		all := slices.Sorted(maps.Keys(now))
		fresh := all[max(0, len(all)-random.IntN(900)):]
		for _, at := range fresh {
			if random.IntN(3) == 0 {
				put(at)
			}
		}
		for _, at := range all[:random.IntN(len(all)+1)] {
			if random.IntN(2) == 0 {
				delete(now, at)
				ops = append(ops, fsm.Op{Bucket: fsm.BucketCall, Key: placeKey(at)})
			}
		}
		index++
		if err := errors.Join(s.Commit(index, ops), s.Flush(index)); err != nil {
			t.Fatal(err)
		}
		if round%10 == 9 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(dir, index, nil); err != nil {
				t.Fatal(err)
			}
		}
		want := slices.Sorted(maps.Keys(now))
		err := s.Each(func(op fsm.Op) error {
			if len(want) == 0 || string(op.Key) != string(placeKey(want[0])) || string(op.Value) != now[want[0]] {
				return fmt.Errorf("round %d: %x is %.40q, want the record of %v", round, op.Key, op.Value, want[:min(1, len(want))])
			}
			want = want[1:]
			return nil
		})
		if err != nil || len(want) > 0 {
			t.Fatalf("round %d: %d records are missing: %v", round, len(want), err)
		}
		_ = s.db.View(func(tx *bbolt.Tx) error {
			most = max(most, tx.Bucket(records.blocks).Stats().KeyN)
			return nil
		})
	}
	if most < 2 {
		t.Errorf("never more than %d blocks: this tests nothing", most)
	}
}

// BenchmarkWriteRecords: calls of which each layer begins as many as it changes of the layer before, in blocks and single.
func BenchmarkWriteRecords(b *testing.B) {
	record := bytes.Repeat([]byte("y"), 120)
	for name, bucket := range map[string]fsm.Bucket{"blocks": fsm.BucketCall, "single": fsm.BucketSession} {
		b.Run(name, func(b *testing.B) {
			s, err := Open(b.TempDir(), 0, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			const calls = 6500
			for place := uint64(0); b.Loop(); {
				l := newLayer()
				for range calls {
					place++
					l.put(fsm.Op{Bucket: bucket, Key: placeKey(place), Value: record})
					if place > calls {
						l.put(fsm.Op{Bucket: bucket, Key: placeKey(place - calls), Value: record})
					}
					if place > 3*calls {
						l.put(fsm.Op{Bucket: bucket, Key: placeKey(place - 3*calls)})
					}
				}
				l.index = place
				if err := s.writeLayer(l); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/calls, "µs/call")
		})
	}
}
