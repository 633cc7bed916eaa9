// Package lead is what the leading scaler does: it states the function table, and carries out what package decide decides.
// One goroutine per term owns all of its state; everything that may block runs beside it and reports back.
package lead

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/scaler/internal/catalogue"
	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// settle is how long a new leader shrinks nothing.
	settle = 5 * time.Second
	// askFor is how long answers about the tables others have are gathered.
	askFor = 300 * time.Millisecond
	// factsEvery paces the reading of the queue's facts: the net behind the hints.
	factsEvery = 5 * time.Second
	// demandEvery paces the reading of the queue's demand: without the bus, queued calls wake their function this late. It is the
	// larger part of the 2 s that asynchronous work may be late then (reliability.md, B1).
	demandEvery = time.Second
	// factsTimeout bounds one reading.
	factsTimeout = 2 * time.Second
	// factsFresh: without a successful reading for this long nothing shrinks.
	factsFresh = 15 * time.Second
	// activityEvery paces the persisting of activity.
	activityEvery = 5 * time.Second
	// holdEvery paces looks at what hinders a shrink: most of it is told by events, a little by time.
	holdEvery = 250 * time.Millisecond
	// heardWithin bounds the pause between news from the bus and a look at everything: several at once are one look, and what a call
	// to a sleeping function sets off is left to the waker and the orchestrator, which work at that moment.
	heardWithin = 20 * time.Millisecond
	// maxRestated: a new leader of more functions lets everybody pull instead of publishing each record.
	maxRestated = 1000
	// maxPass bounds the pause after a costly look at everything: a fifth of the time at most is spent looking (10,000 functions
	// take 20 ms). Wakes do not wait for it.
	maxPass = 100 * time.Millisecond
)

// Bus is what a leader needs of the bus.
type Bus interface {
	// Publish sends a message to whoever listens; errors are counted, the next digest repairs.
	Publish(subject string, message proto.Message) error
	// RequestMany gathers answers for a while.
	RequestMany(ctx context.Context, subject string, message proto.Message, wait time.Duration) ([][]byte, error)
}

// Queue is what a leader needs of the queue.
type Queue interface {
	// Do carries out one operation.
	Do(ctx context.Context, op *wire.Op) (*wire.OpResult, error)
	// Facts reads sessions, history and overrides, linearizably.
	Facts(ctx context.Context) (*wire.FactsResponse, error)
	// Demand reads everything the queue holds, from its leader.
	Demand(ctx context.Context) (*wire.DemandReport, error)
}

// Waker raises functions from zero.
type Waker interface {
	// Raise wants a function awake; it never blocks.
	Raise(function string)
	// Woken lists when wakes were last heard, by function.
	Woken() map[string]time.Time
}

// Options of a Leader. All are required.
type Options struct {
	Name         string // of this scaler
	Orchestrator orchestrator.Orchestrator
	Fleet        *fleet.Fleet
	Loads        *demand.Loads
	Demand       *demand.Queue
	Catalogue    *catalogue.Catalogue
	Bus          Bus
	Queue        Queue
	Waker        Waker
	Log          *slog.Logger
	// IdleDrain and ShrinkDrain are how long a drain waits for edges and for open work before it goes on without them: a function
	// that sleeps (its open work cancels the drain anyway), and a shrink an operator asked for.
	IdleDrain   time.Duration
	ShrinkDrain time.Duration
	// VanishedBlocks is how long an edge that vanished without a word hinders shrinking.
	VanishedBlocks time.Duration
}

// Leader leads, one term after the other. Its methods may be called from many goroutines.
type Leader struct {
	Options
	changed chan struct{} // something heard is new
	hint    chan struct{} // the queue's facts changed
	epoch   atomic.Uint64 // of the term that states the table; 0: none
	last    uint64        // highest epoch of any term of this process
	asks    chan func(context.Context, *office)
	figures atomic.Pointer[[]Figures]
	counts  counts
}

type counts struct {
	scaled, cancelled, drained, failed atomic.Uint64
	passes, passing, longest           atomic.Uint64 // looks at everything: how many, how long together and the longest, in ns
}

func (c *counts) passed(took time.Duration) {
	ns := uint64(max(took, 0)) //nolint:gosec // not negative
	c.passes.Add(1)
	c.passing.Add(ns)
	for old := c.longest.Load(); ns > old && !c.longest.CompareAndSwap(old, ns); old = c.longest.Load() {
	}
}

// New makes a leader without a term.
func New(options Options) *Leader {
	return &Leader{
		Options: options, changed: make(chan struct{}, 1), hint: make(chan struct{}, 1), asks: make(chan func(context.Context, *office)),
	}
}

// Changed says that something heard is new: a load, demand, a wake. It never blocks, and hurries nobody: see heardWithin.
func (l *Leader) Changed() { poke(l.changed) }

// FactsChanged says that the queue's facts are new. It never blocks.
func (l *Leader) FactsChanged() { poke(l.hint) }

// Epoch of the term that states the table; 0: this scaler does not lead.
func (l *Leader) Epoch() uint64 { return l.epoch.Load() }

