package replica_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	pending  = wire.ReplicaState_REPLICA_STATE_PENDING
	starting = wire.ReplicaState_REPLICA_STATE_STARTING
	ready    = wire.ReplicaState_REPLICA_STATE_READY
	draining = wire.ReplicaState_REPLICA_STATE_DRAINING
	gone     = wire.ReplicaState_REPLICA_STATE_GONE
)

// one makes a replica "fn-fib-<n>" on 10.0.0.<n>.
func one(n int, state wire.ReplicaState) *wire.Replica {
	return &wire.Replica{
		Name: fmt.Sprintf("fn-fib-%d", n), Instance: fmt.Sprint("life-", n), Host: fmt.Sprintf("10.0.0.%d", n),
		Ports: []uint32{8080}, State: state, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP},
	}
}

func record(epoch, seq uint64, replicas ...*wire.Replica) *wire.FunctionRecord {
	return &wire.FunctionRecord{
		Name: "fib", Version: &wire.Version{Epoch: epoch, Seq: seq}, Wanted: int32(len(replicas)), Replicas: replicas,
	}
}

func spec() *function.Specification { return &function.Specification{NumberParallelRequestPerPod: 10} }

func bundle(t *testing.T, rec *wire.FunctionRecord) (*replica.Set, *replica.Function) {
	t.Helper()
	s := replica.NewSet(load.NewTracker())
	s.Apply(rec, spec())
	f, ok := s.Get("fib")
	if !ok {
		t.Fatal("the function is not there")
	}
	return s, f
}

func open(f *replica.Function) map[string]int {
	counts := map[string]int{}
	for _, d := range f.Draining() {
		counts[d.Replica] = int(d.Open)
	}
	return counts
}

// Case A14: 3 ready replicas, 6 reservations that are not released: 2 each.
func TestSixReservationsOnThreeReplicasAreTwoEach(t *testing.T) {
	t.Parallel()
	_, f := bundle(t, record(1, 1, one(1, ready), one(2, ready), one(3, ready), one(4, pending)))
	got := map[string]int{}
	for range 6 {
		lease, ok := f.Choose(load.Sync, nil)
		if !ok {
			t.Fatal("no replica")
		}
		got[lease.Name]++
	}
	if got["fn-fib-1"] != 2 || got["fn-fib-2"] != 2 || got["fn-fib-3"] != 2 {
		t.Errorf("reservations %v, want 2 each", got)
	}
}

// Case A15: 300 concurrent reservations on 3 replicas: each 50 to 150. Also with so many replicas that two are drawn.
func TestConcurrentReservationsAreSpread(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 20} {
		var replicas []*wire.Replica
		for i := range n {
			replicas = append(replicas, one(i+1, ready))
		}
		_, f := bundle(t, record(1, 1, replicas...))
		var mu sync.Mutex
		got := map[string]int{}
		var all sync.WaitGroup
		for range 100 * n {
			all.Go(func() {
				lease, ok := f.Choose(load.Sync, nil)
				if !ok {
					t.Error("no replica")
					return
				}
				mu.Lock()
				got[lease.Name]++
				mu.Unlock()
			})
		}
		all.Wait()
		for name, count := range got {
			if count < 50 || count > 150 {
				t.Errorf("%d replicas: %s got %d", n, name, count)
			}
		}
		if len(got) != n {
			t.Errorf("only %d of %d replicas were used", len(got), n)
		}
	}
}

func TestWhichReplicasMayBeUsed(t *testing.T) {
	t.Parallel()
	fallen := one(6, starting)
	fallen.WasReady = true
	noPort := one(7, ready)
	noPort.Ports = nil
	_, f := bundle(t, record(1, 1, one(1, ready), one(2, starting), one(3, draining), one(4, gone), one(5, pending), fallen, noPort))
	var names []string
	for _, r := range f.Ready() {
		names = append(names, r.Name)
	}
	if !slices.Equal(names, []string{"fn-fib-1"}) {
		t.Errorf("usable: %v", names)
	}
	for _, r := range f.Replicas() {
		if want := r.Name == "fn-fib-2"; r.Probable() != want {
			t.Errorf("%s probable: %v, want %v", r.Name, r.Probable(), want)
		}
	}
	if _, ok := f.Reserve("fn-fib-3", load.Delivery); ok {
		t.Error("a draining replica was reserved")
	}
	if _, ok := f.Reserve("fn-fib-9", load.Delivery); ok {
		t.Error("an unknown replica was reserved")
	}
	if _, ok := f.Choose(load.Sync, func(r *replica.Replica) bool { return true }); ok {
		t.Error("a replica that was tried already was chosen")
	}
}

