package lead_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/scaler/internal/catalogue"
	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/lead"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/orchestratortest"
	"github.com/slimfaas/slimfaas/scaler/internal/waking"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// world is everything around one leader: an orchestrator in memory, a bus that loses nothing, a queue with facts, and edges that
// behave. It lives in a synctest bubble, so its time is exact.
type world struct {
	t            *testing.T
	orchestrator *orchestratortest.Fake
	queue        *queue
	edges        []*edge

	mu      sync.Mutex
	records []*wire.FunctionRecord
	digests []*wire.TableDigest
	tables  []*wire.TableDigest // answered to TableAsk

	fleet  *fleet.Fleet
	loads  *demand.Loads
	demand *demand.Queue
	waker  *waking.Waker
	leader *lead.Leader
}

// play runs a test in a bubble, with a world that has the edges named.
func play(t *testing.T, edges []string, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, orchestrator: orchestratortest.NewFake(), queue: &queue{history: map[string]time.Time{}, overrides: map[string]override{}}}
		w.orchestrator.StartTime = 100 * time.Millisecond
		for _, name := range edges {
			w.addEdge(name)
		}
		w.fresh()
		test(w)
	})
}

// fresh makes a scaler that knows nothing yet.
func (w *world) fresh() {
	log := slog.New(slog.DiscardHandler)
	w.fleet = fleet.New(time.Now, log)
	w.loads, w.demand = demand.NewLoads(), demand.NewQueue()
	w.waker = waking.New(waking.Options{
		Orchestrator: w.orchestrator, Fleet: w.fleet, Log: log,
		Sighted: func(string, *fleet.Function, *orchestrator.Replica) {}, Leading: func() bool { return w.leader.Epoch() != 0 },
	})
	w.leader = lead.New(lead.Options{
		Name: "scaler-0", Orchestrator: w.orchestrator, Fleet: w.fleet, Loads: w.loads, Demand: w.demand,
		Catalogue: catalogue.New("scaler-0", "here:1"), Bus: bus{w}, Queue: w.queue, Waker: w.waker, Log: log,
		IdleDrain: 30 * time.Second, ShrinkDrain: 300 * time.Second, VanishedBlocks: 60 * time.Second,
	})
}

// lead runs the scaler as leader for a while; the edges report meanwhile.
func (w *world) lead(token uint64, while func()) error {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	var wait sync.WaitGroup
	var ended error
	wait.Go(func() { _ = w.orchestrator.Watch(ctx, w.fleet) })
	wait.Go(func() { _ = w.waker.Run(ctx) })
	wait.Go(func() { ended = w.leader.Lead(ctx, token, func() bool { return ctx.Err() == nil }) })
	wait.Go(func() {
		full := time.NewTicker(wire.FullReportEvery)
		defer full.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-full.C:
				w.report()
			}
		}
	})
	synctest.Wait()
	while()
	cancel()
	wait.Wait()
	return ended
}

// report lets every edge send everything.
func (w *world) report() {
	for _, e := range w.edges {
		e.report(true)
	}
}

