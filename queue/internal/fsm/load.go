package fsm

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// Load rebuilds the state from what a store holds. each calls its argument for every pair of every bucket, keys of a bucket
// in order; payloads may be left out. index is the applied index stored with them.
func Load(index uint64, each func(func(Op) error) error) (*Machine, error) {
	m := New()
	m.applied = index
	var ended []*call
	err := each(func(o Op) error {
		if err := m.load(o, &ended); err != nil {
			return fmt.Errorf("loading key %x of bucket %d: %w", o.Key, o.Bucket, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(ended, func(a, b *call) int { return cmp.Compare(a.ended, b.ended) })
	for _, c := range ended {
		m.place(c, c.state)
	}
	return m, nil
}

func (m *Machine) load(o Op, ended *[]*call) (err error) {
	if o.Bucket != BucketPayload { // those are in the state's own record already
		m.account(o.Bucket, o.Key, o.Value)
	}
	switch o.Bucket {
	case BucketMeta:
		if string(o.Key) == string(keyInstallation) {
			m.installation = string(o.Value)
			return nil
		}
		return m.decodeState(o.Value)
	case BucketCall:
		c, err := m.decodeCall(o.Key, o.Value)
		if err != nil {
			return err
		}
		m.accountCall(c, o.Key, o.Value)
		m.calls[c.id] = c
		switch c.state {
		case Queued, Running, Awaiting, Waiting:
			c.function.counters.count(0, c.state)
			m.unfinished.push(c)
			m.rest(c)
		default:
			*ended = append(*ended, c)
		}
	case BucketFunction:
		return decodeCounters(&m.intern(string(o.Key)).counters, o.Value)
	case BucketSession:
		s, err := decodeSession(o.Key, o.Value)
		if err != nil {
			return err
		}
		m.sessions[s.ID] = s
		m.names[s.Name] = s.ID
	case BucketLock:
		l, err := decodeLock(o.Key, o.Value)
		if err != nil {
			return err
		}
		m.locks[l.Name] = l
	case BucketActivity:
		m.activity[m.intern(string(o.Key)).name], err = decodeTime(o.Value)
	case BucketOverride:
		var override Override
		override, err = decodeOverride(o.Key, o.Value)
		m.overrides[override.Function] = override
	case BucketUpload:
		u, err := decodeUpload(o.Key, o.Value)
		if err != nil {
			return err
		}
		m.uploads[u.id] = u
		m.uploadBytes += u.size
	case BucketKey:
		digest, k, err := decodeKey(o.Key, o.Value)
		if err != nil {
			return err
		}
		m.keys[digest] = k
		m.accountKey(digest, k, false)
		m.keysByAge.Push(agingKey{k.until, digest})
	}
	return err
}

// Each gives the whole state as store operations, buckets and keys in order, without payloads: what Load takes.
func (m *Machine) Each(yield func(Op) error) error {
	ops := []Op{}
	add := func(b Bucket, key, value []byte) { ops = append(ops, Op{Bucket: b, Key: key, Value: value}) }
	if m.installation != "" {
		add(BucketMeta, keyInstallation, []byte(m.installation))
	}
	add(BucketMeta, keyState, m.encodeState())
	calls := make([]*call, 0, len(m.calls)+m.backlog.size)
	for _, c := range m.calls {
		calls = append(calls, c)
	}
	for p := range m.backlog.all() {
		calls = append(calls, m.awaken(*p))
	}
	slices.SortFunc(calls, func(a, b *call) int { return cmp.Compare(a.seq, b.seq) })
	for _, c := range calls {
		add(BucketCall, numberKey(c.seq), encodeCall(c))
	}
	for _, name := range sortedKeys(m.functions) {
		if n := m.functions[name].counters; n != (Counters{}) {
			add(BucketFunction, []byte(name), encodeCounters(n))
		}
	}
	for _, id := range sortedKeys(m.sessions) {
		add(BucketSession, numberKey(id), encodeSession(m.sessions[id]))
	}
	for _, name := range sortedKeys(m.locks) {
		add(BucketLock, []byte(name), encodeLock(m.locks[name]))
	}
	for _, name := range sortedKeys(m.activity) {
		add(BucketActivity, []byte(name), encodeTime(m.activity[name]))
	}
	for _, name := range sortedKeys(m.overrides) {
		add(BucketOverride, []byte(name), encodeOverride(m.overrides[name]))
	}
	for _, digest := range sortedDigests(m.keys) {
		add(BucketKey, digest[:], encodeKey(m.keys[digest]))
	}
	for _, id := range slices.SortedFunc(maps.Keys(m.uploads), func(a, b command.ID) int { return bytes.Compare(a[:], b[:]) }) {
		add(BucketUpload, m.uploads[id].key(), encodeUpload(m.uploads[id]))
	}
	for _, o := range ops {
		if err := yield(o); err != nil {
			return err
		}
	}
	return nil
}
