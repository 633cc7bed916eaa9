package command

import (
	"encoding/binary"
	"math"
)

// writer appends the fields of one command.
type writer struct {
	b        []byte
	tooLarge bool
}

func (w *writer) id(id ID)      { w.b = append(w.b, id[:]...) }
func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) int(v int64)   { w.b = binary.AppendVarint(w.b, v) }

func (w *writer) bool(v bool) {
	if v {
		w.b = append(w.b, 1)
	} else {
		w.b = append(w.b, 0)
	}
}

func (w *writer) text(s string, limit int) {
	if len(s) > limit {
		w.tooLarge = true
		return
	}
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

// reader takes the fields of one command. After the first field that does not fit it is bad and gives zero values only.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.b, r.bad = nil, true
}

func (r *reader) id() (id ID) {
	if len(r.b) < len(id) {
		r.fail()
		return ID{}
	}
	copy(id[:], r.b)
	r.b = r.b[len(id):]
	return id
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uint()
	if v > math.MaxUint32 {
		r.fail()
		return 0
	}
	return uint32(v)
}

func (r *reader) uint8() uint8 {
	v := r.uint()
	if v > math.MaxUint8 {
		r.fail()
		return 0
	}
	return uint8(v)
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bool() bool {
	if len(r.b) == 0 || r.b[0] > 1 {
		r.fail()
		return false
	}
	v := r.b[0] == 1
	r.b = r.b[1:]
	return v
}

func (r *reader) text(limit int) string {
	size := r.uint()
	if r.bad || size > uint64(limit) || size > uint64(len(r.b)) {
		r.fail()
		return ""
	}
	s := string(r.b[:size])
	r.b = r.b[size:]
	return s
}
