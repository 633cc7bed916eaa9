package raftnode

import (
	"errors"

	"github.com/slimfaas/slimfaas/queue/internal/logfile"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

const (
	// payloadLogBytes is PayloadLogBytes where the disk is large enough for it.
	payloadLogBytes = 2 << 30
	// payloadLogShare of the disk is the most, one in so many bytes.
	payloadLogShare = 4
	// payloadLogFactor bounds the log kept for payloads by what these are: of a log that is mostly of finished calls, the rest is copied.
	payloadLogFactor = 4
)

// payloadLog is the log as the store reads payloads from it (docs/adr/0032-payloads-stay-in-the-log.md).
type payloadLog struct{ segments *logfile.Log }

// payloads of the log; nil with LogBolt, where they are copied.
func (d *diskLog) payloads() store.Log {
	if d.segments == nil {
		return nil
	}
	return payloadLog{d.segments}
}

// Bounds implements store.Log.
func (p payloadLog) Bounds() (first, last uint64) { return p.segments.Bounds() }

// ReadData implements store.Log. An entry's data lies behind the header and the checksum that guardedLog adds.
func (p payloadLog) ReadData(index uint64, offset uint32, part []byte) error {
	err := p.segments.ReadPart(index, entryHeader+sumSize+int64(offset), part)
	switch {
	case errors.Is(err, logfile.ErrNotFound):
		return store.ErrCut
	case errors.Is(err, logfile.ErrDamaged):
		return errors.Join(store.ErrDamaged, err)
	}
	return err
}

// cutting says up to where the log may be cut, when raft wants it to be cut up to last: what the payloads in it are worth stays, the
// others are in the state by then.
func (n *Node) cutting(last uint64) (uint64, error) {
	first, size, err := n.store.Referenced()
	if err != nil {
		return 0, err
	}
	if first != 0 && first <= last {
		keep := min(max(n.config.TrailingBytes, payloadLogFactor*size), n.config.PayloadLogBytes)
		last = min(last, max(first, n.logStore.segments.Tail(keep))-1)
	}
	err = n.store.Forget(last)
	if errors.Is(err, store.ErrDamaged) {
		n.fail(err) // not only where somebody asks for the payload
	}
	return last, err
}
