package replica_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
)

// spread is how n calls at one time fall on the replicas.
func spread(t *testing.T, f *replica.Function, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		lease, ok := f.Choose(load.Sync, nil)
		if !ok {
			t.Fatal("no replica")
		}
		got[lease.Name]++
		defer lease.End()
	}
	return got
}

func TestAReplicaThatJoinsOthersStartsSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, f := bundle(t, record(1, 1, one(1, ready), one(2, ready)))
		if got := spread(t, f, 20); got["fn-fib-1"] != 10 { // both joined at one time
			t.Errorf("%v", got)
		}
		time.Sleep(time.Minute)
		s.Apply(record(1, 2, one(1, ready), one(2, ready), one(3, ready)), spec())
		for _, want := range []struct {
			after time.Duration
			calls int
		}{{0, 1}, {2500 * time.Millisecond, 5}, {2500 * time.Millisecond, 7}} {
			time.Sleep(want.after)
			if got := spread(t, f, 21); got["fn-fib-3"] < want.calls-1 || got["fn-fib-3"] > want.calls+1 {
				t.Errorf("%v later: %v, want about %d for the third", want.after, got, want.calls)
			}
		}
		s.Apply(record(1, 3, one(1, ready), one(2, ready), one(3, ready)), spec()) // a new view is not a new life
		if got := spread(t, f, 21); got["fn-fib-3"] != 7 {
			t.Errorf("after another record: %v", got)
		}
	})
}

func TestAReplicaOfBrokenCallsIsLeftAloneAndTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, f := bundle(t, record(1, 1, one(1, ready), one(2, ready)))
		time.Sleep(time.Minute)
		breaks := func() {
			t.Helper()
			lease, ok := f.Reserve("fn-fib-1", load.Sync)
			if !ok {
				t.Fatal("cannot be reserved")
			}
			lease.Broke()
			lease.End()
		}
		breaks()
		breaks()
		if got := spread(t, f, 10)["fn-fib-1"]; got != 5 {
			t.Errorf("after two broken calls it gets %d of 10", got)
		}
		breaks()
		if got := spread(t, f, 10)["fn-fib-1"]; got != 0 || s.Suspicions() != 1 {
			t.Errorf("after three it gets %d of 10; %d suspicions", got, s.Suspicions())
		}
		// One call at a time finds out, ever more rarely.
		for i, pause := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
			time.Sleep(pause - time.Millisecond)
			early := spread(t, f, 10)["fn-fib-1"]
			time.Sleep(2 * time.Millisecond)
			if got := spread(t, f, 10)["fn-fib-1"]; early != 0 || got != 1 {
				t.Errorf("trial %d: %d before its time, %d in it", i, early, got)
			}
		}
		time.Sleep(31 * time.Second)
		for range 2 { // the trial goes to it
			lease, _ := f.Choose(load.Sync, nil)
			lease.Answered()
			lease.End()
		}
		if got := spread(t, f, 10)["fn-fib-1"]; got != 5 {
			t.Errorf("after an answer it gets %d of 10", got)
		}
	})
}

func TestTheOnlyReplicaIsUsedWhateverItDid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, f := bundle(t, record(1, 1, one(1, ready)))
		for i := range 100 {
			lease, ok := f.Choose(load.Sync, nil)
			if !ok {
				t.Fatalf("call %d finds no replica", i)
			}
			if i%2 == 0 {
				lease.Broke()
			} else {
				lease.Unreachable(true)
			}
			lease.End()
			time.Sleep(time.Duration(i) * 100 * time.Millisecond)
			if got := spread(t, f, 5); got["fn-fib-1"] != 5 {
				t.Fatal(fmt.Sprint(got))
			}
		}
	})
}
