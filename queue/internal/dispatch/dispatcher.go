// Package dispatch decides, on the leader, who delivers what now: run slots, lanes, sessions' timers, outcomes, demand. It
// proposes and never applies. office and the types in it are pure; Dispatcher is the shell around them.
package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// safetyTick looks again at everything that events should have told; nothing waits for it in normal life.
	safetyTick = time.Second
	// retryPause after a proposal that failed, so that a leader without its majority does not spin.
	retryPause = 50 * time.Millisecond
	// reportSpacing joins reports of counts that flip faster than anybody can react.
	reportSpacing = 20 * time.Millisecond
	// forgetLimit of calls that one command drops.
	forgetLimit = 10_000
)

// Log is the Raft node.
type Log interface {
	// Propose answers within seconds; after it returned, Changed has been called for what it committed.
	Propose(ctx context.Context, commands []command.Command) ([]fsm.Result, uint64, error)
	View(read func(*fsm.Machine))
	// Payload of the call accepted at this place.
	Payload(seq uint64) ([]byte, error)
	Term() uint64
}

// Table is this node's copy of the function table. Its methods do not block.
type Table interface {
	Function(name string) (Function, bool)
	// Synced says whether the copy has been complete once.
	Synced() bool
}

// Bus publishes hints.
type Bus interface {
	Publish(subject string, m proto.Message) error
}

// Config of a Dispatcher.
type Config struct {
	Node   string
	Log    Log
	Table  Table
	Bus    Bus
	Limits Limits
	// NotLeader says who leads, for edges that must go there.
	NotLeader func() *wire.NotLeader
	Logger    *slog.Logger
}

// Dispatcher works while this node leads and refuses while it does not.
type Dispatcher struct {
	config Config
	log    *slog.Logger
	wake   chan struct{} // of one: the office may have something to propose
	report chan struct{} // of one: demand flipped

	mu       sync.Mutex // guards the rest and all in office; taken after the node's own lock (View), never before
	office   *office    // nil: not leading
	draining bool       // no more streams
	direct   uint64     // tries that went with the accept
}

// New makes a dispatcher. The node must be told of Lead and Changed.
func New(c Config) *Dispatcher {
	c.Limits = c.Limits.complete()
	return &Dispatcher{config: c, log: c.Logger, wake: make(chan struct{}, 1), report: make(chan struct{}, 1)}
}

// ErrNotLeading says that this node does not lead, or has not taken office yet.
var ErrNotLeading = errors.New("node does not lead")

// Lead is what the node calls when it takes office. It returns soon after ctx, which ends with the leadership.
func (d *Dispatcher) Lead(ctx context.Context) {
	var o *office
	d.config.Log.View(func(m *fsm.Machine) {
		d.mu.Lock()
		defer d.mu.Unlock()
		o = newOffice(m, time.Now(), d.config.Table.Function, d.config.Table.Synced(), d.config.Limits)
		d.office = o
	})
	d.log.Info("dispatching", "term", d.config.Log.Term(), "calls", len(o.runs), "functions", len(o.lanes))
	var work sync.WaitGroup
	work.Go(func() { d.dispatch(ctx, o) })
	work.Go(func() { d.announce(ctx, o) })
	work.Go(func() { d.housekeep(ctx, o) })
	work.Wait()

	d.mu.Lock()
	defer d.mu.Unlock()
	d.office = nil
	for _, s := range o.linked {
		s.link.close()
	}
}

// Changed follows the state machine; the node calls it for each entry, in order. It does not block.
func (d *Dispatcher) Changed(index uint64, changes []fsm.Change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office == nil {
		return
	}
	d.office.apply(index, changes, time.Now())
	if len(changes) > 0 {
		d.hurry()
	}
}

// FunctionChanged follows the table; known false: the function is not in it any more.
func (d *Dispatcher) FunctionChanged(f Function, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office != nil {
		d.office.setFunction(f, known, time.Now())
		d.hurry()
	}
}

// TableSynced tells that the table is complete for the first time.
func (d *Dispatcher) TableSynced() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office != nil {
		d.office.setSynced(time.Now())
		d.hurry()
	}
}

