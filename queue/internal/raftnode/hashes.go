package raftnode

import "sync"

// hashesKept is how many entries back the state's hash is known.
const hashesKept = 4096

// hashes of the state after the last entries that changed it, so that nodes that are not at the same entry can be compared.
type hashes struct {
	mu   sync.Mutex // guards ring and next
	ring [hashesKept]indexHash
	next int
}

type indexHash struct{ index, hash uint64 }

func (h *hashes) add(index, hash uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring[h.next] = indexHash{index, hash}
	h.next = (h.next + 1) % hashesKept
}

func (h *hashes) at(index uint64) (hash uint64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range hashesKept {
		known := h.ring[(h.next-1-i+hashesKept)%hashesKept]
		if known.index == 0 {
			return 0, false
		}
		if known.index <= index {
			return known.hash, true
		}
	}
	return 0, false
}

// HashAt gives the hash of the state as it was at this index: equal on all nodes. ok false: not applied here yet, or too long
// ago. Index 0 is the state before the first entry, which nobody asks for.
func (n *Node) HashAt(index uint64) (hash uint64, ok bool) {
	if index > n.Applied() {
		return 0, false
	}
	return n.applier.hashes.at(index)
}
