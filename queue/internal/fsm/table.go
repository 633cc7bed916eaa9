package fsm

import (
	"hash/maphash"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// shards of a table grow one at a time, so that no single entry pays for all.
const shards = 256

// table finds the position of a value by its call's id: open addressing, one word per value (half the id's hash, the
// position), nothing for the garbage collector to look into. It does not keep the ids; whoever has the values does.
type table struct {
	seed   maphash.Seed // differs in each process; nothing that leaves the machine depends on it
	shards [shards]shard
}

type shard struct {
	words []uint64 // hash<<32 | position+1; 0: empty, and some always are
	used  int
}

func newTable() table { return table{seed: maphash.MakeSeed()} }

func (t *table) hash(id command.ID) (s *shard, tag uint32) {
	h := maphash.Bytes(t.seed, id[:])
	return &t.shards[h>>56], uint32(h)
}

func wordOf(tag, position uint32) uint64 { return uint64(tag)<<32 | uint64(position+1) }

func (s *shard) mask() uint32 { return uint32(len(s.words) - 1) }

// find the position for which is says that it is the id's.
func (t *table) find(id command.ID, is func(position uint32) bool) (position uint32, ok bool) {
	s, tag := t.hash(id)
	if s.used == 0 {
		return 0, false
	}
	for i := tag & s.mask(); s.words[i] != 0; i = (i + 1) & s.mask() {
		if uint32(s.words[i]>>32) == tag && is(uint32(s.words[i])-1) {
			return uint32(s.words[i]) - 1, true
		}
	}
	return 0, false
}

// warm has the word that a search for the id begins with brought into the processor's cache. One after the other for all ids of an entry,
// these waits for memory overlap; one by one they are half of what an accept costs where a million wait. What it returns says nothing.
func (t *table) warm(id command.ID) uint64 {
	s, tag := t.hash(id)
	if s.used == 0 {
		return 0
	}
	return s.words[tag&s.mask()]
}

// add an id that is not in the table.
func (t *table) add(id command.ID, position uint32) {
	s, tag := t.hash(id)
	if (s.used+1)*4 > len(s.words)*3 {
		s.resize(max(8, 2*len(s.words)))
	}
	s.put(wordOf(tag, position))
	s.used++
}

func (s *shard) resize(size int) {
	old := s.words
	s.words = make([]uint64, size)
	for _, w := range old {
		if w != 0 {
			s.put(w)
		}
	}
}

func (s *shard) put(w uint64) {
	i := uint32(w>>32) & s.mask()
	for s.words[i] != 0 {
		i = (i + 1) & s.mask()
	}
	s.words[i] = w
}

// remove an id that is in the table at this position, and close the gap.
func (t *table) remove(id command.ID, position uint32) {
	s, tag := t.hash(id)
	mask := s.mask()
	gap := tag & mask
	for s.words[gap] != wordOf(tag, position) {
		gap = (gap + 1) & mask
	}
	for i := (gap + 1) & mask; s.words[i] != 0; i = (i + 1) & mask {
		if home := uint32(s.words[i]>>32) & mask; (i-home)&mask >= (i-gap)&mask {
			s.words[gap] = s.words[i]
			gap = i
		}
	}
	s.words[gap] = 0
	s.used--
	if len(s.words) > 8 && s.used*8 < len(s.words) {
		s.resize(len(s.words) / 2)
	}
}
