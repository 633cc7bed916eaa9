package store

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// arenaPiece is what an arena takes at once, in bytes.
const arenaPiece = 1 << 20

// arena is the memory of the values that one transaction writes: bbolt reads them until it has committed. The next transaction uses it
// again, as much as this one needed.
type arena struct {
	pieces [][]byte
	used   int // pieces; the last of them may have room
}

// take n bytes, of length 0.
func (a *arena) take(n int) []byte {
	if a.used > 0 {
		if piece := a.pieces[a.used-1]; cap(piece)-len(piece) >= n {
			return a.cut(n)
		}
	}
	if a.used == len(a.pieces) {
		a.pieces = append(a.pieces, nil)
	}
	if cap(a.pieces[a.used]) < n {
		a.pieces[a.used] = make([]byte, 0, max(n, arenaPiece))
	}
	a.used++
	return a.cut(n)
}

func (a *arena) cut(n int) []byte {
	piece := &a.pieces[a.used-1]
	from := len(*piece)
	*piece = (*piece)[:from+n]
	return (*piece)[from : from : from+n]
}

// reset after a transaction.
func (a *arena) reset() {
	a.pieces = a.pieces[:a.used:a.used]
	for i, piece := range a.pieces {
		a.pieces[i] = piece[:0]
	}
	a.used = 0
}

// sealed is the value with its sum.
func (a *arena) sealed(b fsm.Bucket, key, value []byte) []byte {
	return appendSealed(a.take(len(value)+sumSize), b, key, value)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumSize of the CRC-32C behind each value in the file.
const sumSize = 4

// sum of a value in its place: one that turns up elsewhere does not fit.
func sum(b fsm.Bucket, key, value []byte) uint32 {
	c := crc32.Update(uint32(b), castagnoli, key)
	return crc32.Update(c, castagnoli, value)
}

func appendSealed(to []byte, b fsm.Bucket, key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(append(to, value...), sum(b, key, value))
}

// withSum is appendSealed into memory of its own.
func withSum(b fsm.Bucket, key, value []byte) []byte {
	return appendSealed(make([]byte, 0, len(value)+sumSize), b, key, value)
}
