package decide

import (
	"slices"
	"strings"
	"time"
)

// Facts is the view of all functions at one moment, with what each means for the others.
type Facts struct {
	now   time.Time
	by    map[string]*Function
	need  map[string]need
	cycle map[string][]string // functions on a cycle of DependsOn, and the others on it
}

// need is what keeps a function awake, its own reasons and those of functions that depend on it.
type need struct {
	cause    string    // why it must run now, in words that change seldom; empty: nothing must
	activity time.Time // newest activity that counts; zero: never any
	source   string    // whose cause or activity that is, when another's
	live     time.Time // newest activity that wakes those it depends on
	others   time.Time // newest activity of others that wakes this one when it sleeps
}

// NewFacts looks at all functions together. The functions must not change while the facts are in use.
func NewFacts(now time.Time, functions []*Function) *Facts {
	facts := &Facts{
		now:   now,
		by:    make(map[string]*Function, len(functions)),
		need:  make(map[string]need, len(functions)),
		cycle: map[string][]string{},
	}
	for _, f := range functions {
		facts.by[f.Name] = f
	}
	var newest need
	for _, f := range functions {
		own := facts.own(f)
		facts.need[f.Name] = own
		newest.merge(f.Name, own, "")
	}
	for _, f := range functions {
		if f.Spec.ReplicasStartAsSoonAsOneFunctionRetrieveARequest {
			mine := facts.need[f.Name]
			if newest.source != f.Name {
				mine.merge(newest.source, newest, "it starts as soon as any function has work, and "+newest.source+" has")
			}
			facts.need[f.Name] = mine
		}
	}
	facts.spread(functions)
	return facts
}

// own is what f needs by itself.
func (s *Facts) own(f *Function) need {
	n := need{cause: s.cause(f), activity: latest(f.Seen, f.LastActive, f.Woken), live: latest(f.LastLive, f.Woken)}
	if n.cause != "" {
		n.activity, n.live = s.now, s.now
		return n
	}
	if f.Broken {
		return n
	}
	if woken, ok := f.Spec.LastWake(s.now); ok {
		n.activity, n.live = latest(n.activity, woken), latest(n.live, woken)
		if s.now.Before(woken.Add(f.Spec.IdleTimeout(s.now))) {
			n.cause = "its schedule woke it"
		}
	}
	return n
}

// cause says why f itself must run now.
func (s *Facts) cause(f *Function) string {
	switch {
	case f.Open.Parked > 0:
		return "calls wait for a replica"
	case f.Open.InFlight > 0 || f.Open.Streams > 0:
		return "calls are in progress"
	case f.Open.Deliveries > 0:
		return "deliveries are in progress"
	case f.Demand.Running > 0:
		return "queued calls are running"
	case f.Demand.Queued > 0:
		return "calls are queued"
	case f.Demand.Awaiting > 0:
		return "queued calls await their callback"
	case f.Demand.Waiting > 0 && !f.Demand.NextTry.IsZero() && !s.now.Before(f.Demand.NextTry):
		return "a waiting call is due"
	case !f.Woken.IsZero() && s.now.Before(f.Woken.Add(WakeHolds)):
		return "a wake was asked for"
	}
	return ""
}

// spread carries every function's need to all it depends on, directly or not.
func (s *Facts) spread(functions []*Function) {
	own := make(map[string]need, len(functions))
	for _, f := range functions {
		if len(f.Spec.DependsOn) > 0 {
			own[f.Name] = s.need[f.Name]
		}
	}
	for _, f := range functions {
		if len(f.Spec.DependsOn) == 0 {
			continue
		}
		reached := s.reach(f)
		if slices.Contains(reached, f.Name) {
			s.cycle[f.Name] = s.cycleOf(f.Name, reached)
		}
		for _, name := range reached {
			if name == f.Name {
				continue
			}
			theirs := s.need[name]
			theirs.merge(f.Name, own[f.Name], f.Name+", which depends on it, has work")
			s.need[name] = theirs
		}
	}
}

// reach lists what f depends on, directly or not, by name; f itself only when it is on a cycle.
func (s *Facts) reach(f *Function) []string {
	var reached []string
	next := slices.Clone(f.Spec.DependsOn)
	for len(next) > 0 {
		name := next[0]
		next = next[1:]
		if slices.Contains(reached, name) {
			continue
		}
		on, known := s.by[name]
		if !known {
			continue
		}
		reached = append(reached, name)
		next = append(next, on.Spec.DependsOn...)
	}
	slices.Sort(reached)
	return reached
}

// cycleOf lists the members of the cycle name is on: what it reaches and what reaches it.
func (s *Facts) cycleOf(name string, reached []string) []string {
	var members []string
	for _, other := range reached {
		if other == name || slices.Contains(s.reach(s.by[other]), name) {
			members = append(members, other)
		}
	}
	return members
}

// merge takes over another's need where it is the stronger. because gives a cause its words for this function; empty keeps them.
func (n *need) merge(from string, other need, because string) {
	if n.cause == "" && other.cause != "" {
		n.cause, n.source = other.cause, from
		if because != "" {
			n.cause = because
		}
	}
	if other.activity.After(n.activity) {
		n.activity = other.activity
		if n.cause == "" {
			n.source = from
		}
	}
	n.others = latest(n.others, other.live, other.others)
}

// dependencies splits what f waits for before it may start from what it was told of and cannot have.
func (s *Facts) dependencies(f *Function) (waiting, warnings []string) {
	for _, name := range f.Spec.DependsOn {
		on, known := s.by[name]
		switch {
		case strings.HasPrefix(strings.ToLower(name), "processes:"):
		case !known:
			warnings = append(warnings, "DependsOn names "+name+", which is no function here: it counts as ready")
		case slices.Contains(s.cycle[f.Name], name):
			warnings = append(warnings, "DependsOn is a cycle ("+strings.Join(s.cycle[f.Name], ", ")+"): the order of start among them is ignored")
		case on.Broken:
			warnings = append(warnings, "DependsOn names "+name+", which is broken: it counts as ready")
		case on.Ready < s.readyAt(on):
			waiting = append(waiting, name)
		}
	}
	return waiting, warnings
}

// readyAt is how many ready replicas make f ready for those that depend on it: its start count, unless it was told to have fewer.
func (s *Facts) readyAt(f *Function) int {
	need := StartCount(f.Spec)
	if f.Fixed {
		need = 1
	}
	if f.Wanted > 0 {
		need = min(need, f.Wanted)
	}
	if n, pinned := f.override(s.now); pinned {
		need = min(need, n)
	}
	return need
}

func latest(times ...time.Time) time.Time {
	var newest time.Time
	for _, t := range times {
		if t.After(newest) {
			newest = t
		}
	}
	return newest
}
