package lead

import (
	"context"
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/catalogue"
	"github.com/slimfaas/slimfaas/scaler/internal/decide"
	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/scaler/internal/drain"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// work is what the term knows of one function beyond what it hears.
type work struct {
	active time.Time // newest activity seen here: open or queued work, a wake
	open   bool      // there was open or queued work at the last look
	drain  *drain.Drain
	// leaving were asked to stop and may still be there: nobody is to call them.
	leaving []drain.Victim
	left    time.Time

	busy   bool // a request to the orchestrator is under way
	unsure bool // whether the last request was carried out is not known: victims may be stopping
	retry  time.Time
	pause  time.Duration
	// told is the state the orchestrator last answered with, for as long as its watch shows an older one.
	told  *orchestrator.Scaled
	older []orchestrator.Revision

	decision decide.Decision
	function *decide.Function
	awaits   string // what a drain or a shrink waits for
	stated   stated
}

// stated is what the last record was built from; an equal one needs no record.
type stated struct {
	function *fleet.Function
	reason   string
	wanted   int
	marks    []drain.Victim
	version  drain.Version
}

// Figures of one function, for metrics.
type Figures struct {
	Function                string
	Current, Desired, Ready int
}

// pass looks at everything once, does what follows, and says when to look again at the latest (zero: no time is known) and whether
// the facts should be read again.
func (o *office) pass(ctx context.Context, now time.Time, first bool) (next time.Time, ask bool) {
	view := o.Fleet.View()
	functions := o.functions(now, view)
	seen := decide.NewFacts(now, functions)
	hold := o.hold(now, view)
	figures := make([]Figures, 0, len(functions))
	var records []*wire.FunctionRecord
	for _, f := range functions {
		w, one := o.work[f.Name], view.Functions[f.Name]
		w.function, w.decision = f, seen.Decide(f)
		next = sooner(next, w.decision.Next, now)
		action := o.step(now, one, w, hold)
		if hold != "" && w.awaits == hold {
			next = sooner(next, now.Add(holdEvery), now)
		}
		if record := o.state(one, w); record != nil {
			records = append(records, record)
		}
		switch action {
		case drain.Publish:
			w.drain.Published = w.stated.version
			next = sooner(next, w.drain.Since.Add(o.timeout(w)), now)
		case drain.Ask:
			ask = true
		case drain.Patch:
			o.shrink(ctx, one, w)
		case drain.Wait:
			if w.drain != nil {
				next = sooner(next, w.drain.Since.Add(o.timeout(w)), now)
			}
			next = sooner(next, o.grow(ctx, now, one, w), now)
		}
		figures = append(figures, Figures{Function: f.Name, Current: f.Wanted, Desired: w.decision.Replicas, Ready: f.Ready})
	}
	if view != o.view { // only a new view can lack a function
		o.view = view
		for _, name := range o.Catalogue.Names() {
			if view.Functions[name] == nil {
				records = append(records, o.Catalogue.Delete(now, name))
				delete(o.work, name)
				delete(o.latest, name)
				delete(o.saved, name)
			}
		}
	}
	if !first || len(records) <= maxRestated {
		for _, record := range records {
			o.announce(record)
		}
	}
	o.Leader.figures.Store(&figures)
	return next, ask
}

// sooner is the earlier of two times that are still to come; zero is none.
func sooner(a, b, now time.Time) time.Time {
	if b.IsZero() || !b.After(now) {
		return a
	}
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// functions gathers what is known of every function, by name.
func (o *office) functions(now time.Time, view *fleet.View) []*decide.Function {
	loads, queued, woken := o.Loads.Functions(), o.Demand.Functions(), o.Waker.Woken()
	all := make([]*decide.Function, 0, len(view.Functions))
	for name, one := range view.Functions {
		w := o.work[name]
		if w == nil {
			w = &work{}
			o.work[name] = w
		}
		load, held := loads[name], queued[name]
		f := &decide.Function{
			Name: name, Spec: one.Spec, Broken: len(one.Problems) > 0, Fixed: one.Fixed, FixedBy: one.FixedBy, Autoscaler: one.Autoscaler,
			Wanted: w.wanted(one).Wanted, Ready: one.Ready(), StartFailure: one.StartFailure(),
			Open:     decide.Open{InFlight: load.InFlight, Streams: load.Streams, Parked: load.Parked, Deliveries: load.Deliveries},
			Demand:   decide.Demand(held),
			Woken:    woken[name],
			Override: o.facts.overrides[name],
		}
		if open := load.Open() || held.Queued+held.Running+held.Awaiting > 0; open || w.open {
			w.active, w.open = now, open // also at the end: it was open until a moment ago
		}
		if f.Woken.After(w.active) {
			w.active = f.Woken
		}
		f.LastLive = later(load.Last, w.active)
		f.LastActive = later(f.LastLive, o.facts.history[name])
		if one.Appeared || f.LastActive.IsZero() {
			f.Seen = one.Seen
		}
		if at := later(f.LastActive, f.Seen); !o.facts.began.IsZero() && at.After(o.latest[name]) {
			o.latest[name] = at
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *decide.Function) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// wanted is the newest known state of a function's scale: what the watch shows, unless the orchestrator has already answered with more.
func (w *work) wanted(f *fleet.Function) orchestrator.Scaled {
	if w.told != nil && f.Revision != w.told.Revision && slices.Contains(w.older, f.Revision) {
		return *w.told
	}
	w.told, w.older = nil, nil
	return orchestrator.Scaled{Wanted: f.Wanted, Revision: f.Revision}
}

// tell notes an answer of the orchestrator to a request that expected the revision asked: that one, and what was known to be older
// than it, is over. Anything else the watch shows may be newer than the answer, so the watch is right.
func (w *work) tell(asked orchestrator.Revision, state orchestrator.Scaled) {
	if w.told != nil {
		w.older = append(w.older, w.told.Revision)
	} else {
		w.older = nil
	}
	w.older = append(w.older, asked)
	w.told = &state
}

// step moves the function's drain on.
func (o *office) step(now time.Time, f *fleet.Function, w *work, hold string) drain.Action {
	current := w.wanted(f)
	w.settle(now, f, current)
	w.awaits = ""
	if w.busy {
		return drain.Wait
	}
	if w.unsure {
		if w.told == nil && f.Revision != w.stated.function.Revision {
			w.resolve(now) // the watch tells: something was changed
		} else {
			w.awaits = "the orchestrator's answer"
			return drain.Wait
		}
	}
	if w.decision.Kind == decide.Untouched {
		o.cancel(f, w)
		return drain.Wait
	}
	had := w.drain
	var action drain.Action
	w.drain, action, w.awaits = drain.Step(w.drain, drain.Input{
		Now: now, Target: w.decision.Replicas, Wanted: current.Wanted, Replicas: candidates(f, w.leaving), Ordered: f.Kind == "StatefulSet", Hold: hold,
		Timeout: o.timeout(w), Edges: o.edges(), Said: o.said(f.Name), FactsAt: o.facts.began,
	})
	if had != nil && w.drain == nil {
		o.counts.cancelled.Add(1)
		o.Log.Info("a drain was cancelled", "fn", f.Name, "reason", w.decision.Reason)
	}
	if had == nil && w.drain != nil {
		o.Log.Info("draining", "fn", f.Name, "to", w.decision.Replicas, "victims", w.drain.Victims, "reason", w.decision.Reason)
	}
	if action == drain.Patch && now.Before(w.retry) {
		return drain.Wait
	}
	return action
}

func (o *office) cancel(f *fleet.Function, w *work) {
	if w.drain != nil {
		o.counts.cancelled.Add(1)
		o.Log.Info("a drain was cancelled", "fn", f.Name, "reason", w.decision.Reason)
		w.drain = nil
	}
}

func (o *office) timeout(w *work) time.Duration {
	if w.decision.Kind == decide.Operator {
		return o.ShrinkDrain
	}
	return o.IdleDrain
}

// candidates are the replicas that count: there, and not asked to stop.
func candidates(f *fleet.Function, leaving []drain.Victim) []drain.Replica {
	all := make([]drain.Replica, 0, len(f.Replicas))
	for i := range f.Replicas {
		r := &f.Replicas[i]
		victim := drain.Victim{Name: r.Name, Instance: r.Instance}
		if r.Phase == orchestrator.Gone || slices.Contains(leaving, victim) {
			continue
		}
		all = append(all, drain.Replica{Victim: victim, Routable: catalogue.Routable(r)})
	}
	return all
}

func (o *office) edges() []string {
	names := make([]string, 0, len(o.facts.live))
	for _, edge := range o.facts.live {
		names = append(names, edge.Name)
	}
	return names
}

// said answers what an edge reports of a victim of a function.
func (o *office) said(function string) func(edge string, victim drain.Victim) drain.Report {
	return func(edge string, victim drain.Victim) drain.Report {
		i := slices.IndexFunc(o.facts.live, func(e demand.Edge) bool { return e.Name == edge })
		if i < 0 {
			return drain.Report{}
		}
		version, open, ok := o.Loads.Draining(o.facts.live[i], function, victim.Name)
		return drain.Report{Version: drain.Version{Epoch: version.GetEpoch(), Seq: version.GetSeq()}, Open: open, Known: ok}
	}
}

// settle lets go of victims that are gone, and of those the orchestrator has kept in the end.
func (w *work) settle(now time.Time, f *fleet.Function, current orchestrator.Scaled) {
	if len(w.leaving) == 0 {
		return
	}
	const grace = 3 * time.Second // the orchestrator may need a moment to begin with a victim
	var alive []drain.Victim
	there := 0
	for i := range f.Replicas {
		r := &f.Replicas[i]
		if r.Phase == orchestrator.Gone {
			continue
		}
		there++
		if victim := (drain.Victim{Name: r.Name, Instance: r.Instance}); slices.Contains(w.leaving, victim) {
			alive = append(alive, victim)
		}
	}
	if w.told == nil && !w.busy && !w.unsure {
		if surplus := max(there-current.Wanted, 0); surplus < len(alive) && now.Sub(w.left) > grace {
			alive = alive[:surplus]
		}
		w.leaving = alive
	}
}

// resolve ends not knowing: the victims were asked to stop, as far as anybody can tell.
func (w *work) resolve(now time.Time) {
	w.unsure = false
	if w.drain != nil {
		w.leaving, w.left, w.drain = append(w.leaving, w.drain.Victims...), now, nil
	}
}

// restate states the functions of which replicas look different now, by what was decided of them last: edges need not wait for the
// next pass to hear of a pod that is ready, or goes.
func (o *office) restate() {
	if !o.valid() {
		return
	}
	view := o.Fleet.View()
	for name, one := range view.Functions {
		w := o.work[name]
		if w == nil || w.unsure || w.stated.function == nil || w.stated.function == one {
			continue
		}
		if record := o.state(one, w); record != nil {
			o.announce(record)
		}
	}
}

// state builds and states the function's record when something in it changed; nil: nothing did.
func (o *office) state(f *fleet.Function, w *work) *wire.FunctionRecord {
	wanted := w.wanted(f).Wanted
	marks := w.leaving
	if w.drain != nil {
		marks = append(slices.Clone(marks), w.drain.Victims...)
		// Edges repeat a wake until something is wanted: a drain that may still be cancelled must not look like enough.
		wanted = min(wanted, w.decision.Replicas)
	}
	is := stated{function: f, reason: w.decision.Reason, wanted: wanted, marks: marks, version: w.stated.version}
	if w.stated.function == f && w.stated.reason == is.reason && w.stated.wanted == wanted && slices.Equal(w.stated.marks, marks) {
		return nil
	}
	record, changed := o.Catalogue.Set(catalogue.Record(f, wanted, is.reason, func(name, instance string) bool {
		return slices.Contains(marks, drain.Victim{Name: name, Instance: instance})
	}))
	is.version = drain.Version{Epoch: record.GetVersion().GetEpoch(), Seq: record.GetVersion().GetSeq()}
	w.stated = is
	if !changed {
		return nil
	}
	return record
}
