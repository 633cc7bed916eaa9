package waking_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/orchestratortest"
	"github.com/slimfaas/slimfaas/scaler/internal/waking"
)

// world is two scalers, none of which leads, over one orchestrator.
type world struct {
	t            *testing.T
	orchestrator *orchestratortest.Fake
	wakers       []*waking.Waker
	leading      atomic.Bool
	mu           sync.Mutex
	sightings    []string
}

func play(t *testing.T, test func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{t: t, orchestrator: orchestratortest.NewFake()}
		w.orchestrator.StartTime = 100 * time.Millisecond
		var wait sync.WaitGroup
		for range 2 {
			view := fleet.New(time.Now, slog.New(slog.DiscardHandler))
			waker := waking.New(waking.Options{
				Orchestrator: w.orchestrator, Fleet: view, Log: slog.New(slog.DiscardHandler), Leading: w.leading.Load,
				Sighted: func(function string, _ *fleet.Function, r *orchestrator.Replica) {
					w.mu.Lock()
					defer w.mu.Unlock()
					state := "starting"
					if r.Phase == orchestrator.Ready {
						state = "ready"
					}
					w.sightings = append(w.sightings, function+" "+r.Name+" "+state)
				},
			})
			w.wakers = append(w.wakers, waker)
			wait.Go(func() { _ = w.orchestrator.Watch(ctx, view) })
			wait.Go(func() { _ = waker.Run(ctx) })
		}
		synctest.Wait()
		test(w)
		cancel()
		wait.Wait()
	})
}

// wake is a wake on the bus: every scaler hears it, and it is handed to the second one.
func (w *world) wake(functions ...string) {
	for _, waker := range w.wakers {
		waker.Heard(functions)
	}
	w.wakers[1].First(functions)
	synctest.Wait()
}

func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) requests(want ...string) {
	w.t.Helper()
	if got := w.orchestrator.Log(); !slices.Equal(got, want) {
		w.t.Errorf("requests %v, want %v", got, want)
	}
}

func TestAWakeIsOneChangeHoweverManyHearIt(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("hello", map[string]string{"SlimFaas/ReplicasAtStart": "2", "SlimFaas/ReplicasMin": "0"})
		w.sleep(time.Millisecond)
		for range 20 {
			w.wake("hello")
			w.sleep(50 * time.Millisecond)
		}
		w.requests("wake hello 2")
	})
}

func TestItIsRaisedAtOnce(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.sleep(time.Millisecond)
		w.wake("hello") // no time passes in here
		w.requests("wake hello 1")
		w.sleep(time.Second)
		if asked := w.wakers[0].Asked(); asked != 0 {
			t.Errorf("the scaler it was not handed to asked the orchestrator too, %d times", asked)
		}
	})
}

// TestAStormIsSharedAndTheOrchestratorIsNotFlooded: every other of many wakes is handed to each scaler.
func TestAStormIsSharedAndTheOrchestratorIsNotFlooded(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.WakeTime = 50 * time.Millisecond
		const n = 400
		for i := range n {
			w.orchestrator.Add(fmt.Sprintf("storm-%d", i), nil)
		}
		w.sleep(time.Millisecond)
		for i := range n {
			name := []string{fmt.Sprintf("storm-%d", i)}
			w.wakers[0].Heard(name)
			w.wakers[1].Heard(name)
			w.wakers[i%2].First(name)
		}
		w.sleep(2 * time.Second)
		if got := len(w.orchestrator.Log()); got != n {
			t.Errorf("%d of %d are raised", got, n)
		}
		asked := w.wakers[0].Asked() + w.wakers[1].Asked()
		if asked > n+n/10 || min(w.wakers[0].Asked(), w.wakers[1].Asked()) < n*2/5 {
			t.Errorf("the two asked %d and %d times for %d wakes", w.wakers[0].Asked(), w.wakers[1].Asked(), n)
		}
	})
}

// TestAWakeHandedToADeadScalerIsRaisedByAnother: the bus may hand a wake to one that hangs.
func TestAWakeHandedToADeadScalerIsRaisedByAnother(t *testing.T) {
	t.Parallel()
	for name, also := range map[string]func(*waking.Waker){
		"nobody leads":                func(*waking.Waker) {},
		"the one that hears it leads": func(leader *waking.Waker) { leader.Raise("hello") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, func(w *world) {
				w.orchestrator.Add("hello", nil)
				w.sleep(time.Millisecond)
				var log []string
				for range 2 { // and a second time after it has slept
					w.wakers[0].Heard([]string{"hello"})
					also(w.wakers[0])
					w.sleep(29 * time.Millisecond)
					w.requests(log...)
					w.sleep(time.Millisecond)
					log = append(log, "wake hello 1")
					w.requests(log...)
					w.sleep(10 * time.Second) // nobody wishes it any more
					f := w.orchestrator.Get("hello")
					if _, err := w.orchestrator.Scale(t.Context(), orchestrator.Request{Function: "hello", IfRevision: f.Revision}); err != nil {
						t.Fatal(err)
					}
					log = append(log, "scale hello 0 []")
					w.sleep(2 * time.Second)
				}
			})
		})
	}
}

