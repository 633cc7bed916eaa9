package fsm

import (
	"encoding/binary"
	"hash/crc32"
)

// The state's hash is the sum of its records' hashes: it does not depend on their order, and each operation moves it by what
// it takes away and what it adds. Payloads, which the machine does not keep, are in it for ever: the state's own record has the
// sum of the hashes of all that were ever put.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sums of the records that are not calls (those have theirs with them).
type sums map[string]uint64

func sumKey(b Bucket, key []byte) string { return string(append([]byte{byte(b)}, key...)) }

// Hash over the whole state but the applied index: equal on every node that applied the same commands.
func (m *Machine) Hash() uint64 {
	return m.hash + recordHash(BucketMeta, keyState, m.encodeState())
}

// account moves the hash with a put (value not nil) or a removal; calls are accountCall's, idempotency keys accountKey's.
func (m *Machine) account(b Bucket, key, value []byte) {
	if b == BucketPayload && value != nil {
		sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(value, castagnoli))
		m.payloads += recordHash(b, key, sum)
	}
	if b == BucketPayload || b == BucketCall || b == BucketKey || b == BucketMeta && string(key) == string(keyState) {
		return
	}
	k := sumKey(b, key)
	m.hash -= m.sums[k]
	if value == nil {
		delete(m.sums, k)
		return
	}
	h := recordHash(b, key, value)
	m.sums[k] = h
	m.hash += h
}

// accountKey likewise, from what is in memory: a million keys must not have their sums there as well.
func (m *Machine) accountKey(digest keyDigest, k key, gone bool) {
	h := recordHash(BucketKey, digest[:], encodeKey(k))
	if gone {
		h = -h
	}
	m.hash += h
}

// accountCall likewise; record nil: the call is dropped.
func (m *Machine) accountCall(c *call, key, record []byte) {
	m.hash -= c.sum
	c.sum = 0
	if record != nil {
		c.sum = recordHash(BucketCall, key, record)
	}
	m.hash += c.sum
}

// recordHash of one record: FNV-1a over bucket, lengths, key and value, mixed so that sums of it do not cancel out.
func recordHash(b Bucket, key, value []byte) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := (offset ^ uint64(b)) * prime
	h = (h ^ uint64(len(key))) * prime
	for len(value) >= 8 { // eight bytes at a step: the mixing below and in between makes up for it
		h = mix(h ^ binary.LittleEndian.Uint64(value))
		value = value[8:]
	}
	for _, c := range value {
		h = (h ^ uint64(c)) * prime
	}
	h = mix(h)
	for _, c := range key {
		h = (h ^ uint64(c)) * prime
	}
	return mix(h ^ uint64(len(value)))
}

// mix is MurmurHash3's finalizer: a bijection in which every bit moves every other.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}
