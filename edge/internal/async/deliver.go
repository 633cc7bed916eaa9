package async

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/tracing"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// welcomeWithin is how long a leader may take to open the session; longer, and another node is asked.
	welcomeWithin = 3 * time.Second
	// pause is between connections, unless another node is known to lead; Options.Open paces attempts that fail again and again.
	pause = 50 * time.Millisecond
	// settleWithin bounds, at the stop, the wait for acknowledgements and then the end of the session.
	settleWithin = 2 * time.Second
	// maxLoose is how many refusals of tries that were never held wait to be sent; more are left to the heartbeat.
	maxLoose = 1024
)

// Stream is the open Deliver stream; connect's bidirectional stream has it.
type Stream interface {
	Send(*wire.DeliverUp) error
	Receive() (*wire.DeliverDown, error)
	CloseRequest() error
	CloseResponse() error
}

// Options of a Deliverer. All are needed unless a zero value is explained.
type Options struct {
	Name    string
	Address string // where this edge answers; informative, may be empty
	// MaxHeld is how many tries are held at one time. 0: the edge keeps its session and delivers nothing.
	MaxHeld uint32
	// MaxBytes is about how much their payloads may take together: from three quarters on, no more are asked for. Answers that
	// callers want may take as much again.
	MaxBytes int64
	// Drain bounds the wait for tries under way at the stop.
	Drain time.Duration
	// Open connects to the queue leader. It paces itself when streams it opened do not come to their welcome.
	Open func(context.Context) (Stream, string, error)
	// Do hands an operation to the queue leader.
	Do Do
	// ReadBody reads the body of a call that was accepted in parts, from the queue leader, while ctx lives.
	ReadBody func(ctx context.Context, id []byte, fence, size uint64) Pieces
	Replicas *replica.Set
	Log      *slog.Logger
	Tracer   *tracing.Tracer // nil: no spans
}

// Deliverer keeps this edge's session and carries out the tries granted to it. Create it with New, then Run it once.
type Deliverer struct {
	opts        Options
	incarnation string
	transport   *message.Transport
	answers     *message.Budget // what answers that callers want take until they are handed in
	tries       sync.WaitGroup

	accepts   term            // of accepts whose first try comes with the answer
	mu        sync.Mutex      // guards all below; never held across I/O
	root      context.Context // of every try; set by Run
	held      map[key]*held
	expected  map[message.ID]struct{} // accepts under way that may bring their first try
	bytes     int64                   // of payloads held
	unsent    []*held                 // with a result to be sent on this connection
	again     []*held                 // the same, with the next heartbeat: the leader could not record it
	loose     []*wire.TryResult       // refusals of tries that are not held
	session   uint64                  // 0: none yet
	opened    chan struct{}           // closed by the first welcome
	conn      *connection             // nil while there is none
	draining  bool
	emptied   chan struct{}                         // while draining: closed when nothing is held
	listeners map[string]map[chan struct{}]struct{} // tries that wait for a change of a function's record
}

// connection is one life of the stream.
type connection struct {
	node     string
	stream   Stream
	wake     chan struct{} // capacity 1
	ordered  atomic.Uint64 // version of the last order of run slots that was taken
	list     bool          // guarded by Deliverer.mu: send the list with the next heartbeat, now
	capacity uint32        // guarded by Deliverer.mu: last told
}

// New returns a Deliverer with an incarnation of its own.
func New(opts Options) *Deliverer {
	return &Deliverer{
		opts: opts, incarnation: uuid.NewString(), transport: message.NewTransport(),
		answers: message.NewBudget(math.MaxInt64, opts.MaxBytes),
		opened:  make(chan struct{}), held: map[key]*held{}, expected: map[message.ID]struct{}{}, listeners: map[string]map[chan struct{}]struct{}{},
	}
}

// Incarnation differs between two lives of one edge.
func (d *Deliverer) Incarnation() string { return d.incarnation }

