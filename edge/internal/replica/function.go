package replica

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// PacedAnswers is after how many answers a just-woken replica takes calls without a cap.
const PacedAnswers = 10

// Function is one function as this edge may call it. Reading takes no lock: every record makes a new view.
type Function struct {
	name string
	set  *Set
	load *load.Function
	view atomic.Pointer[view]
	turn atomic.Uint32 // rotates among replicas that are equally loaded

	slots gauge // of NumberParallelRequestSync

	mu      sync.Mutex // guards writers of view and the fields below
	lives   map[string]*slot
	sighted []sighting
	// departed replicas were in a record and are not any more: a sighting of one is an old one that was late, and would be believed for
	// wire.SightingKept. By slotKey, with the time they are forgotten.
	departed map[string]time.Time
}

// view is what one record and the sightings of the moment say. Immutable; its slots live on.
type view struct {
	record   *wire.FunctionRecord
	spec     *function.Specification
	replicas []*Replica
}

// sighting is used until `until`, or until a record of a higher epoch than the one known when it came.
type sighting struct {
	replica *wire.Replica
	epoch   uint64
	until   time.Time
}

// Replica is one replica with an address, as one view has it.
type Replica struct {
	Name     string
	Instance string
	Host     string
	Address  string // host:port of the first port
	State    wire.ReplicaState
	Probe    *wire.Probe
	Sighted  bool
	slot     *slot
	until    time.Time // with Sighted: not used after
}

// Values of slot.route.
const (
	routeNever  int32 = iota
	routeProbed       // only after an early probe succeeded
	routeReady
)

// slot is what outlives a view: one replica in one life.
type slot struct {
	load     load.Replica
	slots    gauge // of NumberParallelRequestPerPodSync
	route    atomic.Int32
	probed   atomic.Bool  // an early probe succeeded
	used     atomic.Bool  // has been usable: pacing is decided once
	wasReady atomic.Bool  // a record said Ready: from then on the orchestrator's word rules
	paced    atomic.Bool  // just woken: NumberParallelRequestPerPod holds
	answers  atomic.Int32 // while paced
	probes   atomic.Int32 // open now
	joined   atomic.Int64 // unix nanoseconds when it came to others; 0: it has its full part of the calls

	suspect    atomic.Int64 // unix nanoseconds until which others are preferred; 0: it is not suspected
	suspicions atomic.Int32 // in a row
	broken     atomic.Int32 // calls in a row that broke before an answer

	recorded bool // a record had it; guarded by Function.mu
}

func newFunction(name string, s *Set) *Function {
	f := &Function{name: name, set: s, load: s.loads.Function(name), lives: map[string]*slot{}, departed: map[string]time.Time{}}
	f.view.Store(&view{record: &wire.FunctionRecord{Name: name}, spec: &function.Specification{}})
	return f
}

// Name is the function's key in the table.
func (f *Function) Name() string { return f.name }

// Record is the newest record applied. Do not change it.
func (f *Function) Record() *wire.FunctionRecord { return f.view.Load().record }

// Spec is the specification of Record. Do not change it.
func (f *Function) Spec() *function.Specification { return f.view.Load().spec }

// Load is the function's counters.
func (f *Function) Load() *load.Function { return f.load }

// Replicas lists those with an address, of the record and sighted, in any state.
func (f *Function) Replicas() []*Replica { return f.view.Load().replicas }

// Ready lists those a call may use now.
func (f *Function) Ready() []*Replica {
	return slices.DeleteFunc(slices.Clone(f.Replicas()), func(r *Replica) bool { return !r.Usable() })
}

// Draining says of every draining replica which version said so and what is still open on it. Read in this order (view,
// then counter) a zero is final: a call counted later finds the replica closed and undoes itself.
func (f *Function) Draining() []*wire.DrainReport {
	v := f.view.Load()
	var all []*wire.DrainReport
	for _, r := range v.replicas {
		if r.State == wire.ReplicaState_REPLICA_STATE_DRAINING {
			all = append(all, &wire.DrainReport{
				Replica: r.Name, Version: v.record.GetVersion(), Open: uint32(max(0, r.slot.load.Open())),
			})
		}
	}
	return all
}

// apply makes a record the current view. The caller holds Set.mu, which orders records.
func (f *Function) apply(rec *wire.FunctionRecord, spec *function.Specification) {
	f.mu.Lock()
	defer f.mu.Unlock()
	epoch := rec.GetVersion().GetEpoch()
	f.sighted = slices.DeleteFunc(f.sighted, func(s sighting) bool { return epoch > s.epoch || rec.GetDeleted() })
	f.rebuild(rec, spec)
}

func (f *Function) sight(r *wire.Replica, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.view.Load()
	key := slotKey(r)
	if time.Now().Before(f.departed[key]) {
		return
	}
	f.sighted = slices.DeleteFunc(f.sighted, func(s sighting) bool { return slotKey(s.replica) == key })
	f.sighted = append(f.sighted, sighting{replica: r, epoch: v.record.GetVersion().GetEpoch(), until: until})
	f.rebuild(v.record, v.spec)
}

