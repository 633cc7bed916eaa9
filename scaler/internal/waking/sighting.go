package waking

import (
	"maps"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

const (
	// sightFor is how long a raised function's replicas are sighted: as long as edges use a sighting.
	sightFor = 30 * time.Second
	// maxSighted bounds the functions that are sighted at one time.
	maxSighted = 10_000
)

// repeats are the ages of a sighting at which it is told again: any of them may be lost.
var repeats = []time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond, time.Second, 2 * time.Second}

// sightings tells edges of the replicas of functions that were woken, while no record of a leader does. Used by one goroutine.
type sightings struct {
	waker *Waker
	until map[string]time.Time // by function
	told  map[sighted]*telling
}

// sighted is one state of one life of a replica.
type sighted struct {
	function, replica, instance string
	phase                       orchestrator.Phase
}

type telling struct {
	since time.Time
	times int
}

func newSightings(w *Waker) *sightings {
	return &sightings{waker: w, until: map[string]time.Time{}, told: map[sighted]*telling{}}
}

// wanted starts sighting a function that somebody wants awake and that has been raised.
func (s *sightings) wanted(function string, now time.Time) {
	if _, known := s.until[function]; known || len(s.until) < maxSighted {
		s.until[function] = now.Add(sightFor)
	}
}

// pass tells what is due, and says when to look again at the latest.
func (s *sightings) pass(now time.Time, view *fleet.View) time.Duration {
	if len(s.until) == 0 {
		return time.Hour
	}
	next := sightFor
	leading := s.waker.Leading()
	present := map[sighted]bool{}
	for name, until := range s.until {
		f := view.Functions[name]
		if f == nil || now.After(until) {
			delete(s.until, name)
			continue
		}
		for i := range f.Replicas {
			replica := &f.Replicas[i]
			if replica.Phase != orchestrator.Starting && replica.Phase != orchestrator.Ready {
				continue
			}
			key := sighted{name, replica.Name, replica.Instance, replica.Phase}
			present[key] = true
			one := s.told[key]
			if one == nil {
				one = &telling{since: now}
				s.told[key] = one
			}
			for one.times < len(repeats) && now.Sub(one.since) >= repeats[one.times] {
				if !leading {
					s.waker.Sighted(name, f, replica)
				}
				one.times++
			}
			if one.times < len(repeats) {
				next = min(next, one.since.Add(repeats[one.times]).Sub(now))
			}
		}
	}
	maps.DeleteFunc(s.told, func(key sighted, _ *telling) bool { return !present[key] })
	return max(next, time.Millisecond)
}