func TestAnEarlyProbeOpensAStartingReplicaUntilTheOrchestratorHasSpoken(t *testing.T) {
	t.Parallel()
	s, f := bundle(t, record(1, 1, one(1, starting)))
	woken := 0
	s.Woken = func(*replica.Function) { woken++ }
	r := f.Replicas()[0]
	for _, want := range []int32{1, 2, 0} {
		if nth := r.BeginProbe(2); nth != want {
			t.Fatalf("probe %d of two, want %d", nth, want)
		}
	}
	r.EndProbe(f, false)
	if len(f.Ready()) != 0 || woken != 0 {
		t.Fatal("a failed probe opened the replica")
	}
	r.EndProbe(f, true)
	if len(f.Ready()) != 1 || woken != 1 {
		t.Fatal("a good probe did not open the replica")
	}
	s.Apply(record(1, 2, one(1, starting)), spec()) // the orchestrator lags behind: still open
	if len(f.Ready()) != 1 {
		t.Fatal("a record closed the replica though it has not been ready yet")
	}
	s.Apply(record(1, 3, one(1, ready)), spec())
	s.Apply(record(1, 4, one(1, starting)), spec()) // was ready, fails now: the orchestrator's word rules
	if len(f.Ready()) != 0 {
		t.Fatal("a replica that is not ready any more is used")
	}
	other := one(1, starting)
	other.Instance = "life-1b"
	s.Apply(record(1, 5, other), spec())
	if len(f.Ready()) != 0 || !f.Replicas()[0].Probable() {
		t.Fatal("a new life must be probed anew")
	}
}

func TestAJustWokenReplicaIsPacedUntilTenAnswers(t *testing.T) {
	t.Parallel()
	s, f := bundle(t, record(1, 1))
	perPod := spec()
	perPod.NumberParallelRequestPerPod = 2
	s.Apply(record(1, 2, one(1, ready)), perPod)
	var leases []*replica.Lease
	for range 2 {
		lease, ok := f.Choose(load.Sync, nil)
		if !ok {
			t.Fatal("no replica")
		}
		leases = append(leases, lease)
	}
	if _, ok := f.Choose(load.Sync, nil); ok {
		t.Fatal("a third call went to a just-woken replica that may have two")
	}
	if d, ok := f.Reserve("fn-fib-1", load.Delivery); !ok {
		t.Fatal("a granted delivery is the queue's to pace")
	} else {
		d.End()
	}
	leases[0].End()
	for range 10 {
		lease, ok := f.Choose(load.Sync, nil)
		if !ok {
			t.Fatal("no room after an end")
		}
		lease.Answered()
		lease.End()
	}
	for range 20 {
		if _, ok := f.Choose(load.Sync, nil); !ok {
			t.Fatal("still paced after ten answers")
		}
	}
}

func TestADialThatFailedMakesOthersPreferred(t *testing.T) {
	t.Parallel()
	_, f := bundle(t, record(1, 1, one(1, ready), one(2, ready)))
	bad, _ := f.Choose(load.Sync, nil)
	bad.Unreachable(true)
	bad.End()
	for range 5 {
		lease, ok := f.Choose(load.Sync, nil)
		if !ok || lease.Name == bad.Name {
			t.Fatalf("the unreachable replica was chosen again while there is another")
		}
	}
}

func TestSightingsAreUsedUntilARecordConfirmsOrANewEpoch(t *testing.T) {
	t.Parallel()
	s, f := bundle(t, record(3, 1))
	s.Sight(&wire.Sighting{Function: "fib", Replica: one(1, ready)})
	if len(f.Ready()) != 1 || !f.Ready()[0].Sighted {
		t.Fatal("the sighted replica is not used")
	}
	s.Apply(record(3, 2), spec()) // a record of the same epoch without it: not yet in the table
	if len(f.Ready()) != 1 {
		t.Fatal("an older view of the same leader took the sighting away")
	}
	s.Apply(record(3, 3, one(1, starting)), spec())
	if len(f.Replicas()) != 1 || f.Replicas()[0].Sighted {
		t.Fatal("the record did not take over")
	}
	s.Sight(&wire.Sighting{Function: "fib", Replica: one(2, ready)})
	s.Apply(record(4, 1), spec())
	if len(f.Replicas()) != 0 {
		t.Fatal("a sighting outlived a new epoch")
	}
	s.Sight(&wire.Sighting{Function: "other", Replica: one(2, ready)})
	if _, ok := s.Get("other"); ok {
		t.Fatal("a sighting made a function")
	}
}

// Hints come late, twice and in any order: one of a replica that was there and is gone would send calls to nobody for half a minute.
func TestASightingOfAReplicaThatHasGoneIsNotBelieved(t *testing.T) {
	t.Parallel()
	s, f := bundle(t, record(3, 1, one(1, ready)))
	s.Apply(record(3, 2), spec())
	s.Sight(&wire.Sighting{Function: "fib", Replica: one(1, ready)})
	if len(f.Replicas()) != 0 {
		t.Fatal("a replica that has gone is used again")
	}
	s.Apply(record(3, 3, one(1, ready)), spec())
	if len(f.Ready()) != 1 {
		t.Fatal("what a record says is not believed")
	}
	// One that no record had: the first call finds out.
	s.Apply(record(3, 4), spec())
	s.Sight(&wire.Sighting{Function: "fib", Replica: one(2, ready)})
	lease, ok := f.Choose(load.Sync, nil)
	if !ok {
		t.Fatal("the sighted replica is not used")
	}
	lease.Unreachable(false)
	if len(f.Ready()) != 1 {
		t.Fatal("a replica that was slow once is none any more")
	}
	lease.Unreachable(true)
	lease.End()
	if len(f.Replicas()) != 0 {
		t.Fatal("a replica nobody listens at is kept")
	}
}