// sleep lets time pass.
func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// until waits for something at most for the given time, and says how long it took.
func (w *world) until(what string, atMost time.Duration, holds func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	for !holds() {
		if time.Since(began) > atMost {
			w.t.Fatalf("%s: not within %s; requests so far %v", what, atMost, w.orchestrator.Log())
		}
		w.sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// never checks that something stays away for a time.
func (w *world) never(what string, during time.Duration, holds func() bool) {
	w.t.Helper()
	for began := time.Now(); time.Since(began) < during; {
		if holds() {
			w.t.Fatalf("%s, after %s; requests %v", what, time.Since(began), w.orchestrator.Log())
		}
		w.sleep(50 * time.Millisecond)
	}
}

func (w *world) wanted(name string) int { return w.orchestrator.Get(name).Wanted }

// record is the newest record of a function that was announced.
func (w *world) record(name string) *wire.FunctionRecord {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, record := range slices.Backward(w.records) {
		if record.GetName() == name {
			return record
		}
	}
	return nil
}

func (w *world) state(name string) string {
	record := w.record(name)
	if record == nil {
		return "none"
	}
	var states []string
	for _, replica := range record.GetReplicas() {
		states = append(states, strings.TrimPrefix(replica.GetState().String(), "REPLICA_STATE_"))
	}
	return fmt.Sprintf("%d %s", record.GetWanted(), strings.Join(states, " "))
}

// up brings a function up by hand, before anybody leads.
func (w *world) up(name string, replicas int) {
	f := w.orchestrator.Get(name)
	if _, err := w.orchestrator.Scale(w.t.Context(), orchestrator.Request{Function: name, Replicas: replicas, IfRevision: f.Revision}); err != nil {
		w.t.Fatal(err)
	}
	w.sleep(w.orchestrator.StartTime)
}

func (w *world) explain(name string) *lead.Explanation {
	w.t.Helper()
	e, found, err := w.leader.Explain(w.t.Context(), name)
	if err != nil || !found {
		w.t.Fatalf("explain %s: %v, %v", name, found, err)
	}
	return e
}

// bus carries records to the edges at once.
type bus struct{ world *world }

func (b bus) Publish(subject string, message proto.Message) error {
	w := b.world
	switch m := proto.Clone(message).(type) {
	case *wire.RecordAnnouncement:
		w.mu.Lock()
		w.records = append(w.records, m.GetRecord())
		w.mu.Unlock()
		for _, e := range w.edges {
			e.apply(m.GetRecord())
		}
	case *wire.TableDigest:
		w.mu.Lock()
		w.digests = append(w.digests, m)
		w.mu.Unlock()
	default:
		w.t.Errorf("published on %s: %T", subject, m)
	}
	return nil
}

func (b bus) RequestMany(ctx context.Context, _ string, _ proto.Message, wait time.Duration) ([][]byte, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	b.world.mu.Lock()
	defer b.world.mu.Unlock()
	var answers [][]byte
	for _, digest := range b.world.tables {
		answer, err := proto.Marshal(digest)
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

// edge applies records and reports as real ones do: at once when something begins or ends and when a drain moves.
type edge struct {
	world       *world
	name        string
	incarnation string
	deaf        bool // applies no records
	mute        bool // reports nothing

	mu       sync.Mutex
	sequence uint64
	epoch    uint64
	table    map[string]*wire.FunctionRecord
	open     map[string]map[string]int // by function and replica
	parked   map[string]int
	ended    map[string]time.Time
}

func (w *world) addEdge(name string) *edge {
	e := &edge{
		world: w, name: name, incarnation: "1", table: map[string]*wire.FunctionRecord{}, open: map[string]map[string]int{},
		parked: map[string]int{}, ended: map[string]time.Time{},
	}
	w.edges = append(w.edges, e)
	w.queue.mu.Lock()
	w.queue.sessions = append(w.queue.sessions, &wire.Session{Name: name, Incarnation: "1", Kind: wire.SessionKind_SESSION_KIND_EDGE})
	w.queue.mu.Unlock()
	return e
}

func (e *edge) apply(record *wire.FunctionRecord) {
	e.mu.Lock()
	if e.deaf {
		e.mu.Unlock()
		return
	}
	e.table[record.GetName()] = record
	e.epoch = max(e.epoch, record.GetVersion().GetEpoch())
	e.mu.Unlock()
	e.report(false)
}

func (e *edge) setMute(mute bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mute = mute
}

func (e *edge) setDeaf(deaf bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deaf = deaf
}

func (e *edge) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.ended)
}

// call opens calls on a replica (negative: ends them).
func (e *edge) call(function, replica string, n int) {
	e.mu.Lock()
	if e.open[function] == nil {
		e.open[function] = map[string]int{}
	}
	e.open[function][replica] += n
	e.ended[function] = time.Now()
	e.mu.Unlock()
	e.report(false)
}

func (e *edge) park(function string, n int) {
	e.mu.Lock()
	e.parked[function] += n
	e.ended[function] = time.Now()
	e.mu.Unlock()
	e.report(false)
}

// report sends what the edge has; a delta here simply carries everything too.
func (e *edge) report(full bool) {
	e.mu.Lock()
	if e.mute {
		e.mu.Unlock()
		return
	}
	e.sequence++
	report := &wire.LoadReport{Edge: e.name, Incarnation: e.incarnation, Epoch: e.epoch, Sequence: e.sequence, Full: full, Parts: 1}
	for name, record := range e.table {
		load := &wire.FunctionLoad{Function: name, Parked: uint32(e.parked[name])}
		for _, open := range e.open[name] {
			load.InFlight += uint32(open)
		}
		if at, ok := e.ended[name]; ok {
			load.ActiveBefore, load.AgeMs = true, uint64(time.Since(at).Milliseconds())
		}
		for _, replica := range record.GetReplicas() {
			if replica.GetState() == wire.ReplicaState_REPLICA_STATE_DRAINING {
				load.Draining = append(load.Draining, &wire.DrainReport{
					Replica: replica.GetName(), Version: record.GetVersion(), Open: uint32(e.open[name][replica.GetName()]),
				})
			}
		}
		report.Functions = append(report.Functions, load)
	}
	e.mu.Unlock()
	if e.world.loads.Apply(time.Now(), report) {
		e.world.leader.Changed()
	}
}

// queue is the queue as far as a leader sees it.
type queue struct {
	mu        sync.Mutex
	down      bool
	sessions  []*wire.Session
	history   map[string]time.Time
	overrides map[string]override
	demand    *wire.DemandReport
	recorded  int // operations that recorded activity
}

type override struct {
	replicas int
	until    time.Time
}

func (q *queue) setDown(down bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.down = down
}

func (q *queue) operations() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.recorded
}

func (q *queue) Do(_ context.Context, op *wire.Op) (*wire.OpResult, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		return nil, context.DeadlineExceeded
	}
	q.recorded++
	for _, activity := range op.GetRecordActivity().GetActivities() {
		q.history[activity.GetFunction()] = time.Now().Add(-time.Duration(activity.GetAgeMs()) * time.Millisecond)
	}
	return &wire.OpResult{Code: wire.Code_CODE_OK}, nil
}

