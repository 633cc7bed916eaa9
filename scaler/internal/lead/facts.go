package lead

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/decide"
	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// facts is the newest reading of the queue, its times converted to this process's clock.
type facts struct {
	began     time.Time // when the reading began; zero: never read
	history   map[string]time.Time
	overrides map[string]*decide.Override
	live      []demand.Edge
	vanished  map[string]time.Time // when, by name of the edge
}

type reading struct {
	began, ended time.Time
	facts        *wire.FactsResponse
}

// reader reads the facts beside the loop: on request, on a hint, and slowly.
type reader struct {
	queue    Queue
	log      *slog.Logger
	ask      chan struct{}
	readings chan reading
}

func newReader(queue Queue, log *slog.Logger) *reader {
	return &reader{queue: queue, log: log, ask: make(chan struct{}, 1), readings: make(chan reading)}
}

func (r *reader) run(ctx context.Context, hint <-chan struct{}) {
	failures := 0
	for {
		one := reading{began: time.Now()}
		bounded, cancel := context.WithTimeout(ctx, factsTimeout)
		answer, err := r.queue.Facts(bounded)
		cancel()
		one.ended, one.facts = time.Now(), answer
		pace := factsEvery
		if err != nil {
			failures++
			pace = min(time.Duration(failures)*factsEvery/20, factsEvery)
			if failures == 1 {
				r.log.Warn("the queue's facts cannot be read, nothing shrinks meanwhile", "err", err)
			}
		} else {
			failures = 0
			select {
			case r.readings <- one:
			case <-ctx.Done():
				return
			}
		}
		timer := time.NewTimer(pace)
		ask, hint := r.ask, hint
		if failures > 0 {
			ask, hint = nil, nil // the pace is quick enough, and bounded
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-ask:
		case <-hint:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// read takes a reading over.
func (o *office) read(one reading) {
	o.facts = convert(one)
	live := make(map[demand.Edge]bool, len(o.facts.live))
	for _, edge := range o.facts.live {
		live[edge] = true
	}
	view := o.Fleet.View()
	o.Loads.Keep(time.Now(), func(e demand.Edge) bool { return live[e] }, func(name string) bool { return view.Functions[name] != nil })
	for name, at := range o.facts.history {
		if at.After(o.saved[name]) {
			o.saved[name] = at
		}
	}
}

func convert(one reading) facts {
	now := one.facts.GetNowUnixMs()
	f := facts{
		began: one.began, history: make(map[string]time.Time, len(one.facts.GetHistory())),
		overrides: map[string]*decide.Override{}, vanished: map[string]time.Time{},
	}
	// at converts the queue's own time: only its distance from the queue's now means anything here.
	at := func(unixMs int64) time.Time { return one.ended.Add(time.Duration(unixMs-now) * time.Millisecond) }
	for _, last := range one.facts.GetHistory() {
		f.history[last.GetFunction()] = at(last.GetAtUnixMs())
	}
	for _, override := range one.facts.GetOverrides() {
		f.overrides[override.GetFunction()] = &decide.Override{Replicas: int(override.GetReplicas()), Until: at(override.GetUntilUnixMs())}
	}
	for _, session := range one.facts.GetSessions() {
		switch {
		case session.GetKind() != wire.SessionKind_SESSION_KIND_EDGE:
		case session.GetVanished():
			f.vanished[session.GetName()] = at(session.GetEndedUnixMs())
		case session.GetEndedUnixMs() == 0:
			f.live = append(f.live, demand.Edge{Name: session.GetName(), Incarnation: session.GetIncarnation()})
		}
	}
	return f
}

// hold says why nothing may shrink now, whatever the function; empty: it may.
func (o *office) hold(now time.Time, view *fleet.View) string {
	switch {
	case now.Before(o.began.Add(settle)):
		return fmt.Sprintf("a new leader shrinks nothing for %s", settle)
	case o.facts.began.IsZero():
		return "the history is not read yet"
	case now.Sub(o.facts.began) > factsFresh:
		return "the queue cannot be read"
	case !view.Current:
		return "the orchestrator is not being watched"
	case !o.Demand.Complete():
		return "the queue has not said what it holds"
	}
	reports := map[demand.Edge]demand.Report{}
	for _, report := range o.Loads.Edges() {
		reports[report.Edge] = report
	}
	for _, edge := range o.facts.live {
		report, heard := reports[edge]
		switch {
		case !heard || !report.Complete:
			return edge.Name + " has not reported its load"
		case report.Epoch != o.epoch:
			return fmt.Sprintf("%s has not reported under epoch %d", edge.Name, o.epoch)
		case now.Sub(report.Heard) > demand.Fresh:
			return edge.Name + " is silent"
		}
	}
	for name, at := range o.facts.vanished {
		if alive, known := view.Parts[name]; known && !alive {
			continue // the orchestrator says that it is dead: nothing of it is under way
		}
		if now.Before(at.Add(o.VanishedBlocks)) {
			return name + " vanished and may still have calls"
		}
	}
	return ""
}

// saveBeside persists activity beside the loop.
func (o *office) saveBeside(ctx context.Context) {
	ops, saving := o.unsaved()
	if len(ops) == 0 {
		return
	}
	o.wait.Go(func() {
		if o.save(ctx, ops) != nil {
			return
		}
		o.deliver(ctx, result{saved: saving})
	})
}

// persist saves activity before the term ends. The context is not bounded by the term: it is by itself.
func (o *office) persist(ctx context.Context, _ time.Time) {
	ctx, cancel := context.WithTimeout(ctx, factsTimeout/2)
	defer cancel()
	if ops, _ := o.unsaved(); len(ops) > 0 {
		_ = o.save(ctx, ops) //nolint:errcheck // logged there
	}
}

// unsaved builds the operations that persist what changed, and what they will have saved.
func (o *office) unsaved() ([]*wire.Op, map[string]time.Time) {
	const (
		worth = time.Second // less is no news
		maxOp = 1000        // activities in one operation
	)
	now := time.Now()
	var ops []*wire.Op
	var batch *wire.RecordActivity
	saving := map[string]time.Time{}
	for name, at := range o.latest {
		if at.Sub(o.saved[name]) < worth {
			continue
		}
		if batch == nil || len(batch.Activities) == maxOp {
			batch = &wire.RecordActivity{}
			ops = append(ops, &wire.Op{Op: &wire.Op_RecordActivity{RecordActivity: batch}})
		}
		saving[name] = at
		age := max(now.Sub(at), 0).Milliseconds()
		batch.Activities = append(batch.Activities, &wire.Activity{Function: name, AgeMs: uint64(age)}) //nolint:gosec // not negative
	}
	return ops, saving
}

func (o *office) save(ctx context.Context, ops []*wire.Op) error {
	for _, op := range ops {
		one, cancel := context.WithTimeout(ctx, factsTimeout)
		_, err := o.Queue.Do(one, op)
		cancel()
		if err != nil {
			o.Log.Warn("activity could not be persisted, it will be tried again", "err", err)
			return err
		}
	}
	return nil
}
