package fsm

import (
	"iter"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// backlog holds the calls that were accepted and not touched since: a million of them must fit in memory, so they are 40 bytes
// each, in chunks that the garbage collector does not look into, and about 13 in the table. A call that is touched leaves it
// for good and becomes one of Machine.calls. In order of acceptance.
type backlog struct {
	table  table
	chunks []*chunk // by number; nil: free
	free   []uint32 // numbers of the nil ones
	order  []uint32 // numbers of the others, oldest first; the last one is being filled
	size   int
	last   uint64 // sequence of the newest call that was ever added
}

const chunkSize = 512

type chunk struct {
	calls [chunkSize]plain
	begun int // how many have been added
	left  int // of those
}

// plain is a call of which nothing is known but its acceptance; seq 0: gone.
type plain struct {
	id       command.ID
	seq      uint64
	enqueued int64
	function uint32 // its number
	size     uint32
}

func (b *backlog) at(position uint32) *plain {
	return &b.chunks[position/chunkSize].calls[position%chunkSize]
}

func (b *backlog) find(id command.ID) (position uint32, ok bool) {
	return b.table.find(id, func(p uint32) bool { return b.at(p).id == id })
}

// add a call that is newer than all before.
func (b *backlog) add(p plain) {
	var c *chunk
	if n := len(b.order); n > 0 {
		c = b.chunks[b.order[n-1]]
	}
	if c == nil || c.begun == chunkSize {
		c = b.extend()
	}
	position := b.order[len(b.order)-1]*chunkSize + uint32(c.begun)
	c.calls[c.begun] = p
	c.begun++
	c.left++
	b.size++
	b.last = p.seq
	b.table.add(p.id, position)
}

func (b *backlog) extend() *chunk {
	c := new(chunk)
	if n := len(b.free); n > 0 {
		number := b.free[n-1]
		b.free = b.free[:n-1]
		b.chunks[number] = c
		b.order = append(b.order, number)
		return c
	}
	b.order = append(b.order, uint32(len(b.chunks)))
	b.chunks = append(b.chunks, c)
	return c
}

// remove the call at a position; its chunk goes with the last one.
func (b *backlog) remove(position uint32) plain {
	p := *b.at(position)
	*b.at(position) = plain{}
	b.table.remove(p.id, position)
	b.size--
	number := position / chunkSize
	c := b.chunks[number]
	c.left--
	if c.left > 0 {
		return p
	}
	if i := slices.Index(b.order, number); c.begun == chunkSize || i < len(b.order)-1 { // the oldest one, as a rule
		b.order = slices.Delete(b.order, i, i+1)
		b.chunks[number] = nil
		b.free = append(b.free, number)
	}
	return p
}

func (b *backlog) all() iter.Seq[*plain] {
	return func(yield func(*plain) bool) {
		for _, number := range b.order {
			c := b.chunks[number]
			for i := range c.begun {
				if p := &c.calls[i]; p.seq != 0 && !yield(p) {
					return
				}
			}
		}
	}
}

// bytes of memory, about.
func (b *backlog) bytes() int {
	words := 0
	for i := range b.table.shards {
		words += len(b.table.shards[i].words)
	}
	return len(b.order)*chunkSize*40 + words*8
}

// known says whether the machine has a call, at rest or not.
func (m *Machine) known(id command.ID) bool {
	if _, ok := m.calls[id]; ok {
		return true
	}
	_, ok := m.backlog.find(id)
	return ok
}

// find a call that is about to change: one of the backlog leaves it.
func (m *Machine) find(id command.ID) (*call, bool) {
	if c, ok := m.calls[id]; ok {
		return c, true
	}
	position, ok := m.backlog.find(id)
	if !ok {
		return nil, false
	}
	c := m.awaken(m.backlog.remove(position))
	c.sum = recordHash(BucketCall, numberKey(c.seq), encodeCall(c))
	m.calls[id] = c
	m.unfinished.push(c)
	return c, true
}

func (m *Machine) awaken(p plain) *call {
	return &call{id: p.id, seq: p.seq, function: m.numbered[p.function], enqueued: p.enqueued, size: p.size, state: Queued}
}

// rest puts a call into the backlog if there is nothing to it but its acceptance.
func (m *Machine) rest(c *call) {
	if c.seq <= m.backlog.last || !c.plain() {
		return
	}
	delete(m.calls, c.id)
	m.unfinished.remove(c)
	m.backlog.add(plain{id: c.id, seq: c.seq, enqueued: c.enqueued, function: c.function.number, size: c.size})
	if len(m.spare) < mostSpare {
		*c = call{}
		m.spare = append(m.spare, c)
	}
}

// mostSpare calls are kept for those to come: about as many as an entry brings.
const mostSpare = 512

// fresh is a new call, of the memory of one that is in the backlog now.
func (m *Machine) fresh() *call {
	n := len(m.spare)
	if n == 0 {
		return &call{}
	}
	c := m.spare[n-1]
	m.spare = m.spare[:n-1]
	return c
}

// plain says whether awaken would make the same call again.
func (c *call) plain() bool {
	return c.state == Queued && c.try == nil && c.extras == nil && c.tries == 0 && c.maxTries == 0 && c.started == 0 && c.nextTry == 0 &&
		c.lastStatus == 0 && c.lastError == ""
}