// skew is how far the queue's clock is from ours: nothing may depend on it.
const skew = 42 * time.Hour

func (q *queue) Facts(context.Context) (*wire.FactsResponse, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		return nil, context.DeadlineExceeded
	}
	unix := func(at time.Time) int64 { return at.Add(skew).UnixMilli() }
	answer := &wire.FactsResponse{NowUnixMs: unix(time.Now())}
	for _, session := range q.sessions {
		answer.Sessions = append(answer.Sessions, proto.CloneOf(session))
	}
	for name, at := range q.history {
		answer.History = append(answer.History, &wire.LastActivity{Function: name, AtUnixMs: unix(at)})
	}
	for name, o := range q.overrides {
		answer.Overrides = append(answer.Overrides, &wire.Override{Function: name, Replicas: int32(o.replicas), UntilUnixMs: unix(o.until)})
	}
	return answer, nil
}

func (q *queue) Demand(context.Context) (*wire.DemandReport, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		return nil, context.DeadlineExceeded
	}
	if q.demand == nil {
		return &wire.DemandReport{Term: 1, Full: true, Parts: 1}, nil
	}
	return q.demand, nil
}

// operator asks for replicas, as PUT /scale does.
func (w *world) operator(name string, replicas int, during time.Duration) {
	w.queue.mu.Lock()
	w.queue.overrides[name] = override{replicas, time.Now().Add(during)}
	w.queue.mu.Unlock()
	w.leader.FactsChanged()
	synctest.Wait()
}

// vanish ends an edge's session without a close.
func (w *world) vanish(name string) {
	w.queue.mu.Lock()
	for _, session := range w.queue.sessions {
		if session.GetName() == name {
			session.Vanished, session.EndedUnixMs = true, time.Now().Add(skew).UnixMilli()
		}
	}
	w.queue.mu.Unlock()
	for _, e := range w.edges {
		if e.name == name {
			e.setMute(true)
			e.setDeaf(true)
		}
	}
	w.leader.FactsChanged()
}
