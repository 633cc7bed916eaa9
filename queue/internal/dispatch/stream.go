package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// lastWords is how long a stream that is over may take to say so before it is cut.
const lastWords = time.Second

// maxName of an edge, its incarnation and its address, in bytes.
const maxName = 253

// ErrBadHello says that the first message of a stream is not a hello, or lacks name or incarnation.
var ErrBadHello = errors.New("stream must begin with a hello that has name and incarnation, of at most 253 bytes each")

// Deliver serves one edge until its stream, its session or this node's leadership ends. cut makes a receive or send that blocks
// return; it is called once, last.
func (d *Dispatcher) Deliver(
	ctx context.Context, receive func() (*wire.DeliverUp, error), send func(*wire.DeliverDown) error, cut func(),
) error {
	first, err := receive()
	if err != nil {
		return fmt.Errorf("reading the hello: %w", err)
	}
	hello := first.GetHello()
	if hello.GetName() == "" || hello.GetIncarnation() == "" ||
		max(len(hello.GetName()), len(hello.GetIncarnation()), len(hello.GetAddress())) > maxName {
		return ErrBadHello
	}
	o, s, l, err := d.attach(ctx, hello)
	if err != nil {
		d.log.Debug("stream refused", "edge", hello.GetName(), "err", err)
		return d.refer(send)
	}
	d.log.Info("edge attached", "edge", s.Name, "session", s.ID, "holds", len(hello.GetHeld()))
	over := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() {
		d.read(o, s, l, receive)
		d.mu.Lock()
		defer d.mu.Unlock()
		l.close()
	})
	helpers.Go(func() {
		select {
		case <-l.gone:
			timer := time.NewTimer(lastWords)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-over:
			}
		case <-over:
		}
		cut()
	})
	unsent, err := d.write(ctx, o, s, l, send)
	d.with(o, func(now time.Time) { o.detach(s, l, unsent, now) })
	signal(d.wake)
	if err == nil {
		err = d.refer(send)
	}
	close(over)
	helpers.Wait()
	d.log.Info("edge detached", "edge", s.Name, "session", s.ID, "err", err)
	return nil
}

// refer sends the edge to the leader.
func (d *Dispatcher) refer(send func(*wire.DeliverDown) error) error {
	return send(&wire.DeliverDown{Down: &wire.DeliverDown_NotLeader{NotLeader: d.config.NotLeader()}})
}

// attach opens the session when there is none yet, and makes this stream its stream.
func (d *Dispatcher) attach(ctx context.Context, hello *wire.Hello) (*office, *session, *link, error) {
	d.mu.Lock()
	o, draining := d.office, d.draining
	var s *session
	if o != nil {
		s = o.named(hello.GetName(), hello.GetIncarnation())
	}
	d.mu.Unlock()
	if o == nil || draining {
		return nil, nil, nil, ErrNotLeading
	}
	id := uint64(0)
	if s != nil {
		id = s.ID
	} else {
		results, _, err := d.config.Log.Propose(ctx, []command.Command{command.OpenSession{
			Name: hello.GetName(), Incarnation: hello.GetIncarnation(), Kind: uint8(wire.SessionKind_SESSION_KIND_EDGE),
			Address: hello.GetAddress(),
		}})
		if err != nil {
			return nil, nil, nil, fmt.Errorf("opening the session: %w", err)
		}
		if results[0].Code != fsm.OK {
			return nil, nil, nil, fmt.Errorf("opening the session: %s", results[0].Detail)
		}
		id = results[0].Index
	}
	var l *link
	d.with(o, func(now time.Time) {
		if s = o.sessions[id]; s != nil && !s.ending && !d.draining {
			l = o.attach(s, hello, d.config.Node, now)
		}
	})
	if l == nil {
		return nil, nil, nil, errors.New("session has ended, or the leadership")
	}
	signal(d.wake)
	return o, s, l, nil
}