// unsight forgets a sighting that turned out to be wrong.
func (f *Function) unsight(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.sighted)
	f.sighted = slices.DeleteFunc(f.sighted, func(s sighting) bool { return slotKey(s.replica) == key })
	if len(f.sighted) < before {
		v := f.view.Load()
		f.rebuild(v.record, v.spec)
	}
}

// rebuild makes the view from a record and the sightings. Holds f.mu.
func (f *Function) rebuild(rec *wire.FunctionRecord, spec *function.Specification) {
	old := f.view.Load()
	cold := old.record.GetVersion() != nil && !slices.ContainsFunc(old.replicas, (*Replica).Usable)
	next := &view{record: rec, spec: spec}
	live := map[string]*slot{}
	add := func(r *wire.Replica, sighted *sighting) {
		key := slotKey(r)
		if r.GetHost() == "" || len(r.GetPorts()) == 0 || live[key] != nil {
			return
		}
		s := f.lives[key]
		if s == nil {
			s = &slot{}
		}
		live[key] = s
		item := &Replica{
			Name: r.GetName(), Instance: r.GetInstance(), Host: r.GetHost(),
			Address: net.JoinHostPort(r.GetHost(), strconv.Itoa(int(r.GetPorts()[0]))),
			State:   r.GetState(), Probe: r.GetProbe(), slot: s,
		}
		if sighted != nil {
			item.Sighted, item.until = true, sighted.until
		} else {
			s.recorded = true
		}
		s.take(r, cold)
		next.replicas = append(next.replicas, item)
	}
	for _, r := range rec.GetReplicas() {
		add(r, nil)
	}
	now := time.Now()
	f.sighted = slices.DeleteFunc(f.sighted, func(s sighting) bool { return now.After(s.until) || live[slotKey(s.replica)] != nil })
	for i := range f.sighted {
		add(f.sighted[i].replica, &f.sighted[i])
	}
	maps.DeleteFunc(f.departed, func(_ string, until time.Time) bool { return now.After(until) })
	for key, s := range f.lives {
		if live[key] == nil {
			if s.recorded {
				f.departed[key] = now.Add(2 * wire.SightingKept)
			}
			s.route.Store(routeNever)
			s.load.SetDraining(false)
			if s.load.Open() > 0 {
				live[key] = s // should the replica come back to be drained, its open calls still count
			}
		}
	}
	f.lives = live
	f.view.Store(next) // after the slots are closed: see Draining
}

// take sets what a slot may be used for from its replica's newest state.
func (s *slot) take(r *wire.Replica, cold bool) {
	route := routeNever
	switch r.GetState() {
	case wire.ReplicaState_REPLICA_STATE_READY:
		s.wasReady.Store(true)
		route = routeReady
	case wire.ReplicaState_REPLICA_STATE_STARTING:
		if !r.GetWasReady() && !s.wasReady.Load() {
			route = routeProbed
		}
	}
	s.load.SetDraining(r.GetState() == wire.ReplicaState_REPLICA_STATE_DRAINING)
	if route == routeReady && !s.used.Swap(true) {
		s.begins(cold)
	}
	s.route.Store(route)
}

// begins to be used: paced where it is the first, with a small part of the calls where there are others.
func (s *slot) begins(first bool) {
	if first {
		s.paced.Store(true)
	} else {
		s.joined.Store(time.Now().UnixNano())
	}
}

func (s *slot) usable() bool {
	route := s.route.Load()
	return route == routeReady || route == routeProbed && s.probed.Load()
}

func slotKey(r *wire.Replica) string { return life(r.GetName(), r.GetInstance()) }

// Life tells a replica from another one of its name, before or after it.
func (r *Replica) Life() string { return life(r.Name, r.Instance) }

func life(name, instance string) string { return name + "\x00" + instance }

// Usable says whether a call may go there now.
func (r *Replica) Usable() bool { return r.slot.usable() && !(r.Sighted && time.Now().After(r.until)) }

// Probable says whether an early probe may decide: it is starting, has never been ready, and no probe has succeeded yet.
func (r *Replica) Probable() bool {
	return r.slot.route.Load() == routeProbed && !r.slot.probed.Load() &&
		(r.Probe.GetKind() == wire.ProbeKind_PROBE_KIND_HTTP || r.Probe.GetKind() == wire.ProbeKind_PROBE_KIND_TCP)
}

// BeginProbe takes one of the `most` probes that may be open on this replica, and says which of them: 1 when none was. 0: all are taken.
// End it with EndProbe.
func (r *Replica) BeginProbe(most int32) (nth int32) {
	nth = r.slot.probes.Add(1)
	if nth > most {
		r.slot.probes.Add(-1)
		return 0
	}
	return nth
}

// EndProbe says how a probe ended. The first success lets the replica be used, paced, and wakes those who wait.
func (r *Replica) EndProbe(f *Function, ok bool) {
	r.slot.probes.Add(-1)
	if !ok {
		return
	}
	if !r.slot.used.Swap(true) {
		r.slot.begins(!slices.ContainsFunc(f.Replicas(), (*Replica).Usable))
	}
	if !r.slot.probed.Swap(true) {
		f.set.woken(f)
	}
}