// Session of this edge in the queue, waited for until ctx ends: an edge that has just started has it a moment after its first call
// may come. The error is that of ctx.
func (d *Deliverer) Session(ctx context.Context) (uint64, error) {
	select {
	case <-d.opened:
		return d.State().Session, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// State is what a Deliverer is about, for status pages and metrics.
type State struct {
	Session uint64 // 0: none yet
	Node    string // queue node it is connected to; empty: none
	Held    int
	Bytes   int64
}

// State reads the state of this moment.
func (d *Deliverer) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := State{Session: d.session, Held: len(d.held), Bytes: d.bytes}
	if d.conn != nil {
		s.Node = d.conn.node
	}
	return s
}

// Run keeps the session until ctx ends, then drains: asks for no more, lets tries end within Options.Drain, hands in results
// and closes the session. While the queue is away, tries go on to their end. It returns when all that it started has ended.
func (d *Deliverer) Run(ctx context.Context) error {
	// Tries and the stream outlive ctx, by the bounded drain only.
	life, endLife := context.WithCancel(context.WithoutCancel(ctx))
	defer endLife()
	root, endTries := context.WithCancelCause(life)
	defer endTries(nil)
	d.mu.Lock()
	d.root = root
	d.mu.Unlock()

	var stopper sync.WaitGroup
	stopper.Go(func() {
		<-ctx.Done()
		d.drain(func() { endTries(errStopped) })
		endLife()
	})
	for life.Err() == nil {
		err := d.connect(life)
		if life.Err() != nil {
			break
		}
		d.opts.Log.Info("stream to the queue ended", "err", err)
		if !errors.Is(err, errMoved) {
			done(life.Done(), pause)
		}
	}
	stopper.Wait()
	d.closeSession(context.WithoutCancel(ctx))
	endTries(errStopped)
	d.tries.Wait()
	d.transport.Close()
	return nil
}

var (
	errMoved   = errors.New("another node leads")
	errStopped = errors.New("the edge was stopped")
)

// connect lives through one connection.
func (d *Deliverer) connect(life context.Context) error {
	ctx, cancel := context.WithCancel(life)
	defer cancel()
	stream, node, err := d.opts.Open(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the queue leader: %w", err)
	}
	c, hello := d.begin(stream, node)
	// Both ends are closed by hand: while net/http waits for more of a request's body, it does not notice that the context
	// has ended, and a Receive under way would go on waiting.
	hangUp := func() {
		_ = stream.CloseRequest()
		_ = stream.CloseResponse()
	}
	defer hangUp()
	defer context.AfterFunc(ctx, hangUp)()
	// A node that takes the connection and says nothing is left.
	slow := time.AfterFunc(welcomeWithin, cancel)
	defer slow.Stop()
	if err := stream.Send(hello); err != nil {
		return fmt.Errorf("saying hello to %s: %w", node, err)
	}
	first, err := stream.Receive()
	if err != nil {
		return fmt.Errorf("waiting for the welcome of %s: %w", node, err)
	}
	slow.Stop()
	if first.GetNotLeader() != nil {
		return errMoved
	}
	if first.GetWelcome() == nil {
		return fmt.Errorf("node %s began with %T instead of a welcome", node, first.GetDown())
	}
	d.welcome(c, first.GetWelcome())
	defer d.leave()

	var writer sync.WaitGroup
	writer.Go(func() {
		defer cancel() // a stream that takes nothing more is over for the reader too
		d.write(ctx, c)
	})
	defer writer.Wait()
	defer cancel()
	for {
		down, err := stream.Receive()
		if err != nil {
			return fmt.Errorf("reading from %s: %w", node, err)
		}
		if down.GetNotLeader() != nil {
			return errMoved
		}
		d.take(c, down)
	}
}

// begin makes the next connection and its hello. What was being assembled went down with the last one.
func (d *Deliverer) begin(stream Stream, node string) (*connection, *wire.DeliverUp) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.held {
		if h.assembling() {
			d.settle(h, released(h, "the stream broke while the request came"))
		}
	}
	d.unsent, d.again = nil, nil // all results go out anew
	for _, h := range d.held {
		if h.result != nil {
			d.unsent = append(d.unsent, h)
		}
	}
	c := &connection{node: node, stream: stream, wake: make(chan struct{}, 1), capacity: d.capacity()}
	return c, &wire.DeliverUp{Up: &wire.DeliverUp_Hello{Hello: &wire.Hello{
		Name: d.opts.Name, Incarnation: d.incarnation, Address: d.opts.Address,
		Capacity: &wire.Capacity{MaxHeld: c.capacity}, Held: list(d.held, d.expected),
		Slots: &wire.SlotReport{Functions: d.opts.Replicas.SlotReport(true)},
	}}}
}

// welcome takes the session's number. Another one than before means that the queue has given up the tries of the old.
func (d *Deliverer) welcome(c *connection, w *wire.Welcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != 0 && d.session != w.GetSession() {
		d.opts.Log.Warn("session was lost, dropping what was held", "session", d.session, "held", len(d.held))
		for _, h := range d.held {
			d.drop(h)
		}
		d.loose, d.unsent, d.again = nil, nil, nil
	}
	if d.session == 0 {
		close(d.opened)
	}
	d.session, d.conn = w.GetSession(), c
	d.opts.Log.Info("session with the queue", "session", d.session, "node", c.node)
}

