// Package drain takes replicas out of use before they are stopped (docs/adr/0005-drain-is-a-state.md). Pure: what is known
// goes in, the next step comes out.
package drain

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Version of a table record.
type Version struct{ Epoch, Seq uint64 }

// Before orders versions.
func (v Version) Before(other Version) bool {
	return v.Epoch < other.Epoch || v.Epoch == other.Epoch && v.Seq < other.Seq
}

// Victim is one life of a replica chosen to go.
type Victim struct{ Name, Instance string }

// Replica is a candidate: it exists and is not leaving by itself.
type Replica struct {
	Victim
	// Routable: an edge may have sent it calls. One that never had an address needs no draining.
	Routable bool
}

// Drain is one drain under way. nil: none.
type Drain struct {
	Victims []Victim
	// Published is the version under which all victims are Draining; zero: not published yet.
	Published Version
	Since     time.Time
	Clear     time.Time // since when nothing is open on any victim; zero: something is
}

// Report is what one edge says of one victim.
type Report struct {
	Version Version // of the record it has applied
	Open    int
	Known   bool // false: it has not said anything
}

// Input is what one step looks at.
type Input struct {
	Now      time.Time
	Target   int // replicas decided
	Wanted   int // replicas asked of the orchestrator
	Replicas []Replica
	// Ordered: the orchestrator stops those with the highest index, whatever it is asked (a StatefulSet).
	Ordered bool
	// Hold says why nothing may shrink now; empty: it may.
	Hold    string
	Timeout time.Duration // after which a victim goes with what is open on it
	Edges   []string      // the live ones
	// Said is what an edge reports of a victim.
	Said func(edge string, victim Victim) Report
	// FactsAt is when the newest linearizable reading of the live edges began. Zero: never.
	FactsAt time.Time
}

// Action is what the caller has to do next.
type Action int

// Actions.
const (
	Wait    Action = iota
	Publish        // state the victims as Draining, and note the version in Published
	Ask            // read the live edges again: all are clear, but the reading is older than that
	Patch          // ask the orchestrator to stop the victims
)

// Step moves a drain on. It returns the drain as it is now (nil: none, or cancelled), what to do, and what is awaited, in words.
func Step(d *Drain, in Input) (*Drain, Action, string) {
	if in.Target >= in.Wanted {
		return nil, Wait, ""
	}
	if d == nil && in.Hold != "" {
		return nil, Wait, in.Hold
	}
	var keep []Victim
	since := in.Now
	if d != nil {
		keep, since = d.Victims, d.Since
	}
	victims := Choose(in.Replicas, keep, in.Target, in.Ordered)
	if d == nil || !slices.Equal(victims, d.Victims) {
		d = &Drain{Victims: victims, Since: since}
	}
	routable := slices.DeleteFunc(slices.Clone(victims), func(v Victim) bool {
		return !slices.Contains(in.Replicas, Replica{Victim: v, Routable: true})
	})
	if d.Published == (Version{}) && len(routable) > 0 {
		return d, Publish, "the table"
	}
	next := *d
	awaited := waiting(routable, d.Published, in)
	overdue := !in.Now.Before(d.Since.Add(in.Timeout))
	if awaited != "" && !overdue {
		next.Clear = time.Time{}
		return &next, Wait, awaited
	}
	if next.Clear.IsZero() {
		next.Clear = in.Now
	}
	if in.Hold != "" {
		return &next, Wait, in.Hold
	}
	if in.FactsAt.Before(next.Clear) {
		return &next, Ask, "a fresh list of the live edges"
	}
	return &next, Patch, ""
}

// waiting says which edge still has something on a victim, or has not spoken; empty: none.
func waiting(victims []Victim, published Version, in Input) string {
	for _, edge := range in.Edges {
		for _, victim := range victims {
			said := in.Said(edge, victim)
			switch {
			case !said.Known || said.Version.Before(published):
				return fmt.Sprintf("%s to stop routing to %s", edge, victim.Name)
			case said.Open > 0:
				return fmt.Sprintf("%d open on %s at %s", said.Open, victim.Name, edge)
			}
		}
	}
	return ""
}

// Choose picks who goes so that target remain: those chosen before, then those without calls, then the highest index. Where the
// orchestrator itself goes by the order of the indices, only they count.
func Choose(replicas []Replica, keep []Victim, target int, ordered bool) []Victim {
	n := len(replicas) - max(target, 0)
	if n <= 0 {
		return nil
	}
	order := slices.Clone(replicas)
	slices.SortFunc(order, func(a, b Replica) int {
		return cmp.Or(
			first(!ordered && slices.Contains(keep, a.Victim), !ordered && slices.Contains(keep, b.Victim)),
			first(!ordered && !a.Routable, !ordered && !b.Routable),
			-cmp.Compare(index(a.Name), index(b.Name)),
			-cmp.Compare(a.Name, b.Name),
			cmp.Compare(a.Instance, b.Instance),
		)
	})
	victims := make([]Victim, 0, n)
	for _, replica := range order[:n] {
		victims = append(victims, replica.Victim)
	}
	slices.SortFunc(victims, func(a, b Victim) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Instance, b.Instance))
	})
	return victims
}

func first(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}

// index is the number at the end of a replica's name; -1: none.
func index(name string) int {
	n, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	if err != nil {
		return -1
	}
	return n
}