// What makes a drain safe: after a report said zero, no call begins on the replica, however the two race.
func TestNoCallBeginsAfterADrainingReplicaReportedZero(t *testing.T) {
	t.Parallel()
	s, f := bundle(t, record(1, 1, one(1, ready), one(2, ready)))
	stop := make(chan struct{})
	var callers sync.WaitGroup
	var mu sync.Mutex // guards zeroed: set before a call that began may be told from one that came after
	zeroed := map[string]bool{}
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				before := zeroed["fn-fib-1"]
				mu.Unlock()
				lease, ok := f.Choose(load.Sync, nil)
				if !ok {
					continue
				}
				if before && lease.Name == "fn-fib-1" {
					mu.Lock()
					still := zeroed["fn-fib-1"]
					mu.Unlock()
					if still {
						t.Error("a call began on a replica that had reported zero")
					}
				}
				lease.End()
			}
		})
	}
	for seq := uint64(2); seq < 400; seq += 2 {
		s.Apply(record(1, seq, one(1, draining), one(2, ready)), spec())
		for deadline := time.Now().Add(5 * time.Second); open(f)["fn-fib-1"] != 0; {
			if time.Now().After(deadline) {
				t.Fatal("the draining replica never got empty")
			}
		}
		mu.Lock()
		zeroed["fn-fib-1"] = true
		mu.Unlock()
		for range 50 {
			if n := open(f)["fn-fib-1"]; n > 4 {
				t.Errorf("open %d after zero", n)
			}
		}
		mu.Lock()
		zeroed["fn-fib-1"] = false
		mu.Unlock()
		s.Apply(record(1, seq+1, one(1, ready), one(2, ready)), spec())
	}
	close(stop)
	callers.Wait()
}

func TestCallsOfALostReplicaStillCountWhenItComesBackToDrain(t *testing.T) {
	t.Parallel()
	s, f := bundle(t, record(1, 1, one(1, ready)))
	lease, _ := f.Choose(load.Sync, nil)
	s.Apply(record(2, 1), spec())
	s.Apply(record(2, 2, one(1, draining)), spec())
	if open(f)["fn-fib-1"] != 1 {
		t.Error("the open call was forgotten")
	}
	lease.End()
	if open(f)["fn-fib-1"] != 0 {
		t.Error("the end was not counted")
	}
}

func TestTrustedAddressesFollowTheTable(t *testing.T) {
	t.Parallel()
	s, _ := bundle(t, record(1, 1, one(1, ready), one(2, starting)))
	is := func(a string) bool { return s.TrustedAddr(netip.MustParseAddr(a)) }
	if !is("10.0.0.1") || !is("10.0.0.2") || is("10.0.0.12") || !is("::ffff:10.0.0.1") {
		t.Error("addresses of trusted replicas are wrong")
	}
	untrusted := spec()
	untrusted.DefaultTrust = function.Untrusted
	s.Apply(record(1, 2, one(1, ready)), untrusted)
	if is("10.0.0.1") || is("10.0.0.2") {
		t.Error("an untrusted function's replica is trusted")
	}
	s.Apply(record(1, 3, one(1, ready)), spec())
	s.Apply(&wire.FunctionRecord{Name: "fib", Version: &wire.Version{Epoch: 1, Seq: 4}, Deleted: true}, nil)
	if is("10.0.0.1") {
		t.Error("a deleted function's replica is trusted")
	}
	if _, ok := s.Get("fib"); ok || len(s.All()) != 0 {
		t.Error("a deleted function is there")
	}
}

func TestHostNamesBelongToOneFunction(t *testing.T) {
	t.Parallel()
	s := replica.NewSet(load.NewTracker())
	var seq uint64
	put := func(name string, hosts ...string) {
		seq++
		sp := spec()
		sp.Hosts = hosts
		s.Apply(&wire.FunctionRecord{Name: name, Version: &wire.Version{Epoch: 1, Seq: seq}}, sp)
	}
	want := func(host, name string) {
		t.Helper()
		if got, ok := s.ByHost(host); got != name || ok != (name != "") {
			t.Errorf("%s is of %q, %v; want %q", host, got, ok, name)
		}
	}
	want("app.example", "")
	put("b", "app.example", "b.example")
	put("c", "app.example")
	want("app.example", "b")
	want("APP.example.:8080", "b")
	want("other.example", "")
	want("[::1]:80", "")
	put("a", "app.example")
	want("app.example", "a") // the first by name
	put("a")
	want("app.example", "b")
	seq++
	s.Apply(&wire.FunctionRecord{Name: "b", Version: &wire.Version{Epoch: 1, Seq: seq}, Deleted: true}, nil)
	want("app.example", "c")
	want("b.example", "")
}
