package fsm

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// Against a map: calls come in order and leave in any; each is found while it is there, and only then; memory goes with them.
func TestBacklogFindsExactlyWhatIsInIt(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	b := backlog{table: newTable()}
	id := func(seq uint64) (id command.ID) {
		binary.BigEndian.PutUint64(id[4:], seq)
		return id
	}
	held := map[uint64]bool{}
	remove := func(seq uint64) {
		position, ok := b.find(id(seq))
		if ok != held[seq] {
			t.Fatalf("call %d: found %t, held %t", seq, ok, held[seq])
		}
		if ok {
			if p := b.remove(position); p.seq != seq || p.id != id(seq) {
				t.Fatalf("removed %+v, want %d", p, seq)
			}
			delete(held, seq)
		}
	}
	seq := uint64(0)
	for range 3 { // fill, then drain
		for range 40_000 {
			seq++
			b.add(plain{id: id(seq), seq: seq, size: uint32(seq)})
			held[seq] = true
			if random.IntN(3) == 0 {
				remove(1 + random.Uint64N(seq+10))
			}
		}
		last, n := uint64(0), 0
		for p := range b.all() {
			if p.seq <= last || !held[p.seq] {
				t.Fatalf("%d after %d", p.seq, last)
			}
			last = p.seq
			n++
		}
		if n != len(held) || b.size != n {
			t.Fatalf("%d calls, %d said, %d held", n, b.size, len(held))
		}
		for s := range held {
			remove(s)
		}
		if b.bytes() > 64<<10 || b.size != 0 {
			t.Fatalf("%d bytes for %d calls", b.bytes(), b.size)
		}
	}
}

// The incremental hash is that of the records, in whatever order they came; one different bit anywhere is another one.
func TestHashIsOfTheRecords(t *testing.T) {
	t.Parallel()
	accepted := func(payload string, functions ...string) *Machine {
		m := New()
		for i, f := range functions {
			m.Apply(uint64(i+1), command.Batch{Commands: []command.Command{
				command.Accept{ID: command.ID{byte(i)}, Function: f, Payload: []byte(payload)},
			}})
		}
		return m
	}
	m := accepted("payload", "a", "b", "a")
	var want uint64
	if err := m.Each(func(o Op) error { want += recordHash(o.Bucket, o.Key, o.Value); return nil }); err != nil {
		t.Fatal(err)
	}
	if m.Hash() != want {
		t.Fatalf("%x, records say %x", m.Hash(), want)
	}
	seen := map[uint64]int{m.Hash(): -1}
	for i, other := range []*Machine{
		New(), accepted("pbyload", "a", "b", "a"), accepted("payload", "b", "a", "a"), accepted("payload", "a", "b"),
		accepted("payload", "a", "b", "a", "a"),
	} {
		if twin, ok := seen[other.Hash()]; ok {
			t.Fatalf("states %d and %d have the same hash", i, twin)
		}
		seen[other.Hash()] = i
	}
	key := numberKey(7)
	for length := range 40 {
		value := make([]byte, length)
		base := recordHash(BucketCall, key, value)
		for bit := range length * 8 {
			value[bit/8] ^= 1 << (bit % 8)
			if recordHash(BucketCall, key, value) == base {
				t.Fatalf("bit %d of %d bytes changes nothing", bit, length)
			}
			value[bit/8] ^= 1 << (bit % 8)
		}
		if recordHash(BucketCall, key, append(value, 0)) == base || recordHash(BucketLock, key, value) == base {
			t.Fatal("length or bucket changes nothing")
		}
	}
}
