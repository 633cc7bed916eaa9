package async

import (
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Expect notes that a call is being handed over which this edge would deliver itself, from its own memory, where it waits for
// nothing. It returns the session to ask with; 0: the edge has no room, or no stream, and nothing is noted. Until Expected, the call
// is listed as one that may be held: the queue must not take the answer for lost while it is on its way.
func (d *Deliverer) Expect(id message.ID) (session uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn == nil || d.draining || d.capacity() < d.opts.MaxHeld || len(d.held)+len(d.expected) >= int(d.opts.MaxHeld) {
		return 0
	}
	d.expected[id] = struct{}{}
	return d.session
}

// Expected ends an Expect that returned this session, with the try that the answer brought; nil: none. From here on it is a try
// like those that come by the stream.
func (d *Deliverer) Expected(id message.ID, session uint64, try *wire.Grant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.expected, id)
	if try == nil || session != d.session { // the queue has given up what the old session held
		return
	}
	d.hold(try)
}
