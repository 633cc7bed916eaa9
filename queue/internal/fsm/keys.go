package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// keyDigest stands for a function and an idempotency key in it. A million must fit in memory, so the texts are not kept.
type keyDigest [16]byte

// key remembers the accept that used it first.
type key struct {
	id    command.ID
	hash  command.Hash
	until int64 // UTC milliseconds; it is free from then on
}

// agingKey is a key in the order in which keys are forgotten.
type agingKey struct {
	until  int64
	digest keyDigest
}

func (k agingKey) before(other agingKey) bool {
	return k.until < other.until || k.until == other.until && bytes.Compare(k.digest[:], other.digest[:]) < 0
}

// tidyKeys is how many old keys a new one takes with it: a full table makes room without waiting for a Forget.
const tidyKeys = 2

func digestOf(function, text string) keyDigest {
	// No function's name has a zero byte, so no two pairs read the same.
	sum := sha256.Sum256(append(append([]byte(function), 0), text...))
	return keyDigest(sum[:len(keyDigest{})])
}

// useKey takes an accept's key. A result says what the accept comes to; nil: it is new, and its key is now remembered.
func (a *application) useKey(c command.Accept) *Result {
	digest := digestOf(c.Function, c.Key)
	known, ok := a.keys[digest]
	if ok && known.until > a.now {
		if known.hash != c.RequestHash {
			return &Result{Code: Conflict, Detail: "the idempotency key was used for another request"}
		}
		return &Result{Repeated: true, ID: known.id}
	}
	for tidied := 0; a.keyIsOld() && (ok || tidied < tidyKeys); tidied++ {
		a.dropOldestKey() // an old one of this digest is among them
		_, ok = a.keys[digest]
	}
	if c.MaxKeys > 0 && uint64(len(a.keys)) >= c.MaxKeys {
		return &Result{Code: Full, Detail: "as many idempotency keys are remembered as may be"}
	}
	k := key{id: c.ID, hash: c.RequestHash, until: c.KeyUntilUnixMs}
	a.keys[digest] = k
	a.accountKey(digest, k, false)
	a.keysByAge.Push(agingKey{k.until, digest})
	a.put(BucketKey, digest[:], encodeKey(k))
	return nil
}

func (m *Machine) keyIsOld() bool { return m.keysByAge.Len() > 0 && m.keysByAge.Top().until <= m.now }

func (a *application) dropOldestKey() {
	old := a.keysByAge.Pop()
	a.accountKey(old.digest, a.keys[old.digest], true)
	delete(a.keys, old.digest)
	a.remove(BucketKey, bytes.Clone(old.digest[:]))
}

func sortedDigests(keys map[keyDigest]key) []keyDigest {
	all := make([]keyDigest, 0, len(keys))
	for digest := range keys {
		all = append(all, digest)
	}
	slices.SortFunc(all, func(a, b keyDigest) int { return bytes.Compare(a[:], b[:]) })
	return all
}

func encodeKey(k key) []byte {
	b := make([]byte, 0, 40)
	b = append(b, k.id[:]...)
	b = append(b, k.hash[:]...)
	return binary.AppendVarint(b, k.until)
}

func decodeKey(digest, value []byte) (d keyDigest, k key, err error) {
	if len(digest) != len(d) || len(value) < len(k.id)+len(k.hash) {
		return d, k, errRecord
	}
	copy(d[:], digest)
	n := copy(k.id[:], value)
	n += copy(k.hash[:], value[n:])
	r := record{b: value[n:]}
	k.until = r.int()
	return d, k, r.end()
}