// read takes what the edge says until the stream or the link ends.
func (d *Dispatcher) read(o *office, s *session, l *link, receive func() (*wire.DeliverUp, error)) {
	for {
		up, err := receive()
		if err != nil {
			return
		}
		goOn := false
		d.with(o, func(now time.Time) {
			if s.link == l && !l.closed {
				goOn = o.hear(s, up, now)
			}
		})
		if !goOn {
			return
		}
		signal(d.wake)
	}
}

// hear one message; false: the stream makes no sense any more.
func (o *office) hear(s *session, up *wire.DeliverUp, now time.Time) bool {
	switch m := up.GetUp().(type) {
	case *wire.DeliverUp_Capacity:
		s.capacity = min(m.Capacity.GetMaxHeld(), maxHeld)
		s.seen = now
	case *wire.DeliverUp_Heartbeat:
		o.heartbeat(s, m.Heartbeat, now)
	case *wire.DeliverUp_Slots:
		o.hearSlots(s, m.Slots, now)
	case *wire.DeliverUp_Result:
		return !o.result(s, m.Result, now)
	case *wire.DeliverUp_Hello:
		return false
	}
	return true
}

// write sends what the office has for the edge. unsent is what was taken from the queue and did not go out.
func (d *Dispatcher) write(
	ctx context.Context, o *office, s *session, l *link, send func(*wire.DeliverDown) error,
) (unsent []outgoing, err error) {
	for {
		d.mu.Lock()
		batch, closed := l.out, l.closed
		l.out = nil
		d.mu.Unlock()
		if closed {
			return batch, nil
		}
		for i, out := range batch {
			if out.grant == nil {
				err = send(out.down)
			} else {
				err = d.sendGrant(o, out.grant, send)
			}
			if err != nil {
				return batch[i+1:], err
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-l.more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// sendGrant sends one grant, its payload in frames when it is large.
func (d *Dispatcher) sendGrant(o *office, r *run, send func(*wire.DeliverDown) error) error {
	valid, allowed := false, time.Duration(0)
	if !d.with(o, func(now time.Time) { valid, allowed = o.valid(r, now), timeout(o.attempt(r).spec) }) {
		return ErrNotLeading
	}
	if !valid {
		signal(d.wake)
		return nil
	}
	payload, err := d.config.Log.Payload(r.Seq)
	if err != nil {
		d.log.Error("payload cannot be read, the call is given back", "fn", r.Function, "id", r.ID.String(), "err", err)
		d.with(o, func(now time.Time) {
			r.lane.avoid[r.Replica] = now.Add(avoidReplica)
			o.finish(r, released("payload cannot be read"), now)
		})
		signal(d.wake)
		return nil
	}
	defer d.with(o, func(now time.Time) { o.wasSent(r, now) })
	head := payload[:min(len(payload), wire.MaxFrame)]
	grant := &wire.Grant{
		Id: r.ID[:], Function: r.Function, Fence: r.Fence, Replica: r.Replica,
		DeadlineMs: uint64(allowed.Milliseconds()), TryNumber: r.Tries, MaxTries: max(r.MaxTries, r.Tries),
		Payload: head, Size: uint64(len(payload)), KeepResult: r.KeepResult,
	}
	if r.Body != nil { // which the edge reads for itself, at its function's pace
		head = payload
		grant.Payload, grant.BodySize, grant.BodySum = payload, r.Body.Size, r.Body.Sum
		grant.Size += r.Body.Size // an edge of a release that knows no such bodies waits for it, and calls nobody without
	}
	err = send(&wire.DeliverDown{Down: &wire.DeliverDown_Grant{Grant: grant}})
	for at := len(head); err == nil && at < len(payload); {
		piece := payload[at:min(len(payload), at+wire.MaxFrame)]
		err = send(&wire.DeliverDown{Down: &wire.DeliverDown_GrantFrame{GrantFrame: &wire.GrantFrame{
			Id: r.ID[:], Fence: r.Fence, Offset: uint64(at), Data: piece,
		}}})
		at += len(piece)
	}
	return err
}