func poke(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// office is one term. Everything in it belongs to its goroutine.
type office struct {
	*Leader
	valid   func() bool
	epoch   uint64
	began   time.Time
	facts   facts
	view    *fleet.View // the one looked at last
	work    map[string]*work
	saved   map[string]time.Time // activity persisted, by function
	latest  map[string]time.Time // activity to persist
	results chan result
	wait    sync.WaitGroup
	resign  error
}

// Lead leads until ctx ends or the term must: another leader has spoken. token is the lock's, valid says whether it is still
// held; it is asked before every effect.
func (l *Leader) Lead(ctx context.Context, token uint64, valid func() bool) error {
	ctx, cancel := context.WithCancel(ctx)
	o := &office{
		Leader: l, valid: valid, began: time.Now(), work: map[string]*work{},
		saved: map[string]time.Time{}, latest: map[string]time.Time{}, results: make(chan result),
	}
	defer o.wait.Wait()
	defer cancel()

	reader := newReader(l.Queue, l.Log)
	o.wait.Go(func() { reader.run(ctx, l.hint) })
	o.wait.Go(func() { o.readDemand(ctx) })

	changed := make(chan struct{}, 1)
	l.Fleet.Notify(changed)
	defer l.Fleet.Forget(changed)
	if !o.synced(ctx, changed) {
		return ctx.Err()
	}
	o.epoch = o.choose(ctx, token)
	if ctx.Err() != nil || !valid() {
		return context.Cause(ctx)
	}
	l.Catalogue.Begin(o.epoch)
	defer l.Catalogue.End()
	defer l.epoch.Store(0)
	defer l.figures.Store(nil)
	l.Log.Info("stating the table", "epoch", o.epoch)

	o.loop(ctx, changed, reader)
	o.persist(context.WithoutCancel(ctx), time.Now()) // bounded inside: what was active must not look idle to the next leader
	if o.resign != nil {
		return o.resign
	}
	return context.Cause(ctx)
}

// loop looks at everything after each event, and carries out what follows.
func (o *office) loop(ctx context.Context, changed <-chan struct{}, reader *reader) {
	digest := time.NewTicker(wire.DigestEvery)
	defer digest.Stop()
	save := time.NewTicker(activityEvery)
	defer save.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	first := true
	for {
		began := time.Now()
		next, ask := o.pass(ctx, began, first)
		o.counts.passed(time.Since(began))
		if first {
			first = false
			o.Leader.epoch.Store(o.epoch)
			o.digest()
		}
		if ask {
			poke(reader.ask)
		}
		if o.resign != nil {
			return
		}
		if o.breathe(ctx, min(4*time.Since(began), maxPass), changed) {
			next = began // there is news: look again
		}
		if next.IsZero() || next.Sub(began) > wire.DigestEvery {
			next = began.Add(wire.DigestEvery)
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
		if !o.await(ctx, next, timer, digest.C, save.C, changed, reader) {
			return
		}
	}
}

// await waits until there is a reason to look at everything, and takes what has come; false: ctx has ended.
func (o *office) await(ctx context.Context, next time.Time, timer *time.Timer, digest, save <-chan time.Time, changed <-chan struct{}, reader *reader) bool {
	heard := o.changed
	for {
		select {
		case <-ctx.Done():
			return false
		case <-heard:
			heard = nil
			timer.Reset(max(min(time.Until(next), heardWithin), time.Millisecond))
			continue
		case <-changed:
		case <-timer.C:
		case <-digest:
			o.digest()
			o.Catalogue.Forget(time.Now(), wire.DeletionKept)
		case <-save:
			o.saveBeside(ctx)
		case reading := <-reader.readings:
			o.read(reading)
		case done := <-o.results:
			o.finished(done)
		case ask := <-o.asks:
			ask(ctx, o)
		}
		return true
	}
}

// breathe keeps a costly pass from taking all of the processor. Replicas that change meanwhile are stated at once, which is cheap;
// true: there were some.
func (o *office) breathe(ctx context.Context, d time.Duration, changed <-chan struct{}) (news bool) {
	const cheap = 5 * time.Millisecond
	if d < cheap {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return news
		case <-changed:
			news = true
			o.restate()
		}
	}
}

// pause for a while, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// synced waits for the first whole view of the orchestrator.
func (o *office) synced(ctx context.Context, changed <-chan struct{}) bool {
	for !o.Fleet.View().Synced {
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
	return true
}

// choose takes an epoch above every one that can be seen.
func (o *office) choose(ctx context.Context, token uint64) uint64 {
	seen := max(token, o.last)
	answers, err := o.Bus.RequestMany(ctx, wire.SubjectTableAsk, &wire.TableAsk{Scaler: o.Name}, askFor)
	if err != nil {
		o.Log.Warn("could not ask for the tables others have", "err", err)
	}
	for _, answer := range answers {
		var digest wire.TableDigest
		if err := proto.Unmarshal(answer, &digest); err == nil {
			seen = max(seen, digest.GetVersion().GetEpoch())
		}
	}
	o.last = seen + 1
	return o.last
}

func (o *office) digest() {
	if digest := o.Catalogue.Digest(); digest != nil && o.valid() {
		o.publish(wire.SubjectDigest, digest)
	}
}

func (o *office) publish(subject string, message proto.Message) {
	if err := o.Bus.Publish(subject, message); err != nil {
		o.Log.Debug("not published, the digest will tell", "subject", subject, "err", err)
	}
}

// announce publishes one record, whole if it fits.
func (o *office) announce(record *wire.FunctionRecord) {
	message := &wire.RecordAnnouncement{Name: record.GetName(), Version: record.GetVersion()}
	if proto.Size(record) <= wire.MaxInlineRecord {
		message.Record = record
	}
	o.publish(wire.SubjectRecord, message)
}

// readDemand reads everything the queue holds, again and again: what changes comes over the bus, and this is the net behind it.
func (o *office) readDemand(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		one, cancel := context.WithTimeout(ctx, factsTimeout)
		report, err := o.Queue.Demand(one)
		cancel()
		if err != nil {
			pause(ctx, demandEvery/2)
			continue
		}
		if o.Demand.Answer(began, time.Now(), report) {
			o.Changed()
		}
		pause(ctx, demandEvery)
	}
}
