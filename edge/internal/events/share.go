package events

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// When calls of an event are shared with other edges, and how finely.
const (
	// sharedFrom: an event of fewer calls is delivered by the edge that took it.
	sharedFrom = 32
	// leastShare is the smallest share worth a message.
	leastShare = 16
	// mostHelpers of one event.
	mostHelpers = 15
	// maxSharedBody and maxSharedRequest, in bytes: a larger request is not put on the bus.
	maxSharedBody    = 32 << 10
	maxSharedRequest = 40 << 10
	// maxShare is the largest share in one message, in bytes; a larger one is cut in two.
	maxShare = wire.MaxBusMessage - 1<<10
)

// Bus is what sharing needs of the bus.
type Bus interface {
	// Converse sends m and hands every answer to handle, one at a time and in order, until stop.
	Converse(subject string, m proto.Message, handle func(answer []byte, err error)) (stop func(), err error)
	Publish(subject string, m proto.Message) error
	Respond(reply string, m proto.Message) error
}

// share is the calls that one other edge shall make, with the message that says so.
type share struct {
	helper  string // its incarnation
	calls   []*delivery
	message *wire.EventShare
}

// plan divides the calls of one event among this edge and helpers, in parts of one size; what does not go on the bus is
// mine. It calls nobody.
func plan(calls []*delivery, helpers []string, event, taker string, request *wire.StoredRequest) (mine []*delivery, shares []*share) {
	helpers = helpers[:min(len(helpers), mostHelpers, len(calls)/leastShare)]
	if len(calls) < sharedFrom || len(helpers) == 0 || len(request.GetBody()) > maxSharedBody || proto.Size(request) > maxSharedRequest {
		return calls, nil
	}
	parts := len(helpers) + 1
	cut := func(i int) int { return i * len(calls) / parts }
	mine = calls[:cut(1):cut(1)]
	for i, helper := range helpers {
		rest := [][]*delivery{calls[cut(i+1):cut(i+2)]}
		for len(rest) > 0 {
			part := rest[0]
			rest = rest[1:]
			m := &wire.EventShare{Taker: taker, Event: event, Request: request, Targets: targets(part)}
			switch {
			case proto.Size(m) <= maxShare:
				shares = append(shares, &share{helper: helper, calls: part, message: m})
			case len(part) == 1:
				mine = append(mine, part[0])
			default:
				rest = append(rest, part[:len(part)/2], part[len(part)/2:])
			}
		}
	}
	return mine, shares
}

// targets groups calls by function.
func targets(calls []*delivery) (all []*wire.EventTarget) {
	for i, d := range calls {
		if i == 0 || calls[i-1].function != d.function {
			t := &wire.EventTarget{Function: d.function, TimeoutMs: uint64(d.retry.timeout.Milliseconds()), RetryStatuses: d.retry.statuses}
			for _, delay := range d.retry.delays {
				t.RetryDelaysMs = append(t.RetryDelaysMs, uint64(delay.Milliseconds()))
			}
			all = append(all, t)
		}
		last := all[len(all)-1]
		last.Replicas = append(last.Replicas, d.replica)
	}
	return all
}

// share finds helpers and plans.
func (p *Publisher) share(event string, calls []*delivery, request *wire.StoredRequest) ([]*delivery, []*share) {
	if p.opts.Bus == nil || len(calls) < sharedFrom {
		return calls, nil
	}
	helpers := p.opts.Roster.Peers()
	mrand.Shuffle(len(helpers), func(i, j int) { helpers[i], helpers[j] = helpers[j], helpers[i] })
	return plan(calls, helpers, event, p.opts.Roster.Edge, request)
}

// ask has a share called by its helper and returns the calls that this edge has to make after all: everything when the helper
// does not acknowledge in time (it has called nobody then, and will not), else those it did not make, and when it falls silent
// those it has not told of, which may have been made.
func (p *Publisher) ask(ctx context.Context, s *share) (left []*delivery) {
	type answer struct {
		raw []byte
		err error
	}
	answers, over := make(chan answer, 16), make(chan struct{})
	defer close(over)
	s.message.Id = make([]byte, 16)
	_, _ = rand.Read(s.message.Id) // never fails (crypto/rand)
	subject := wire.SubjectEventShare + "." + s.helper
	stop, err := p.opts.Bus.Converse(subject, s.message, func(raw []byte, err error) {
		select {
		case answers <- answer{raw, err}:
		case <-over:
		}
	})
	if err != nil {
		return p.notTaken(s, err)
	}
	defer stop()

	pending := make(map[[2]string]*delivery, len(s.calls))
	for _, d := range s.calls {
		pending[[2]string{d.function, d.replica}] = d
	}
	begun := false
	silence := time.NewTimer(wire.EventAckWithin)
	defer silence.Stop()
	for len(pending) > 0 {
		var reply wire.EventShareReply
		select {
		case a := <-answers:
			err := a.err
			if err == nil {
				err = proto.Unmarshal(a.raw, &reply)
			}
			if err == nil && !begun {
				if err = errRefused; !reply.GetRefused() {
					err = p.opts.Bus.Publish(subject, &wire.EventShare{Id: s.message.GetId(), Begin: true})
				}
			}
			if err != nil && !begun {
				return p.notTaken(s, err)
			}
			begun = true
		case <-silence.C:
			if !begun {
				return p.notTaken(s, fmt.Errorf("no word within %v", wire.EventAckWithin))
			}
			p.shares.silent.Add(1)
			p.opts.Log.Warn("an edge that helps with an event fell silent; its calls are repeated", "helper", s.helper, "calls", len(pending))
			return rest(left, pending)
		case <-ctx.Done():
			return rest(left, pending)
		}
		silence.Reset(wire.EventSilence)
		for _, r := range reply.GetResults() {
			key := [2]string{r.GetFunction(), r.GetReplica()}
			d, waited := pending[key]
			if !waited {
				continue
			}
			delete(pending, key)
			if r.GetTries() == 0 {
				left = append(left, d)
				continue
			}
			d.result.Status, d.result.Tries, d.result.Error, d.result.DurationMs = r.GetStatus(), r.GetTries(), r.GetError(), r.GetDurationMs()
		}
	}
	p.shares.helped.Add(1)
	return left
}

var errRefused = errors.New("refused")

// notTaken says that a share comes back whole.
func (p *Publisher) notTaken(s *share, err error) []*delivery {
	p.shares.notTaken.Add(1)
	p.opts.Log.Debug("an edge did not take its share of an event", "helper", s.helper, "calls", len(s.calls), "err", err)
	return s.calls
}

func rest(left []*delivery, pending map[[2]string]*delivery) []*delivery {
	for _, d := range pending {
		left = append(left, d)
	}
	return left
}
