package lead

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/drain"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

// Explanation is why a function has the replicas it has. Its JSON is what `GET /explain/{function}` answers.
type Explanation struct {
	Function          string
	Replicas          Counts
	Decision          int // replicas it should have
	Reason            string
	Facts             Facts
	WhatWouldChangeIt string
	Awaited           []string
	// NotReady says of replicas why they are not ready, as far as the orchestrator tells; the first ten.
	NotReady []string
	Problems []string
	Warnings []string
	Epoch    uint64
	Leader   string
}

// Counts of replicas. Wanted is what the orchestrator was asked for; the others count what there is.
type Counts struct{ Wanted, Ready, Starting, Draining int }

// Facts a decision was made from. Ages in milliseconds; null: never.
type Facts struct {
	InFlight, Streams, Parked, Deliveries int
	Queued, Running, Awaiting, Waiting    uint64
	NextTryInMs                           *int64
	LastActiveAgoMs                       *int64
	IdleTimeoutSeconds                    int
	ReplicasMin, ReplicasAtStart          int
	DependsOn                             []string
	Override                              *Override
	LiveEdges                             []string
	// QueueReadAgoMs is the age of what the queue said; null: it has said nothing.
	QueueReadAgoMs *int64
}

// Override is what an operator asked for.
type Override struct {
	Replicas int
	ForMs    int64
}

// ErrNotLeading says that only the leader explains.
var ErrNotLeading = errors.New("this scaler does not lead")

// Explain explains a function; found is false when there is none. Only the leader answers. The queue is read anew first, so that an
// operator's word that was just given is in the answer; without the queue the answer is from what is known.
func (l *Leader) Explain(ctx context.Context, function string) (explanation *Explanation, found bool, err error) {
	if l.Epoch() == 0 {
		return nil, false, ErrNotLeading
	}
	bounded, cancel := context.WithTimeout(ctx, factsTimeout/2)
	one := reading{began: time.Now()}
	one.facts, err = l.Queue.Facts(bounded)
	one.ended = time.Now()
	cancel()
	fresh := err == nil

	answered := make(chan struct{})
	ask := func(ctx context.Context, o *office) {
		defer close(answered)
		if fresh && one.began.After(o.facts.began) {
			o.read(one)
			o.pass(ctx, time.Now(), false)
		}
		explanation, found = o.explain(time.Now(), function)
	}
	select {
	case l.asks <- ask:
		<-answered
		return explanation, found, nil
	case <-ctx.Done():
		return nil, false, ErrNotLeading
	}
}

func (o *office) explain(now time.Time, name string) (*Explanation, bool) {
	view := o.Fleet.View()
	f, w := view.Functions[name], o.work[name]
	if f == nil || w == nil || w.function == nil {
		return nil, false
	}
	d, known := w.decision, w.function
	e := &Explanation{
		Function: name, Decision: d.Replicas, Reason: d.Reason, WhatWouldChangeIt: d.Change,
		Awaited:  append([]string{}, d.Awaited...),
		NotReady: notReady(f),
		Problems: append([]string{}, f.Problems...),
		Warnings: append(append([]string{}, f.Warnings...), d.Warnings...),
		Epoch:    o.epoch, Leader: o.Name,
		Replicas: countReplicas(f, w),
		Facts: Facts{
			InFlight: known.Open.InFlight, Streams: known.Open.Streams, Parked: known.Open.Parked, Deliveries: known.Open.Deliveries,
			Queued: known.Demand.Queued, Running: known.Demand.Running, Awaiting: known.Demand.Awaiting, Waiting: known.Demand.Waiting,
			IdleTimeoutSeconds: int(f.Spec.IdleTimeout(now) / time.Second),
			ReplicasMin:        f.Spec.ReplicasMin, ReplicasAtStart: f.Spec.ReplicasAtStart,
			DependsOn: append([]string{}, f.Spec.DependsOn...), LiveEdges: o.edges(),
		},
	}
	slices.Sort(e.Facts.LiveEdges)
	if w.awaits != "" {
		e.Awaited = append(e.Awaited, w.awaits)
	}
	if !known.Demand.NextTry.IsZero() {
		e.Facts.NextTryInMs = milliseconds(max(known.Demand.NextTry.Sub(now), 0))
	}
	if last := later(known.LastActive, known.Seen); !last.IsZero() {
		e.Facts.LastActiveAgoMs = milliseconds(max(now.Sub(last), 0))
	}
	if !o.facts.began.IsZero() {
		e.Facts.QueueReadAgoMs = milliseconds(now.Sub(o.facts.began))
	}
	if known.Override != nil && now.Before(known.Override.Until) {
		e.Facts.Override = &Override{Replicas: known.Override.Replicas, ForMs: known.Override.Until.Sub(now).Milliseconds()}
	}
	return e, true
}

func notReady(f *fleet.Function) []string {
	const most = 10
	all := []string{}
	for i := range f.Replicas {
		r := &f.Replicas[i]
		if r.Phase != orchestrator.Ready && r.Detail != "" && len(all) < most {
			all = append(all, r.Name+": "+r.Detail)
		}
	}
	return all
}

func countReplicas(f *fleet.Function, w *work) Counts {
	c := Counts{Wanted: w.stated.wanted}
	for i := range f.Replicas {
		r := &f.Replicas[i]
		switch {
		case r.Phase == orchestrator.Gone:
		case slices.ContainsFunc(w.stated.marks, func(v drain.Victim) bool { return v.Name == r.Name && v.Instance == r.Instance }):
			c.Draining++
		case r.Phase == orchestrator.Ready:
			c.Ready++
		default:
			c.Starting++
		}
	}
	return c
}

func milliseconds(d time.Duration) *int64 {
	ms := d.Milliseconds()
	return &ms
}

// Figures lists the figures of every function; nil while not leading.
func (l *Leader) Figures() []Figures {
	if figures := l.figures.Load(); figures != nil {
		return *figures
	}
	return nil
}

// Totals counts what this process's terms did. Passes are looks at everything: how many, how long together, and the longest.
type Totals struct {
	Scaled, Drained, Cancelled, Failed uint64
	Passes                             uint64
	Passing, LongestPass               time.Duration
}

// Totals of all terms of this process.
func (l *Leader) Totals() Totals {
	return Totals{
		Scaled: l.counts.scaled.Load(), Drained: l.counts.drained.Load(), Cancelled: l.counts.cancelled.Load(), Failed: l.counts.failed.Load(),
		Passes: l.counts.passes.Load(), Passing: time.Duration(l.counts.passing.Load()), LongestPass: time.Duration(l.counts.longest.Load()), //nolint:gosec // of durations
	}
}