func TestStrangersAndBrokenFunctionsAreIgnored(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("bad", map[string]string{"SlimFaas/ReplicasMin": "x"})
		w.sleep(time.Millisecond)
		w.wake("bad", "nobody", "", strings.Repeat("x", 10_000))
		w.sleep(5 * time.Second)
		w.requests()
		if n := len(w.wakers[0].Woken()); n != 0 {
			t.Errorf("%d names are remembered", n)
		}
	})
}

func TestDependenciesFirstWithoutALeader(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("shop", map[string]string{"SlimFaas/DependsOn": "db, mail"})
		w.orchestrator.Add("db", map[string]string{"SlimFaas/DependsOn": "disk"})
		w.orchestrator.Add("mail", nil)
		w.orchestrator.Add("disk", nil)
		w.sleep(time.Millisecond)
		w.wake("shop")
		w.sleep(time.Second)
		got := w.orchestrator.Log()
		if len(got) != 4 {
			t.Fatalf("requests %v", got)
		}
		slices.Sort(got[:2])
		if !slices.Equal(got, []string{"wake disk 1", "wake mail 1", "wake db 1", "wake shop 1"}) {
			t.Errorf("requests %v", got)
		}
	})
}

func TestAWishNobodyRepeatsIsForgotten(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.StartTime = 10 * time.Second
		w.orchestrator.Add("shop", map[string]string{"SlimFaas/DependsOn": "db"})
		w.orchestrator.Add("db", nil)
		w.sleep(time.Millisecond)
		w.wake("shop")
		w.sleep(time.Minute)
		w.requests("wake db 1") // the caller went away before the database was up
	})
}

func TestARepeatedWishWaitsForASlowDependency(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.StartTime = 10 * time.Second
		w.orchestrator.Add("shop", map[string]string{"SlimFaas/DependsOn": "db"})
		w.orchestrator.Add("db", nil)
		w.sleep(time.Millisecond)
		for range 11 {
			w.wake("shop")
			w.sleep(time.Second)
		}
		w.requests("wake db 1", "wake shop 1")
	})
}

func TestAFailureIsTriedAgain(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.sleep(time.Millisecond)
		var failures atomic.Int32
		w.orchestrator.Fail(func(_ string, done bool) error {
			if !done && failures.Add(1) <= 4 {
				return orchestrator.ErrUnreachable
			}
			return nil
		})
		w.wake("hello")
		w.sleep(time.Second)
		w.requests("wake hello 1")
	})
}

func TestAnOldViewIsNoHindrance(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.sleep(time.Millisecond)
		w.orchestrator.Interrupt() // the views are of the past for a moment
		w.orchestrator.Edit("hello", func(f *orchestrator.Workload) { f.Revision = "other" })
		w.wake("hello")
		w.sleep(time.Second)
		w.requests("wake hello 1")
	})
}

func TestItWakesAgainRightAfterItWasPutToSleep(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.sleep(time.Millisecond)
		w.wake("hello")
		w.sleep(200 * time.Millisecond)
		f := w.orchestrator.Get("hello")
		if _, err := w.orchestrator.Scale(t.Context(), orchestrator.Request{Function: "hello", IfRevision: f.Revision}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.wake("hello")
		w.sleep(10 * time.Millisecond)
		w.requests("wake hello 1", "scale hello 0 []", "wake hello 1")
	})
}

func TestNoRoomNoRequest(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.orchestrator.Edit("hello", func(f *orchestrator.Workload) {
			f.Replicas = []orchestrator.Replica{{Name: "hello-0", Phase: orchestrator.Pending, Unplaced: true, Detail: "exceeded quota"}}
		})
		w.sleep(time.Millisecond)
		w.wake("hello")
		w.sleep(time.Second)
		w.requests()
	})
}

func TestSightingsAreToldWhileNobodyLeads(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.sleep(time.Millisecond)
		w.wake("hello")
		w.sleep(10 * time.Millisecond)
		w.mu.Lock()
		if !slices.Contains(w.sightings, "hello hello-0 starting") {
			t.Errorf("10 ms after the wake the sightings are %v", w.sightings)
		}
		w.mu.Unlock()
		w.sleep(10 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		count := map[string]int{}
		for _, sighting := range w.sightings {
			count[sighting]++
		}
		if count["hello hello-0 ready"] != 12 || count["hello hello-0 starting"] < 4 {
			t.Errorf("told %v: want each state a few times by each scaler", count)
		}
	})
}

func TestTheLeaderTellsRecordsNotSightings(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		w.leading.Store(true)
		w.orchestrator.Add("hello", nil)
		w.sleep(time.Millisecond)
		w.wake("hello")
		w.sleep(10 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.sightings) != 0 {
			t.Errorf("sightings %v", w.sightings)
		}
	})
}
