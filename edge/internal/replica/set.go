// Package replica knows, per function, which replicas a call may use now, chooses one and counts the call on it. It is
// built from table records and sightings; choosing takes no lock.
package replica

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Set is every function of the table, as this edge may call it. Safe for concurrent use.
type Set struct {
	loads *load.Tracker
	// Woken is called, outside locks, when a replica may have become usable or a paced call ended: parked requests look
	// again. Set it before the first Apply.
	Woken func(*Function)
	// Said is called, outside locks, when SlotReport has something new. Set it before the first Apply.
	Said func()

	epoch     atomic.Uint64                     // the highest of a record applied
	functions sync.Map                          // name → *Function; read without a lock
	hosts     atomic.Pointer[map[string]string] // host name → name of its function; nil: no function has one
	trusted   sync.Map                          // netip.Addr of replicas of Trusted functions → struct{}; read without a lock

	book slotBook

	suspicions atomic.Uint64

	mu      sync.Mutex // guards writers of the maps, and holders
	holders map[netip.Addr]int
}

// NewSet returns an empty set that counts on loads.
func NewSet(loads *load.Tracker) *Set {
	return &Set{loads: loads, holders: map[netip.Addr]int{}}
}

// Get finds a function by its exact name.
func (s *Set) Get(name string) (*Function, bool) {
	f, ok := s.functions.Load(name)
	if !ok {
		return nil, false
	}
	return f.(*Function), true
}

// ByHost finds the function whose own a host name is: as in a Host header, a port is ignored.
func (s *Set) ByHost(host string) (name string, ok bool) {
	hosts := s.hosts.Load()
	if hosts == nil {
		return "", false
	}
	if colon := strings.LastIndexByte(host, ':'); colon >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:colon]
	}
	name, ok = (*hosts)[strings.ToLower(strings.TrimSuffix(host, "."))]
	return name, ok
}

// index the host names anew. Where two functions want one, the first by name has it. Holds mu.
func (s *Set) index() {
	hosts := map[string]string{}
	for _, f := range s.All() {
		for _, host := range f.Spec().Hosts {
			if _, taken := hosts[host]; !taken {
				hosts[host] = f.name
			}
		}
	}
	if len(hosts) == 0 {
		s.hosts.Store(nil)
		return
	}
	s.hosts.Store(&hosts)
}

// All lists the functions by name.
func (s *Set) All() []*Function {
	var all []*Function
	for _, f := range s.functions.Range {
		all = append(all, f.(*Function))
	}
	slices.SortFunc(all, func(a, b *Function) int { return cmp.Compare(a.name, b.name) })
	return all
}

// Apply takes over a record, in the order the table applied them. spec is its decoded specification, nil with a deletion.
func (s *Set) Apply(rec *wire.FunctionRecord, spec *function.Specification) {
	f := s.apply(rec, spec)
	if f == nil {
		return
	}
	if len(f.Draining()) > 0 {
		f.load.Changed()
	}
	if f.Limited() {
		s.say(f.name) // what goes back with a replica, and what those that wait may have of a new one
	}
	if s.Woken != nil {
		s.Woken(f)
	}
}

// Suspicions counts how often a replica was passed over from then on, because connections to it or calls of it failed.
func (s *Set) Suspicions() uint64 { return s.suspicions.Load() }

// Epoch is the highest epoch of the records applied; 0 before the first.
func (s *Set) Epoch() uint64 { return s.epoch.Load() }

func (s *Set) apply(rec *wire.FunctionRecord, spec *function.Specification) *Function {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.epoch.Store(max(s.epoch.Load(), rec.GetVersion().GetEpoch())) }() // after: who reports it has applied it
	f, _ := s.Get(rec.GetName())
	if rec.GetDeleted() || spec == nil {
		if f == nil {
			return nil
		}
		s.trust(f.view.Load(), -1)
		f.apply(&wire.FunctionRecord{Name: rec.GetName(), Version: rec.GetVersion(), Deleted: true}, f.Spec())
		s.functions.Delete(rec.GetName())
		if len(f.Spec().Hosts) > 0 {
			s.index()
		}
		s.loads.Forget(rec.GetName())
		return f // its parked requests must hear that it is gone
	}
	fresh := f == nil
	if fresh {
		f = newFunction(rec.GetName(), s)
	}
	old := f.view.Load()
	f.apply(rec, spec)
	if fresh {
		s.functions.Store(rec.GetName(), f)
	}
	if !slices.Equal(old.spec.Hosts, spec.Hosts) {
		s.index()
	}
	s.trust(f.view.Load(), +1)
	s.trust(old, -1) // after: an address in both is trusted all the time
	return f
}

// trust adds n to the holders of every address of a Trusted function's replicas. Holds mu.
func (s *Set) trust(v *view, n int) {
	if v.spec.DefaultTrust != function.Trusted {
		return
	}
	for _, r := range v.record.GetReplicas() {
		addr, err := netip.ParseAddr(r.GetHost())
		if err != nil {
			continue // a host name is no peer address
		}
		addr = addr.Unmap().WithZone("")
		if s.holders[addr] += n; s.holders[addr] > 0 {
			s.trusted.Store(addr, struct{}{})
		} else {
			delete(s.holders, addr)
			s.trusted.Delete(addr)
		}
	}
}

// TrustedAddr says whether addr is exactly the address of a replica of a Trusted function.
func (s *Set) TrustedAddr(addr netip.Addr) bool {
	_, ok := s.trusted.Load(addr.Unmap().WithZone(""))
	return ok
}

// Sight adds a replica that a scaler saw before the table did. It is used until a record with that replica or of a higher
// epoch comes, at most wire.SightingKept. A sighting of an unknown function is ignored: access rules are in the record.
func (s *Set) Sight(m *wire.Sighting) {
	f, ok := s.Get(m.GetFunction())
	if !ok || m.GetReplica().GetHost() == "" || len(m.GetReplica().GetPorts()) == 0 {
		return
	}
	s.mu.Lock()
	f.sight(m.GetReplica(), time.Now().Add(wire.SightingKept))
	s.mu.Unlock()
	if s.Woken != nil {
		s.Woken(f)
	}
}

func (s *Set) woken(f *Function) {
	if s.Woken != nil {
		s.Woken(f)
	}
}
