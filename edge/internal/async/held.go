package async

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// key names one try: a call may be held twice for a moment, its old try withdrawn late and its new one granted.
type key struct {
	id    message.ID
	fence uint64
}

func keyOf(id []byte, fence uint64) (key, bool) {
	if len(id) != len(message.ID{}) {
		return key{}, false
	}
	return key{id: message.ID(id), fence: fence}, true
}

// held is one try from its grant to the acknowledgement of its result.
type held struct {
	key
	grant  *wire.Grant // payload is dropped when the try begins
	size   int64       // of the payload, counted against the byte budget until the try ends
	buffer []byte      // payload so far, while frames come
	// until is the end of the try, set when the grant came. cancel is nil until the try begins.
	until  time.Time
	cancel context.CancelFunc
	result *wire.TryResult // set once; sent on every connection until an ack comes
	answer *message.Share  // what the answer in result takes; nil: nothing
}

// assembling says that frames of the payload are missing.
func (h *held) assembling() bool { return h.result == nil && h.buffer != nil }

// heartbeat describes what is held, as HeldHeartbeat defines it.
func heartbeat(all map[key]*held, expected map[message.ID]struct{}, listed bool) *wire.HeldHeartbeat {
	beat := &wire.HeldHeartbeat{Count: uint32(len(all)), Listed: listed}
	for k := range all {
		beat.Hash += k.hash()
	}
	if listed {
		beat.Held = list(all, expected)
	}
	return beat
}

// list what is held, and, with fence 0, what may be any moment.
func list(all map[key]*held, expected map[message.ID]struct{}) []*wire.Held {
	out := make([]*wire.Held, 0, len(all)+len(expected))
	for id := range expected {
		out = append(out, &wire.Held{Id: id[:]})
	}
	for k := range all {
		out = append(out, &wire.Held{Id: k.id[:], Fence: k.fence})
	}
	return out
}

func (k key) hash() uint64 {
	h := fnv.New64a()
	_, _ = h.Write(k.id[:]) // a hash never fails
	var fence [8]byte
	binary.BigEndian.PutUint64(fence[:], k.fence)
	_, _ = h.Write(fence[:])
	return h.Sum64()
}
