// Package decide says how many replicas each function should have, and why. Pure: a view of everything and the time go
// in, decisions with words come out (design.md, law 7).
package decide

import (
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
)

// WakeHolds is how long a wake that was heard keeps a function awake by itself: long enough for the caller behind it to
// show up in a load report.
const WakeHolds = 3 * time.Second

// nextTryHolds: a function is not put to sleep when one of its waiting calls is due within this time.
const nextTryHolds = 2 * time.Second

// Function is all that is known of one function at one moment. The zero value of every field is harmless.
type Function struct {
	Name string
	Spec *function.Specification
	// Broken: its annotations have problems; it is left as it is.
	Broken bool
	// Fixed: something else owns its replicas. FixedBy says what, in words; empty: its debugUrl.
	Fixed   bool
	FixedBy string
	// Autoscaler changes its replicas while there are any, and stands aside at 0: it is scaled to 0 and from 0 only. Empty: nothing does.
	Autoscaler string

	Wanted int // replicas asked of the orchestrator
	Ready  int
	// StartFailure says why the orchestrator cannot place a replica; empty: it can.
	StartFailure string

	Open   Open
	Demand Demand

	// Seen is the first sight of a function that has no history: it keeps the function awake for its timeout, and wakes nobody.
	Seen time.Time
	// LastActive is the newest end of activity known, history included. Zero: never.
	LastActive time.Time
	// LastLive is the newest activity an edge has reported: unlike history it also wakes functions that depend on this one.
	LastLive time.Time
	// Woken is when a wake was last heard.
	Woken time.Time
	// Override is what an operator asked for; nil: nothing.
	Override *Override
}

// Open is work under way or waiting at the edges, all edges together.
type Open struct {
	InFlight   int // sync calls with a replica
	Streams    int // of those, streaming or upgraded
	Parked     int // calls that wait for a replica
	Deliveries int // async tries and event calls
}

// Any says whether there is any open work.
func (o Open) Any() bool { return o.InFlight > 0 || o.Streams > 0 || o.Parked > 0 || o.Deliveries > 0 }

// Demand is the work in the queue.
type Demand struct {
	Queued   uint64
	Running  uint64
	Awaiting uint64    // for a callback
	Waiting  uint64    // for a retry or a delay
	NextTry  time.Time // earliest waiting call; zero: none
}

// Override pins a number of replicas for a while.
type Override struct {
	Replicas int
	Until    time.Time
}

// StartCount is how many replicas a wake starts: ReplicasAtStart, but at least ReplicasMin and 1.
func StartCount(spec *function.Specification) int {
	if spec == nil {
		return 1
	}
	return max(spec.ReplicasAtStart, spec.ReplicasMin, 1)
}

func (f *Function) override(now time.Time) (int, bool) {
	if f.Override == nil || !now.Before(f.Override.Until) {
		return 0, false
	}
	n := max(f.Override.Replicas, f.Spec.ReplicasMin, 0)
	if f.Spec.Scale != nil && f.Spec.Scale.ReplicaMax != nil {
		n = min(n, max(*f.Spec.Scale.ReplicaMax, f.Spec.ReplicasMin))
	}
	return n, true
}
