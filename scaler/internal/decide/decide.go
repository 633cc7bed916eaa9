package decide

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Kind classes a decision by what made it.
type Kind int

// Kinds. Only Idle and Operator ever ask for fewer replicas than there are.
const (
	Keep Kind = iota
	Idle
	Operator
	Raise
	Untouched // broken, or not ours to scale
)

// Decision is how many replicas a function should have.
type Decision struct {
	Replicas int
	Kind     Kind
	// Reason in words that stay the same while nothing of importance changes.
	Reason string
	// Change says what would make the decision another.
	Change string
	// Next is when the decision might change by time alone; zero: it will not.
	Next time.Time
	// Awaited names the functions that must be ready before this one may start.
	Awaited  []string
	Warnings []string
}

// Decide says how many replicas f should have, given the facts it is part of.
func (s *Facts) Decide(f *Function) Decision {
	if f.Broken {
		return Decision{
			Replicas: f.Wanted, Kind: Untouched, Reason: "its annotations have problems, so its replicas stay as they are",
			Change: "annotations without problems",
		}
	}
	if f.Fixed {
		return Decision{
			Replicas: f.Wanted, Kind: Untouched, Reason: "its replicas belong to someone else (" + cmp.Or(f.FixedBy, "debugUrl") + ")", Change: "nothing",
		}
	}
	waiting, warnings := s.dependencies(f)
	d := s.wanted(f, waiting)
	d.Warnings = warnings
	if rules := f.Spec.Schedule.Default; len(rules.WakeUp)+len(rules.ScaleDownTimeout) > 0 { // without rules the question is dear: it loads a zone
		if next, ok := f.Spec.NextScheduled(s.now); ok {
			d.Next = soonest(d.Next, next)
		}
	}
	if f.Autoscaler != "" && d.Replicas != f.Wanted && d.Replicas > 0 && f.Wanted > 0 {
		d.Reason = fmt.Sprintf("%s scales it while it is awake; otherwise: %s", f.Autoscaler, d.Reason)
		d.Replicas, d.Kind = f.Wanted, Keep
	}
	if d.Replicas > f.Wanted && f.StartFailure != "" {
		d.Reason = fmt.Sprintf("wants %d replicas, but a replica cannot be placed: %s", d.Replicas, f.StartFailure)
		d.Change = "room for its replicas"
		d.Replicas, d.Kind = f.Wanted, Keep
	}
	return d
}

func (s *Facts) wanted(f *Function, waiting []string) Decision {
	n := s.need[f.Name]
	start, floor := StartCount(f.Spec), f.Spec.ReplicasMin
	timeout := f.Spec.IdleTimeout(s.now)
	sleepy := !s.now.Before(n.activity.Add(timeout)) && n.cause == ""
	called := n.cause != "" || (!n.others.IsZero() && s.now.Before(n.others.Add(timeout)))

	if pinned, ok := f.override(s.now); ok {
		return s.pinned(f, n, pinned, start)
	}
	if f.Wanted < max(floor, 1) && (called || f.Wanted < floor) {
		d := Decision{Replicas: floor, Kind: Raise, Reason: fmt.Sprintf("SlimFaas/ReplicasMin is %d", floor), Change: "another ReplicasMin"}
		if called {
			d.Replicas, d.Reason, d.Change = start, s.words(n), s.quiet(n, floor, timeout)
		}
		if len(waiting) > 0 {
			d.Awaited = waiting
			d.Reason = fmt.Sprintf("%s, but it depends on %s, not ready yet", d.Reason, strings.Join(waiting, ", "))
			d.Change = "ready replicas of " + strings.Join(waiting, ", ")
			d.Replicas, d.Kind = f.Wanted, Keep
		}
		return d
	}
	soon := f.Demand.Waiting > 0 && !f.Demand.NextTry.IsZero() && s.now.Add(nextTryHolds).After(f.Demand.NextTry)
	switch {
	case sleepy && f.Wanted > floor && soon:
		return Decision{
			Replicas: f.Wanted, Reason: "a waiting call is due in a moment", Change: "the end of that call", Next: f.Demand.NextTry,
		}
	case sleepy && f.Wanted > floor:
		return Decision{
			Replicas: floor, Kind: Idle, Change: "a call, a queued call or a wake",
			Reason: fmt.Sprintf("no activity for its idle time of %s", timeout), Next: f.Demand.NextTry,
		}
	case f.Wanted == 0:
		return Decision{Replicas: 0, Reason: "it sleeps: nobody calls it", Change: "a call, a queued call, a wake or its schedule", Next: f.Demand.NextTry}
	case sleepy:
		return Decision{
			Replicas: f.Wanted, Reason: fmt.Sprintf("idle, at SlimFaas/ReplicasMin of %d", floor), Change: "another ReplicasMin", Next: f.Demand.NextTry,
		}
	default:
		d := Decision{Replicas: f.Wanted, Reason: s.words(n), Change: s.quiet(n, floor, timeout)}
		if n.cause == "" || !f.Woken.IsZero() {
			d.Next = latest(n.activity.Add(timeout), f.Woken.Add(WakeHolds))
		}
		if f.Demand.NextTry.After(s.now) {
			d.Next = soonest(d.Next, f.Demand.NextTry)
		}
		return d
	}
}

// pinned is the decision while an operator's word counts. Work that waits is stronger than an operator's zero: it runs, and
// the function goes back to zero as soon as nothing is open.
func (s *Facts) pinned(f *Function, n need, replicas, start int) Decision {
	d := Decision{
		Replicas: replicas, Kind: Operator, Next: f.Override.Until,
		Reason: fmt.Sprintf("an operator asked for %d", f.Override.Replicas),
		Change: "the end of the operator's time at " + f.Override.Until.UTC().Format(time.RFC3339),
	}
	if replicas != f.Override.Replicas {
		d.Reason += fmt.Sprintf(", the function allows %d", replicas)
	}
	if replicas == 0 && n.cause != "" {
		d.Replicas = max(f.Wanted, start)
		d.Reason += ", but " + n.cause
	}
	return d
}

// words say why a function is awake.
func (s *Facts) words(n need) string {
	switch {
	case n.cause != "":
		return n.cause
	case n.source != "":
		return "recent activity of " + n.source
	default:
		return "it was active within its idle time"
	}
}

// quiet says when a function that is awake would sleep.
func (s *Facts) quiet(n need, floor int, timeout time.Duration) string {
	if n.cause != "" {
		return fmt.Sprintf("the end of that, and %s without activity: then %d replicas", timeout, floor)
	}
	return fmt.Sprintf("no activity until %s: then %d replicas", n.activity.Add(timeout).UTC().Format(time.RFC3339), floor)
}

// soonest of two times; a zero one is none.
func soonest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Activity is the newest activity that counts for a function, its own and that of those that depend on it. Zero: never.
func (s *Facts) Activity(name string) time.Time { return s.need[name].activity }

// StartOrder lists what has to be raised now so that the function can run: those it depends on, directly or not, that sleep and whose own
// dependencies are ready, and the function itself when nothing is left to wait for. Empty: everything is under way.
func (s *Facts) StartOrder(name string) []string {
	f, known := s.by[name]
	if !known || f.Broken || f.Fixed {
		return nil
	}
	var raise []string
	order := s.reach(f)
	if !slices.Contains(order, name) {
		order = append(order, name)
	}
	for _, other := range order {
		on := s.by[other]
		if on.Broken || on.Fixed || on.Wanted > 0 || on.StartFailure != "" {
			continue
		}
		if waiting, _ := s.dependencies(on); len(waiting) == 0 {
			raise = append(raise, other)
		}
	}
	return raise
}