// hurry wakes the loops. Called with mu held.
func (d *Dispatcher) hurry() {
	signal(d.wake)
	if d.office != nil && (d.office.flipped || d.office.facts > 0) {
		signal(d.report)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// dispatch proposes what the office has, two proposals at a time, so that the next gathers meanwhile.
func (d *Dispatcher) dispatch(ctx context.Context, o *office) {
	var flying sync.WaitGroup
	defer flying.Wait()
	slots := make(chan struct{}, wire.MaxBatchesInFlight)
	safety := time.NewTicker(safetyTick)
	defer safety.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		b, next := d.gather(o)
		if len(b.commands) > 0 {
			flying.Go(func() {
				defer func() { <-slots }()
				d.propose(ctx, o, b)
			})
			continue
		}
		<-slots
		timer.Reset(time.Until(next))
		select {
		case <-d.wake:
		case <-timer.C:
		case <-safety.C:
			d.with(o, func(now time.Time) {
				if !o.synced && d.config.Table.Synced() {
					o.setSynced(now)
				}
				o.recheck(now)
			})
		case <-ctx.Done():
			return
		}
	}
}

// with runs f on the office, unless it is over.
func (d *Dispatcher) with(o *office, f func(now time.Time)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office != o {
		return false
	}
	f(time.Now())
	d.hurryReport()
	return true
}

func (d *Dispatcher) hurryReport() {
	if d.office.flipped || d.office.facts > 0 {
		signal(d.report)
	}
}

func (d *Dispatcher) gather(o *office) (b batch, next time.Time) {
	d.with(o, func(now time.Time) {
		o.tick(now)
		b, next = o.batch(now), o.next()
	})
	return b, next
}

func (d *Dispatcher) propose(ctx context.Context, o *office, b batch) {
	results, _, err := d.config.Log.Propose(ctx, b.commands)
	if err == nil {
		d.with(o, func(now time.Time) { o.committed(b, results, now) })
		signal(d.wake)
		return
	}
	if ctx.Err() == nil {
		d.log.Warn("proposing runs and results failed, trying again", "err", err, "commands", len(b.commands))
		pause(ctx, retryPause)
	}
	d.with(o, func(time.Time) { o.failed(b) })
	signal(d.wake)
}

func pause(ctx context.Context, t time.Duration) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// announce publishes demand: what flipped at once, what changed each second, everything every five; and a hint when an
// operator's override changed.
func (d *Dispatcher) announce(ctx context.Context, o *office) {
	term := d.config.Log.Term()
	var sequence uint64
	var lastFull time.Time
	tick := time.NewTicker(wire.ReportEvery)
	defer tick.Stop()
	for {
		full := time.Since(lastFull) >= wire.FullReportEvery
		var list []*wire.FunctionDemand
		var facts uint64
		d.with(o, func(now time.Time) {
			list = o.demand(full, now)
			facts, o.facts = o.facts, 0
		})
		if full {
			lastFull = time.Now()
		}
		for _, r := range parts(list, full) {
			sequence++
			r.Node, r.Term, r.Sequence = d.config.Node, term, sequence
			d.publish(wire.SubjectDemand, r)
		}
		if facts > 0 {
			d.publish(wire.SubjectFacts, &wire.FactsChanged{Index: facts})
		}
		pause(ctx, reportSpacing)
		select {
		case <-d.report:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// publish is a hint: lost, the next full report or poll brings it.
func (d *Dispatcher) publish(subject string, m proto.Message) {
	if err := d.config.Bus.Publish(subject, m); err != nil {
		d.log.Debug("hint not published", "subject", subject, "err", err)
	}
}

// Heartbeat of a scaler's session. live false: it has ended, or is another's.
func (d *Dispatcher) Heartbeat(id uint64, incarnation string) (live bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office == nil {
		return false, ErrNotLeading
	}
	return d.office.touch(id, incarnation, time.Now()), nil
}

// Callback gives the command that ends a call by its callback. found false: no try of this call of this function is under way.
func (d *Dispatcher) Callback(id command.ID, function string, success bool) (f command.Finish, found bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office == nil {
		return f, false, ErrNotLeading
	}
	f, found = d.office.callback(id, function, success, time.Now())
	return f, found, nil
}

// Demand of every function that has calls.
func (d *Dispatcher) Demand() (*wire.DemandReport, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.office == nil {
		return nil, ErrNotLeading
	}
	return &wire.DemandReport{
		Node: d.config.Node, Term: d.config.Log.Term(), Full: true, Parts: 1, Functions: d.office.snapshot(time.Now()),
	}, nil
}

// Drain ends the streams of edges and takes no more: the node stops.
func (d *Dispatcher) Drain() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.draining = true
	if d.office != nil {
		for _, s := range slices.Clone(d.office.linked) {
			d.office.unlink(s)
		}
	}
}

// Stats for metrics; all but Direct are zero while not leading.
type Stats struct {
	Leading  bool
	Runs     int // slots in use by tries, awaiting callbacks included
	Granting int // grants being proposed
	Sessions int
	Streams  int
	Direct   uint64 // first tries given with the accept, since the process started
}

// Stats of this moment.
func (d *Dispatcher) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.office
	if o == nil {
		return Stats{Direct: d.direct}
	}
	return Stats{Leading: true, Runs: len(o.runs), Granting: len(o.pending), Sessions: len(o.sessions), Streams: len(o.linked), Direct: d.direct}
}
