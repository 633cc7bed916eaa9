package async

import (
	"context"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// take handles one message of the leader.
func (d *Deliverer) take(c *connection, down *wire.DeliverDown) {
	switch m := down.GetDown().(type) {
	case *wire.DeliverDown_Grant:
		d.grant(m.Grant)
	case *wire.DeliverDown_GrantFrame:
		d.frame(m.GrantFrame)
	case *wire.DeliverDown_Withdraw:
		d.withdraw(m.Withdraw)
	case *wire.DeliverDown_ResultAck:
		d.acknowledge(m.ResultAck)
	case *wire.DeliverDown_ListHeld:
		d.mu.Lock()
		c.list = true
		d.nudge()
		d.mu.Unlock()
	case *wire.DeliverDown_Slots:
		d.opts.Replicas.ObeySlots(m.Slots)
		c.ordered.Store(m.Slots.GetVersion())
	case *wire.DeliverDown_Welcome:
		d.welcome(c, m.Welcome)
	}
}

func (d *Deliverer) grant(g *wire.Grant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold(g)
}

// hold takes a try and begins it when its payload is whole. Holds mu.
func (d *Deliverer) hold(g *wire.Grant) {
	k, ok := keyOf(g.GetId(), g.GetFence())
	if !ok {
		d.opts.Log.Error("grant without a proper id", "fn", g.GetFunction())
		return
	}
	if h := d.held[k]; h != nil { // told twice: once is carried out
		if h.result != nil {
			d.unsent = append(d.unsent, h)
			d.nudge()
		}
		return
	}
	h := &held{key: k, grant: g, size: int64(max(g.GetSize(), uint64(len(g.GetPayload()))))}
	whole := int64(len(g.GetPayload())) == h.size
	if g.GetBodySize() > 0 { // the rest is read while it is sent
		h.size, whole = int64(len(g.GetPayload()))+bodyBytes, true
	}
	switch {
	case d.draining || d.opts.MaxHeld == 0:
		d.refuse(released(h, "the edge takes no more calls"))
		return
	case len(d.held) >= 2*int(d.opts.MaxHeld): // a leader that forgot our capacity
		d.refuse(released(h, "the edge holds too many calls"))
		return
	case h.size > wire.MaxPayload+bodyBytes || h.size > wire.MaxPayload && g.GetBodySize() == 0:
		d.refuse(noAnswer(h, "the stored request is larger than an edge takes"))
		return
	}
	h.until = time.Now().Add(limit(g))
	d.held[k] = h
	d.bytes += h.size
	if !whole {
		h.buffer = append(make([]byte, 0, h.size), g.GetPayload()...)
		g.Payload = nil
		return
	}
	d.start(h)
}

// frame adds a piece of a payload.
func (d *Deliverer) frame(f *wire.GrantFrame) {
	k, _ := keyOf(f.GetId(), f.GetFence())
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.held[k]
	if h == nil || !h.assembling() {
		return // withdrawn, refused or told twice
	}
	if f.GetOffset() != uint64(len(h.buffer)) || int64(len(h.buffer)+len(f.GetData())) > h.size {
		d.settle(h, released(h, "the pieces of the request do not fit together"))
		return
	}
	h.buffer = append(h.buffer, f.GetData()...)
	if int64(len(h.buffer)) == h.size {
		h.grant.Payload, h.buffer = h.buffer, nil
		d.start(h)
	}
}

// start begins the try. Holds mu.
func (d *Deliverer) start(h *held) {
	payload := h.grant.GetPayload()
	h.grant.Payload = nil
	if d.capacity() < d.opts.MaxHeld {
		d.nudge() // full of bytes
	}
	ctx, cancel := context.WithDeadline(d.root, h.until)
	h.cancel = cancel
	d.tries.Go(func() {
		defer cancel()
		var share *message.Share
		if h.grant.GetKeepResult() {
			share, _ = d.answers.Begin() // it admits as many as are ever held
		}
		result := d.try(ctx, h, payload, share)
		d.mu.Lock()
		defer d.mu.Unlock()
		h.answer = share
		if d.settle(h, result); d.held[h.key] != h {
			h.forgetAnswer()
		}
	})
}

// settle gives a try its result, to be sent until it is acknowledged. Holds mu.
func (d *Deliverer) settle(h *held, result *wire.TryResult) {
	if d.held[h.key] != h || h.result != nil {
		return // withdrawn, or its session is gone: nobody waits for it
	}
	h.result, h.buffer = result, nil
	d.bytes -= h.size
	h.size = 0
	d.unsent = append(d.unsent, h)
	d.nudge()
}

func (h *held) forgetAnswer() {
	if h.answer != nil {
		h.answer.Release()
		h.answer = nil
	}
}

// refuse sends a result for a try that is not held. Holds mu.
func (d *Deliverer) refuse(result *wire.TryResult) {
	if len(d.loose) < maxLoose {
		d.loose = append(d.loose, result)
		d.nudge()
	}
}

// drop forgets a try and cancels it. Holds mu.
func (d *Deliverer) drop(h *held) {
	if h.cancel != nil {
		h.cancel()
	}
	d.bytes -= h.size
	h.size = 0
	h.forgetAnswer()
	delete(d.held, h.key)
	if len(d.held) == 0 && d.emptied != nil {
		close(d.emptied)
		d.emptied = nil
	}
}

func (d *Deliverer) withdraw(w *wire.Withdraw) {
	k, _ := keyOf(w.GetId(), w.GetFence())
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.held[k]; h != nil {
		d.opts.Log.Info("try withdrawn", "call", k.id.String(), "fn", h.grant.GetFunction(), "reason", w.GetReason())
		d.drop(h)
	}
}

// acknowledge ends the holding of a try whose result is durable or no longer wanted.
func (d *Deliverer) acknowledge(ack *wire.ResultAck) {
	k, _ := keyOf(ack.GetId(), ack.GetFence())
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.held[k]
	if h == nil {
		return
	}
	switch ack.GetCode() {
	case wire.Code_CODE_OK:
	case wire.Code_CODE_STALE, wire.Code_CODE_NOT_FOUND:
		d.opts.Log.Info("result is not wanted any more", "call", k.id.String(), "fn", h.grant.GetFunction(), "code", ack.GetCode().String())
	case wire.Code_CODE_UNAVAILABLE, wire.Code_CODE_UNKNOWN, wire.Code_CODE_FULL, wire.Code_CODE_INTERNAL:
		if h.result != nil {
			d.again = append(d.again, h) // with the next heartbeat
		}
		return
	default:
		d.opts.Log.Error("the queue refused a result", "call", k.id.String(), "fn", h.grant.GetFunction(), "code", ack.GetCode().String())
	}
	d.drop(h)
}
