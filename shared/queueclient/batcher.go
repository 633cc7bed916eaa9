package queueclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// item is one operation (an accept with its frames is one) and its caller.
type item struct {
	ops   []*wire.Op
	alone [1]*wire.Op // what ops mostly is
	bytes int
	since time.Time // when the caller came

	// guarded by batcher.mu
	sent    bool // in a batch that is under way
	unknown bool // an attempt ended without saying what became of it
	over    bool // the caller has its answer, or has gone

	done   chan struct{} // closed once result and err are set
	result *wire.OpResult
	err    error
}

// batcher gathers items and sends them in order: at most wire.MaxBatchesInFlight batches are under way, and what comes meanwhile
// makes up the next one. There is no timer.
type batcher struct {
	client *Client

	mu          sync.Mutex // guards the fields below and the items; never held while sending
	queue       []*item    // waiting, the oldest first, and some whose callers have gone, which are skipped
	ops, bytes  int        // waiting, without those
	flying      int        // operations of the batches that are under way
	senders     int
	lastContact time.Time // when a node last seemed to lead: the wait for a leader counts from there
}

// Do carries out one operation through the leader and returns what the queue said about it: any code but CODE_UNAVAILABLE and
// CODE_UNKNOWN, which become errors. An Accept whose payload is over wire.MaxFrame is cut into frames that travel together.
// The message belongs to the client from now on, also after Do has returned.
//
// Every operation may be repeated without harm (by id, or because it states the same again), so Do goes on from leader to
// leader until ctx ends. Once an attempt has ended without saying what became of it, only a later CODE_OK settles that: any
// other end is ErrUnknown. While no node knows a leader, Do waits for one at most LeaderWait. Without a deadline on ctx
// an operation of unknown outcome is repeated for ever.
func (c *Client) Do(ctx context.Context, op *wire.Op) (*wire.OpResult, error) {
	it := newItem(op)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotHandedOver, err)
	}
	if err := c.batcher.add(it); err != nil {
		return nil, err
	}
	select {
	case <-it.done:
		return it.result, it.err
	case <-ctx.Done():
		return c.batcher.giveUp(it, ctx.Err())
	}
}

func newItem(op *wire.Op) *item {
	it := &item{alone: [1]*wire.Op{op}, since: time.Now(), done: make(chan struct{})}
	it.ops = it.alone[:]
	if accept := op.GetAccept(); accept != nil && len(accept.Payload) > wire.MaxFrame {
		it.ops = split(accept)
	}
	for _, o := range it.ops {
		it.bytes += wire.OpSize(o)
	}
	return it
}

// split cuts a payload into an accept with the first frame and the frames behind it. The bytes are shared, not copied.
func split(whole *wire.Accept) []*wire.Op {
	first := &wire.Accept{
		Id: whole.Id, Function: whole.Function, Payload: whole.Payload[:wire.MaxFrame], Size: uint64(len(whole.Payload)),
		DelayMs: whole.DelayMs, MaxAgeMs: whole.MaxAgeMs, KeepResultMs: whole.KeepResultMs,
		IdempotencyKey: whole.IdempotencyKey, RequestHash: whole.RequestHash, RunSession: whole.RunSession,
	}
	ops := []*wire.Op{{Op: &wire.Op_Accept{Accept: first}}}
	offset := wire.MaxFrame
	for data := range slices.Chunk(whole.Payload[wire.MaxFrame:], wire.MaxFrame) {
		ops = append(ops, &wire.Op{Op: &wire.Op_AcceptFrame{AcceptFrame: &wire.AcceptFrame{Id: whole.Id, Offset: uint64(offset), Data: data}}})
		offset += len(data)
	}
	return ops
}

func (b *batcher) add(it *item) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ops+len(it.ops) > MaxWaitingOps || b.bytes+it.bytes > MaxWaitingBytes {
		return ErrFull
	}
	if b.senders < wire.MaxBatchesInFlight {
		if !b.client.run(b.send) {
			return ErrClosed
		}
		b.senders++
	}
	b.queue = append(b.queue, it)
	b.count(it, 1)
	return nil
}

