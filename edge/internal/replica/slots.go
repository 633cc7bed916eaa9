package replica

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// gauge is what this edge may have under way of one pool of run slots without asking, and what it has. Its zero value has nothing.
type gauge struct{ given, used atomic.Int64 }

func (g *gauge) room() bool { return g.used.Load() < g.given.Load() }

// held is what nobody else may use.
func (g *gauge) held() int64 { return max(g.given.Load(), g.used.Load()) }

// take a slot. late: it was asked back at this moment, which is to be said.
func (g *gauge) take() (ok, late bool) {
	for {
		used := g.used.Load()
		if used >= g.given.Load() {
			return false, false
		}
		if !g.used.CompareAndSwap(used, used+1) {
			continue
		}
		// Counted first, looked at again afterwards: who lowers given and then reads used knows of every call.
		if used < g.given.Load() {
			return true, false
		}
		g.used.Add(-1)
		return false, true
	}
}

// free a slot; true: it was asked back, which is to be said.
func (g *gauge) free() bool { return g.used.Add(-1) >= g.given.Load() }

// limits of a function's sync calls; 0: none.
func (f *Function) limits() (all, perReplica int) {
	spec := f.Spec()
	return spec.NumberParallelRequestSync, spec.NumberParallelRequestPerPodSync
}

// Limited says whether calls of the function need run slots.
func (f *Function) Limited() bool {
	all, each := f.limits()
	return all > 0 || each > 0
}

// Hungry asks for run slots: a call waits. Cheap where the function has no limits.
func (f *Function) Hungry() {
	if f.Limited() {
		f.set.say(f.name)
	}
}

// slotted is which slots a lease has.
type slotted struct{ function, replica bool }

// takeSlots that a call on the replica needs.
func (f *Function) takeSlots(r *Replica, kind load.Kind) (took slotted, ok bool) {
	all, each := f.limits()
	if kind == load.Delivery || all <= 0 && each <= 0 { // the queue keeps the slots of deliveries
		return took, true
	}
	for _, need := range []struct {
		limit int
		gauge *gauge
		took  *bool
	}{{all, &f.slots, &took.function}, {each, &r.slot.slots, &took.replica}} {
		if need.limit <= 0 {
			continue
		}
		ok, late := need.gauge.take()
		if late {
			f.set.say(f.name)
		}
		if !ok {
			f.freeSlots(r.slot, took)
			return slotted{}, false
		}
		*need.took = true
	}
	return took, true
}

func (f *Function) freeSlots(s *slot, took slotted) {
	over := took.function && f.slots.free()
	over = took.replica && s.slots.free() || over
	if over {
		f.set.say(f.name)
	}
}

// slotBook is which functions have or want run slots, for the reports to the queue.
type slotBook struct {
	mu     sync.Mutex
	marked map[string]struct{}            // to be reported
	said   map[string]*wire.FunctionSlots // what was reported last, where it was not nothing
}

// say marks a function for the next report, and asks for one.
func (s *Set) say(name string) {
	s.book.mu.Lock()
	if s.book.marked == nil {
		s.book.marked = map[string]struct{}{}
	}
	s.book.marked[name] = struct{}{}
	s.book.mu.Unlock()
	if s.Said != nil {
		s.Said()
	}
}

// SlotReport is what this edge has and wants of the run slots of functions for which that changed, or, whole, of all. Nil: nothing is
// to be said. Read the version of the last order taken before the call, for what is reported is at least as new.
func (s *Set) SlotReport(whole bool) []*wire.FunctionSlots {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	names := s.book.marked
	s.book.marked = nil
	if whole {
		names = maps.Clone(names)
		if names == nil {
			names = map[string]struct{}{}
		}
		for name := range s.book.said {
			names[name] = struct{}{}
		}
	}
	var out []*wire.FunctionSlots
	for _, name := range slices.Sorted(maps.Keys(names)) {
		now := &wire.FunctionSlots{Function: name}
		if f, ok := s.Get(name); ok {
			now.Pools = f.pools()
		}
		before := s.book.said[name]
		if !whole && same(before.GetPools(), now.Pools) {
			continue
		}
		if len(now.Pools) == 0 {
			delete(s.book.said, name)
		} else {
			if s.book.said == nil {
				s.book.said = map[string]*wire.FunctionSlots{}
			}
			s.book.said[name] = now
		}
		if len(now.Pools) > 0 || before != nil {
			out = append(out, now)
		}
	}
	return out
}

func same(a, b []*wire.Slots) bool {
	return slices.EqualFunc(a, b, func(a, b *wire.Slots) bool {
		return a.GetReplica() == b.GetReplica() && a.GetInstance() == b.GetInstance() && a.GetHeld() == b.GetHeld() && a.GetWanted() == b.GetWanted()
	})
}

// pools of a function, and what is held and wanted of each. What is held of replicas on their way out goes back.
func (f *Function) pools() (pools []*wire.Slots) {
	all, each := f.limits()
	parked := f.load.Parked()
	add := func(replica, instance string, g *gauge, limit int, use bool) {
		if limit <= 0 || !use {
			g.given.Store(0)
		}
		if limit <= 0 {
			return
		}
		used := g.used.Load()
		p := &wire.Slots{Replica: replica, Instance: instance, Held: uint32(g.held()), Wanted: uint32(used)}
		if use {
			p.Wanted = uint32(min(used+parked, int64(limit))) // more makes no difference
		}
		if p.Held > 0 || p.Wanted > 0 {
			pools = append(pools, p)
		}
	}
	add("", "", &f.slots, all, true)
	f.mu.Lock()
	defer f.mu.Unlock()
	coming := map[string]bool{}
	for _, r := range f.view.Load().replicas {
		if r.State == wire.ReplicaState_REPLICA_STATE_STARTING || r.State == wire.ReplicaState_REPLICA_STATE_READY {
			coming[r.Life()] = true
		}
	}
	for _, key := range slices.Sorted(maps.Keys(f.lives)) {
		name, instance, _ := strings.Cut(key, "\x00")
		add(name, instance, &f.lives[key].slots, each, coming[key])
	}
	return pools
}

// ObeySlots takes an order of the queue's leader. What it names and is not here is given back with the next report.
func (s *Set) ObeySlots(order *wire.SlotOrder) {
	woken := map[*Function]struct{}{}
	for _, share := range order.GetShares() {
		s.say(share.GetFunction())
		f, ok := s.Get(share.GetFunction())
		if !ok {
			continue
		}
		g := &f.slots
		if share.GetReplica() != "" {
			f.mu.Lock()
			had := f.lives[life(share.GetReplica(), share.GetInstance())]
			f.mu.Unlock()
			if had == nil {
				continue
			}
			g = &had.slots
		}
		g.given.Store(int64(share.GetGiven()))
		woken[f] = struct{}{}
	}
	for f := range woken {
		s.woken(f)
	}
}
