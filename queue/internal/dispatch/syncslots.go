package dispatch

import (
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/slots"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// maxPools of one report; a function has one of its own and one per replica.
	maxPools = 8192
	// maxPooled is how many pools an office keeps. Beyond, nobody gets slots of further ones.
	maxPooled = 1 << 17
)

// poolKey names a pool: of a replica in one life, or, without a name, of the function.
type poolKey struct{ replica, instance string }

// syncSlots is who may have how many synchronous calls under way: slots of functions that ask for a limit. It is not in the log: who
// takes office hears from each edge what it has, and gives nothing before all have said it or their sessions are over.
type syncSlots struct {
	functions map[string]map[poolKey]*slots.Pool
	pools     int
	version   uint64              // of the last order
	blind     map[uint64]struct{} // sessions of edges that have not said yet what they have
	turn      time.Time           // when pools with fewer slots than edges are planned again; zero: there are none
}

func newSyncSlots(sessions map[uint64]*session) syncSlots {
	s := syncSlots{functions: map[string]map[poolKey]*slots.Pool{}, blind: map[uint64]struct{}{}}
	for id, session := range sessions {
		if wire.SessionKind(session.Kind) == wire.SessionKind_SESSION_KIND_EDGE {
			s.blind[id] = struct{}{}
		}
	}
	return s
}

// greetSlots takes what an edge has when its stream begins. What it was given on an earlier one and does not list, it does not have.
func (o *office) greetSlots(s *session, r *wire.SlotReport, now time.Time) {
	o.slots.leave(s.ID)
	o.slots.take(s.ID, r, true)
	if _, blind := o.slots.blind[s.ID]; blind {
		delete(o.slots.blind, s.ID)
		o.planAllSlots(now)
		return
	}
	o.planSlots(now, functionsOf(r)...)
}

// hearSlots takes what an edge says later on.
func (o *office) hearSlots(s *session, r *wire.SlotReport, now time.Time) {
	s.seen = now
	o.slots.take(s.ID, r, false)
	o.planSlots(now, functionsOf(r)...)
}

// leaveSlots ends the shares of a session that is over.
func (o *office) leaveSlots(s *session, now time.Time) {
	o.slots.leave(s.ID)
	delete(o.slots.blind, s.ID)
	o.planAllSlots(now)
}

func functionsOf(r *wire.SlotReport) []string {
	names := make([]string, len(r.GetFunctions()))
	for i, f := range r.GetFunctions() {
		names[i] = f.GetFunction()
	}
	return names
}

// take one report.
func (s *syncSlots) take(session uint64, r *wire.SlotReport, greeting bool) {
	left := maxPools
	for _, f := range r.GetFunctions() {
		pools := s.functions[f.GetFunction()]
		listed := make(map[poolKey]struct{}, len(f.GetPools()))
		for _, p := range f.GetPools() {
			if left--; left < 0 || len(f.GetFunction()) > maxName || max(len(p.GetReplica()), len(p.GetInstance())) > maxName {
				continue
			}
			key := poolKey{p.GetReplica(), p.GetInstance()}
			pool := pools[key]
			if pool == nil {
				if s.pools >= maxPooled {
					continue
				}
				if pools == nil {
					pools = map[poolKey]*slots.Pool{}
					s.functions[f.GetFunction()] = pools
				}
				pool = &slots.Pool{}
				pools[key] = pool
				s.pools++
			}
			listed[key] = struct{}{}
			if held, wanted := min(p.GetHeld(), slots.Most), min(p.GetWanted(), slots.Most); greeting {
				pool.Greet(session, held, wanted)
			} else {
				pool.Say(session, held, wanted, r.GetApplied())
			}
		}
		for key, pool := range pools {
			if _, ok := listed[key]; !ok {
				pool.Say(session, 0, 0, r.GetApplied())
			}
		}
		s.tidy(f.GetFunction())
	}
}

func (s *syncSlots) leave(session uint64) {
	for name, pools := range s.functions {
		for _, pool := range pools {
			pool.Leave(session)
		}
		s.tidy(name)
	}
}

// tidy forgets pools that nobody has anything of.
func (s *syncSlots) tidy(function string) {
	pools := s.functions[function]
	for key, pool := range pools {
		if pool.Empty() {
			delete(pools, key)
			s.pools--
		}
	}
	if len(pools) == 0 {
		delete(s.functions, function)
	}
}

func (o *office) planAllSlots(now time.Time) {
	names := make([]string, 0, len(o.slots.functions))
	for name := range o.slots.functions {
		names = append(names, name)
	}
	o.planSlots(now, names...)
}

// planSlots shares out the slots of functions, and tells the edges.
func (o *office) planSlots(now time.Time, functions ...string) {
	if len(o.slots.blind) > 0 || len(functions) == 0 {
		return
	}
	o.slots.version++
	told := map[uint64]*wire.SlotOrder{}
	for _, name := range functions {
		pools := o.slots.functions[name]
		if len(pools) == 0 {
			continue
		}
		f, known := o.settingsOf(name)
		if !known || f.Spec == nil {
			continue // its limits are not known yet, or it is gone: who has slots keeps them
		}
		for key, pool := range pools {
			limit := f.Spec.NumberParallelRequestPerPodSync
			if key.replica == "" {
				limit = f.Spec.NumberParallelRequestSync
			}
			if limit <= 0 {
				continue // there is none any more, or an edge knows of it first
			}
			orders, next := pool.Plan(uint32(limit), now, o.slots.version)
			for _, order := range orders {
				m := told[order.Session]
				if m == nil {
					m = &wire.SlotOrder{Version: o.slots.version}
					told[order.Session] = m
				}
				m.Shares = append(m.Shares, &wire.SlotShare{Function: name, Replica: key.replica, Instance: key.instance, Given: order.Given})
			}
			if !next.IsZero() && (o.slots.turn.IsZero() || next.Before(o.slots.turn)) {
				o.slots.turn = next
			}
		}
	}
	for id, m := range told {
		o.sessions[id].send(outgoing{down: &wire.DeliverDown{Down: &wire.DeliverDown_Slots{Slots: m}}})
	}
}

// tickSlots lets slots go round where there are fewer than edges that want one.
func (o *office) tickSlots(now time.Time) {
	if o.slots.turn.IsZero() || o.slots.turn.After(now) {
		return
	}
	o.slots.turn = time.Time{}
	o.planAllSlots(now)
}
