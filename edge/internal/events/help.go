package events

import (
	"context"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// mostOffers and mostHelped bound the shares of other edges that wait for their beginning, and that are being called.
	mostOffers = 64
	mostHelped = 64
	// startWithin: a share whose begin comes later is not called, for its taker may have given it up.
	startWithin = wire.EventSilence / 2
	// sayEvery is the longest silence of a helper.
	sayEvery = wire.EventSilence / 4
	// resultsPerMessage bounds a reply below wire.MaxBusMessage: names are under 254 bytes, an error under 301.
	resultsPerMessage = 64
)

// offer is a share that waits for its beginning.
type offer struct {
	share *wire.EventShare
	reply string
	came  time.Time
}

// Help takes a message of another edge, which wants help with an event; reply is where it listens. It does not wait.
func (p *Publisher) Help(m *wire.EventShare, reply string) {
	if m.GetBegin() {
		p.start(string(m.GetId()))
		return
	}
	if !p.offered(m, reply) {
		p.say(reply, &wire.EventShareReply{Edge: p.opts.Roster.Edge, Refused: true})
		return
	}
	p.say(reply, &wire.EventShareReply{Edge: p.opts.Roster.Edge})
}

func (p *Publisher) offered(m *wire.EventShare, reply string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, o := range p.offers {
		if time.Since(o.came) > startWithin {
			delete(p.offers, id)
		}
	}
	if p.closed || len(p.offers) >= mostOffers || p.helping >= mostHelped {
		return false
	}
	p.offers[string(m.GetId())] = offer{m, reply, time.Now()}
	return true
}

// start calls the share of an offer, once.
func (p *Publisher) start(id string) {
	p.mu.Lock()
	o, ok := p.offers[id]
	delete(p.offers, id)
	ok = ok && time.Since(o.came) <= startWithin
	if ok {
		p.helping++
	}
	p.mu.Unlock()
	if !ok {
		return
	}
	ctx, done, ok := p.begin(context.Background())
	ended := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.helping--
	}
	if !ok { // closed meanwhile: the taker hears nothing, and calls
		ended()
		return
	}
	go func() {
		defer done()
		defer ended()
		p.help(ctx, o)
	}()
}

// help makes the calls of a share and tells of each.
func (p *Publisher) help(ctx context.Context, o offer) {
	open := make(chan struct{}, max(1, p.opts.Concurrency))
	results := make(chan *wire.EventResult, resultsPerMessage)
	var calls sync.WaitGroup
	left := 0
	for _, t := range o.share.GetTargets() {
		f, known := p.opts.Functions.Get(t.GetFunction())
		for _, name := range t.GetReplicas() {
			left++
			d := newDelivery(p, f, t.GetFunction(), name, retryOf(t), open, o.share.GetRequest())
			calls.Go(func() {
				if known {
					d.run(ctx)
				}
				results <- d.result
			})
		}
	}
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for left > 0 {
		reply := &wire.EventShareReply{Edge: p.opts.Roster.Edge}
		select {
		case r := <-results:
			reply.Results = append(reply.Results, r)
			for more := true; more && len(reply.Results) < resultsPerMessage; {
				select {
				case r := <-results:
					reply.Results = append(reply.Results, r)
				default:
					more = false
				}
			}
			left -= len(reply.Results)
		case <-tick.C:
		}
		p.say(o.reply, reply)
	}
	calls.Wait()
}

// say answers a taker. One that cannot be reached takes the silence for what it is.
func (p *Publisher) say(reply string, m *wire.EventShareReply) {
	if err := p.opts.Bus.Respond(reply, m); err != nil {
		p.opts.Log.Debug("telling an edge of its event", "err", err)
	}
}
