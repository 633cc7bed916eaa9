package table

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"io"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// compare orders versions: epoch, then seq. nil is the lowest.
func compare(a, b *wire.Version) int {
	return cmp.Or(cmp.Compare(a.GetEpoch(), b.GetEpoch()), cmp.Compare(a.GetSeq(), b.GetSeq()))
}

// hash of one record's identity, as wire.TableDigest defines it.
func hash(r *wire.FunctionRecord) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, r.GetName())
	var tail [17]byte // the zero byte ends the name
	binary.BigEndian.PutUint64(tail[1:], r.GetVersion().GetEpoch())
	binary.BigEndian.PutUint64(tail[9:], r.GetVersion().GetSeq())
	_, _ = h.Write(tail[:])
	return h.Sum64()
}

func (s state) version() *wire.Version { return &wire.Version{Epoch: s.epoch, Seq: s.seq} }

func (s state) digest() *wire.TableDigest {
	return &wire.TableDigest{Version: s.version(), Count: s.count, Hash: s.hash}
}

func stateOf(d *wire.TableDigest) state {
	return state{epoch: d.GetVersion().GetEpoch(), seq: d.GetVersion().GetSeq(), count: d.GetCount(), hash: d.GetHash()}
}

// history remembers the latest states of a table. A digest describes its sender a moment ago, and records that came since must
// not look like a difference.
type history struct {
	states [512]state
	next   int
}

func (h *history) add(s state) {
	h.states[h.next%len(h.states)] = s
	h.next++
}

func (h *history) has(s state) bool {
	for i := range min(h.next, len(h.states)) {
		if h.states[i] == s {
			return true
		}
	}
	return false
}
