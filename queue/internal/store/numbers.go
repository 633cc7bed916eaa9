package store

import (
	"maps"
	"math/bits"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// numbered maps numbers that mostly lie close together, as places do, to values; nil values are values. It is made of pieces of
// consecutive numbers: a map with each number took four times as long, and its keys had to be sorted. The zero value is empty.
type numbered struct {
	pieces map[uint64]*piece // by number/pieceSize
	last   *piece            // put to or got from, at
	at     uint64
	size   int
}

const (
	pieceSize = 64
	// pieceBytes a piece takes, about.
	pieceBytes = pieceSize*24 + 64
	// sourceBytes of a piece that has sources, about.
	sourceBytes = pieceSize * 16
)

type piece struct {
	known   uint64 // a bit each
	values  [pieceSize][]byte
	sources *[pieceSize]fsm.Source // nil: none has one
}

func (n *numbered) piece(number uint64) *piece {
	if at := number / pieceSize; n.last == nil || n.at != at {
		p := n.pieces[at]
		if p == nil {
			return nil
		}
		n.last, n.at = p, at
	}
	return n.last
}

// put a value, and where in the log it is, too. grown says how many bytes of memory it took for itself.
func (n *numbered) put(number uint64, value []byte, source fsm.Source) (grown int) {
	p := n.piece(number)
	if p == nil {
		if n.pieces == nil {
			n.pieces = map[uint64]*piece{}
		}
		p = &piece{}
		at := number / pieceSize
		n.pieces[at] = p
		n.last, n.at = p, at
		grown = pieceBytes
	}
	i := number % pieceSize
	if p.known&(1<<i) == 0 {
		p.known |= 1 << i
		n.size++
	}
	p.values[i] = value
	if p.sources == nil && source != (fsm.Source{}) {
		p.sources = &[pieceSize]fsm.Source{}
		grown += sourceBytes
	}
	if p.sources != nil {
		p.sources[i] = source
	}
	return grown
}

func (n *numbered) get(number uint64) (value []byte, known bool) {
	p := n.piece(number)
	if p == nil {
		return nil, false
	}
	i := number % pieceSize
	return p.values[i], p.known&(1<<i) != 0
}

// sorted are all of them in the order of their numbers.
func (n *numbered) sorted() []placed {
	all := make([]placed, 0, n.size)
	for _, at := range slices.Sorted(maps.Keys(n.pieces)) {
		p := n.pieces[at]
		for left := p.known; left != 0; left &= left - 1 {
			i := bits.TrailingZeros64(left)
			next := placed{place: at*pieceSize + uint64(i), value: p.values[i]}
			if p.sources != nil {
				next.source = p.sources[i]
			}
			all = append(all, next)
		}
	}
	return all
}