// count adds (1) or removes (-1) an item from what waits. It runs under mu.
func (b *batcher) count(it *item, sign int) {
	b.ops += sign * len(it.ops)
	b.bytes += sign * it.bytes
}

// giveUp is the end of a caller's patience: what waits is taken back, what is under way goes on without a listener.
func (b *batcher) giveUp(it *item, cause error) (*wire.OpResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if it.over {
		return it.result, it.err
	}
	it.over = true
	if !it.sent {
		b.count(it, -1) // it leaves the queue when a sender comes across it
	}
	if it.sent || it.unknown {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, cause)
	}
	return nil, fmt.Errorf("%w: %w", ErrNotHandedOver, cause)
}

// send is one sender: it sends batches until nothing waits.
func (b *batcher) send() {
	fruitless := 0
	for b.waiting() {
		url, err := b.client.leader.find(b.client.life)
		if err != nil {
			b.noLeader()
			sleep(b.client.life, pause(fruitless))
			fruitless++
			continue
		}
		b.gather()
		batch := b.take()
		if len(batch) == 0 { // the other sender had it, or the callers have gone
			continue
		}
		if b.settle(batch, b.client.attempt(url, batch)) {
			fruitless = 0
			continue
		}
		// NotLeader with a hint is followed at once; a second in a row means that the cluster is changing its mind.
		if fruitless > 0 {
			sleep(b.client.life, pause(fruitless-1))
		}
		fruitless++
	}
}

// waiting says whether to go on; when not, the sender has left, in the same step, so that no item is overlooked.
func (b *batcher) waiting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 || b.client.life.Err() != nil {
		b.senders--
		return false
	}
	return true
}

// gather lets callers in who are about to come: those that have just been answered come again within microseconds, and a batch that
// left before them would be of one. It yields as long as somebody comes, and waits for nobody.
func (b *batcher) gather() {
	const looks = 4
	for came := 0; came < looks; came++ {
		before := b.length()
		runtime.Gosched()
		if now := b.length(); now <= before || now >= wire.MaxBatchOps {
			return
		}
	}
}

func (b *batcher) length() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ops
}

// take removes the next batch from the queue: what waits, and no more than this sender's share of all that waits or is under way. One
// item over the limit travels alone.
func (b *batcher) take() []*item {
	b.mu.Lock()
	defer b.mu.Unlock()
	var batch []*item
	ops, bytes, passed := 0, 0, 0
	most := wire.BatchShare(b.ops, b.flying)
	for _, it := range b.queue {
		if !it.over {
			if len(batch) > 0 && (ops+len(it.ops) > most || bytes+it.bytes > wire.MaxBatchBytes) {
				break
			}
			ops, bytes = ops+len(it.ops), bytes+it.bytes
			it.sent = true
			b.count(it, -1)
			batch = append(batch, it)
		}
		passed++
	}
	b.queue = slices.Delete(b.queue, 0, passed)
	b.flying += ops
	return batch
}

// outcome of one attempt.
type outcome struct {
	results []*wire.OpResult // one per op; nil: the call failed
	trouble bool             // some operation was not carried out, or nobody knows: the node is losing its office
	handed  bool             // the batch may have reached a leader
	final   bool             // trying again ends the same
	err     error
}

// attempt sends one batch to one node.
func (c *Client) attempt(url string, batch []*item) outcome {
	request := &wire.SubmitRequest{Ops: make([]*wire.Op, 0, len(batch))}
	for _, it := range batch {
		request.Ops = append(request.Ops, it.ops...)
	}
	ctx, cancel := context.WithTimeout(c.life, c.options.RPCTimeout)
	defer cancel()
	var connected atomic.Bool // without a connection nothing can have been sent
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	answer, err := c.node(url).queue.Submit(ctx, connect.NewRequest(request))
	if err == nil && len(answer.Msg.GetResults()) != len(request.Ops) {
		err = fmt.Errorf("%d results for %d operations", len(answer.Msg.GetResults()), len(request.Ops))
	}
	if err == nil {
		o := outcome{results: answer.Msg.GetResults(), handed: true}
		o.trouble = slices.ContainsFunc(o.results, func(r *wire.OpResult) bool {
			return r.GetCode() == wire.Code_CODE_UNAVAILABLE || r.GetCode() == wire.Code_CODE_UNKNOWN
		})
		if o.trouble {
			c.leader.failed(url)
		} else {
			c.leader.answered(url)
		}
		return o
	}
	if n, ok := notLeader(err); ok {
		c.leader.learn(url, n.GetLeaderApi())
		return outcome{err: err}
	}
	if final(err) {
		return outcome{err: fmt.Errorf("%w: %s: %w", ErrNotHandedOver, url, err), final: true}
	}
	c.leader.failed(url)
	c.options.Log.Debug("a batch got no answer", "node", url, "ops", len(request.Ops), "sent", connected.Load(), "err", err)
	return outcome{handed: connected.Load(), err: err}
}