func (d *Deliverer) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = nil
}

// write sends heartbeats, results and capacity until ctx ends or the stream breaks. The first heartbeat lists what is held.
func (d *Deliverer) write(ctx context.Context, c *connection) {
	tick := time.NewTicker(wire.HeartbeatEvery)
	defer tick.Stop()
	beat, listed := true, true
	for {
		ups := d.due(c, beat, listed)
		if report := d.slots(c, beat); report != nil {
			ups = append(ups, report)
		}
		for _, up := range ups {
			if c.stream.Send(up) != nil {
				return // the reader has the reason
			}
		}
		beat, listed = false, false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			beat = true
		case <-c.wake:
		}
	}
}

// due collects what is to be sent on c now.
func (d *Deliverer) due(c *connection, beat, listed bool) []*wire.DeliverUp {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ups []*wire.DeliverUp
	if want := d.capacity(); want != c.capacity {
		c.capacity = want
		ups = append(ups, &wire.DeliverUp{Up: &wire.DeliverUp_Capacity{Capacity: &wire.Capacity{MaxHeld: want}}})
	}
	if beat {
		d.unsent, d.again = append(d.unsent, d.again...), nil
	}
	for _, h := range d.unsent {
		if d.held[h.key] == h {
			ups = append(ups, &wire.DeliverUp{Up: &wire.DeliverUp_Result{Result: h.result}})
		}
	}
	d.unsent = nil
	for _, r := range d.loose {
		ups = append(ups, &wire.DeliverUp{Up: &wire.DeliverUp_Result{Result: r}})
	}
	d.loose = nil
	if listed = listed || c.list; beat || listed {
		c.list = false
		ups = append(ups, &wire.DeliverUp{Up: &wire.DeliverUp_Heartbeat{Heartbeat: heartbeat(d.held, d.expected, listed)}})
	}
	return ups
}

// slots is the report of run slots that is due; nil: none.
func (d *Deliverer) slots(c *connection, whole bool) *wire.DeliverUp {
	applied := c.ordered.Load() // before: what is reported is at least as new
	functions := d.opts.Replicas.SlotReport(whole)
	if len(functions) == 0 {
		return nil
	}
	return &wire.DeliverUp{Up: &wire.DeliverUp_Slots{Slots: &wire.SlotReport{Applied: applied, Functions: functions}}}
}

// SlotsChanged sends a report of run slots soon.
func (d *Deliverer) SlotsChanged() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nudge()
}

// capacity is how many tries to ask for. Holds mu.
func (d *Deliverer) capacity() uint32 {
	switch {
	case d.draining:
		return 0
	case d.bytes > d.opts.MaxBytes/4*3:
		return min(d.opts.MaxHeld, uint32(len(d.held)))
	}
	return d.opts.MaxHeld
}

// nudge lets the writer look for what is due. Holds mu.
func (d *Deliverer) nudge() {
	if d.conn == nil {
		return
	}
	select {
	case d.conn.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// drain brings everything held to its end, as far as the time allows. cut ends the tries that take too long.
func (d *Deliverer) drain(cut func()) {
	d.mu.Lock()
	d.draining = true
	d.emptied = make(chan struct{})
	emptied := d.emptied
	for _, h := range d.held {
		if h.assembling() {
			d.settle(h, released(h, "the edge takes no more calls"))
		}
	}
	if len(d.held) == 0 {
		close(d.emptied)
		d.emptied = nil
	}
	d.nudge()
	d.mu.Unlock()

	idle := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() {
		d.tries.Wait()
		close(idle)
	})
	if !done(idle, d.opts.Drain) {
		d.opts.Log.Warn("tries did not end in time, cutting them", "after", d.opts.Drain)
	}
	cut()
	waiter.Wait()
	if !done(emptied, settleWithin) {
		d.opts.Log.Warn("results were not acknowledged before the stop", "held", d.State().Held)
	}
}

// closeSession says that this edge goes in order: one that only vanishes holds up shrinking. No stream may be open or opened any
// more; its hello would open the session again.
func (d *Deliverer) closeSession(ctx context.Context) {
	session := d.State().Session
	if session == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	_, err := d.opts.Do(ctx, &wire.Op{Op: &wire.Op_CloseSession{CloseSession: &wire.CloseSession{Session: session}}})
	if err != nil {
		d.opts.Log.Warn("closing the session with the queue", "session", session, "err", err)
	}
}

// done waits for a channel to close, at most so long.
func done(c <-chan struct{}, within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
		return false
	}
}
