package fsm

import (
	"encoding/binary"
	"errors"
)

// Records as the store keeps them. The version of the whole is the snapshot's.

var (
	keyState        = []byte("state")
	keyInstallation = []byte("installation")
)

var errRecord = errors.New("record is malformed")

func (m *Machine) encodeState() []byte {
	b := binary.AppendVarint(make([]byte, 0, 50), m.now)
	b = binary.AppendUvarint(b, m.seq)
	b = binary.AppendUvarint(b, m.ended)
	b = binary.AppendUvarint(b, m.issued)
	return binary.AppendUvarint(b, m.payloads)
}

func (m *Machine) decodeState(value []byte) error {
	r := record{b: value}
	m.now, m.seq, m.ended, m.issued, m.payloads = r.int(), r.uint(), r.uint(), r.uint(), r.uint()
	return r.end()
}

func encodeCall(c *call) []byte { return appendCall(make([]byte, 0, callBytes(c)), c) }

// callBytes are enough for the record of nearly every call.
func callBytes(c *call) int {
	n := 48 + len(c.function.name) + len(c.lastError)
	if c.state != Queued || c.extras != nil {
		n += 64
	}
	return n
}

func appendCall(b []byte, c *call) []byte {
	b = append(b, c.id[:]...)
	b = append(b, byte(c.state))
	b = appendText(b, c.function.name)
	b = binary.AppendUvarint(b, uint64(c.tries))
	b = binary.AppendUvarint(b, uint64(c.maxTries))
	b = binary.AppendVarint(b, c.enqueued)
	b = binary.AppendVarint(b, c.started)
	b = binary.AppendVarint(b, c.nextTry)
	b = binary.AppendVarint(b, c.finished)
	b = binary.AppendUvarint(b, uint64(c.lastStatus))
	b = appendText(b, c.lastError)
	b = binary.AppendUvarint(b, uint64(c.size))
	b = binary.AppendUvarint(b, c.ended)
	if c.try != nil {
		b = binary.AppendUvarint(b, c.try.session)
		b = binary.AppendUvarint(b, c.try.fence)
		b = appendText(b, c.try.replica)
		b = append(b, byte(c.try.from))
		b = binary.AppendVarint(b, c.try.started)
	}
	if x := c.extras; x != nil {
		b = binary.AppendVarint(b, x.expire)
		b = binary.AppendUvarint(b, x.keepFor)
		b = binary.AppendUvarint(b, x.answer)
		b = binary.AppendVarint(b, x.keptUntil)
		if x.body != nil {
			b = appendBody(b, x.body)
		}
	}
	return b
}

func (m *Machine) decodeCall(key, value []byte) (*call, error) {
	if len(key) != 8 || len(value) < 17 {
		return nil, errRecord
	}
	c := &call{seq: binary.BigEndian.Uint64(key), state: State(value[16])}
	copy(c.id[:], value)
	r := record{b: value[17:]}
	c.function = m.intern(r.text())
	c.tries, c.maxTries = uint32(r.uint()), uint32(r.uint())
	c.enqueued, c.started, c.nextTry, c.finished = r.int(), r.int(), r.int(), r.int()
	c.lastStatus = uint32(r.uint())
	c.lastError = r.text()
	c.size = uint32(r.uint())
	c.ended = r.uint()
	if c.state == Running || c.state == Awaiting {
		c.try = &try{session: r.uint(), fence: r.uint(), replica: r.text(), from: State(r.uint()), started: r.int()}
	}
	if len(r.b) > 0 {
		c.extras = &extras{expire: r.int(), keepFor: r.uint(), answer: r.uint(), keptUntil: r.int()}
		if len(r.b) > 0 {
			c.extras.body = r.body()
		}
	}
	return c, r.end()
}

func encodeCounters(n Counters) []byte {
	b := make([]byte, 0, 24)
	for _, v := range []uint64{n.Accepted, n.Redriven, n.Succeeded, n.Dead, n.Cancelled} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// decodeCounters leaves the gauges alone: they are counted from the calls.
func decodeCounters(n *Counters, value []byte) error {
	r := record{b: value}
	n.Accepted, n.Redriven, n.Succeeded, n.Dead, n.Cancelled = r.uint(), r.uint(), r.uint(), r.uint(), r.uint()
	return r.end()
}

func encodeSession(s *Session) []byte {
	b := appendText(nil, s.Name)
	b = appendText(b, s.Incarnation)
	b = append(b, s.Kind)
	b = appendText(b, s.Address)
	var vanished byte
	if s.Vanished {
		vanished = 1
	}
	b = append(b, vanished)
	return binary.AppendVarint(b, s.EndedUnixMs)
}

func decodeSession(key, value []byte) (*Session, error) {
	if len(key) != 8 {
		return nil, errRecord
	}
	r := record{b: value}
	s := &Session{ID: binary.BigEndian.Uint64(key), Name: r.text(), Incarnation: r.text(), Kind: r.byte(), Address: r.text()}
	s.Vanished = r.byte() == 1
	s.EndedUnixMs = r.int()
	return s, r.end()
}

func encodeLock(l Lock) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, l.Session), l.Token)
}

func decodeLock(key, value []byte) (Lock, error) {
	r := record{b: value}
	l := Lock{Name: string(key), Session: r.uint(), Token: r.uint()}
	return l, r.end()
}

func encodeTime(unixMs int64) []byte { return binary.AppendVarint(nil, unixMs) }

func decodeTime(value []byte) (int64, error) {
	r := record{b: value}
	t := r.int()
	return t, r.end()
}

func encodeOverride(o Override) []byte {
	return binary.AppendVarint(binary.AppendVarint(nil, int64(o.Replicas)), o.UntilUnixMs)
}

func decodeOverride(key, value []byte) (Override, error) {
	r := record{b: value}
	o := Override{Function: string(key), Replicas: int32(r.int()), UntilUnixMs: r.int()}
	return o, r.end()
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// record reads the fields of one value; what does not fit makes end fail.
type record struct {
	b   []byte
	bad bool
}

func (r *record) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	return advance(r, v, n)
}

func (r *record) int() int64 {
	v, n := binary.Varint(r.b)
	return advance(r, v, n)
}

func advance[T any](r *record, v T, n int) T {
	if n <= 0 {
		var zero T
		r.b, r.bad = nil, true
		return zero
	}
	r.b = r.b[n:]
	return v
}

func (r *record) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *record) text() string {
	size := r.uint()
	if size > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return ""
	}
	s := string(r.b[:size])
	r.b = r.b[size:]
	return s
}

func (r *record) end() error {
	if r.bad || len(r.b) > 0 {
		return errRecord
	}
	return nil
}