// settle ends the items that have an answer and puts the others back to the front, in their order. It says whether the
// leader answered.
func (b *batcher) settle(batch []*item, o outcome) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	led := o.results != nil && !o.trouble
	if o.handed && !o.trouble { // also when no answer came: those who waited behind it have not waited for a leader
		b.lastContact = time.Now()
	}
	var again []*item
	next := 0
	for _, it := range batch {
		it.sent = false
		b.flying -= len(it.ops)
		var result *wire.OpResult
		if o.results != nil {
			result = worst(o.results[next : next+len(it.ops)])
			next += len(it.ops)
		}
		switch code := result.GetCode(); {
		case it.over: // nobody listens
		case result != nil && code == wire.Code_CODE_OK:
			b.finish(it, result, nil)
		case o.final && !it.unknown:
			b.finish(it, nil, o.err)
		case result == nil && !o.handed || code == wire.Code_CODE_UNAVAILABLE: // nothing happened this time
			if o.final {
				b.finish(it, nil, fmt.Errorf("%w: %w", ErrUnknown, o.err))
			} else {
				again = append(again, it)
			}
		case result == nil || code == wire.Code_CODE_UNKNOWN:
			it.unknown = true
			again = append(again, it)
		case it.unknown: // refused now, which says nothing about the first attempt
			b.finish(it, nil, fmt.Errorf("%w: a repetition answered %v: %s", ErrUnknown, code, result.GetDetail()))
		default:
			b.finish(it, result, nil)
		}
	}
	for _, it := range again {
		b.count(it, 1)
	}
	b.queue = slices.Insert(b.queue, 0, again...)
	if !led {
		b.expire(cmp.Or(o.err, ErrNoLeader))
	}
	return led
}

// worst of the results of one item: an accept is as good as its frames.
func worst(results []*wire.OpResult) *wire.OpResult {
	for _, r := range results {
		if r.GetCode() != wire.Code_CODE_OK {
			return r
		}
	}
	return results[0]
}

// noLeader ends the patience of items that have waited long enough for one.
func (b *batcher) noLeader() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire(ErrNoLeader)
}

// expire runs under mu. Items of unknown outcome wait on: a leader that comes back settles them, and their caller's ctx bounds it.
func (b *batcher) expire(cause error) {
	if !errors.Is(cause, ErrNoLeader) {
		cause = fmt.Errorf("%w: %w", ErrNoLeader, cause)
	}
	now := time.Now()
	b.queue = slices.DeleteFunc(b.queue, func(it *item) bool {
		if it.over {
			return true
		}
		since := it.since
		if b.lastContact.After(since) {
			since = b.lastContact
		}
		if it.unknown || now.Sub(since) < b.client.options.LeaderWait {
			return false
		}
		b.count(it, -1)
		b.finish(it, nil, cause)
		return true
	})
}

// finish runs under mu.
func (b *batcher) finish(it *item, result *wire.OpResult, err error) {
	it.over, it.result, it.err = true, result, err
	close(it.done)
}

// failAll ends everything that waits, when no sender runs any more.
func (b *batcher) failAll(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, it := range b.queue {
		switch {
		case it.over:
		case it.unknown:
			b.finish(it, nil, fmt.Errorf("%w: the client was closed", ErrUnknown))
		default:
			b.finish(it, nil, cause)
		}
	}
	b.queue, b.ops, b.bytes = nil, 0, 0
}
