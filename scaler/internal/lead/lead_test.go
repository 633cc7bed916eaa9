package lead_test

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/wire"
)

var (
	tenSeconds = map[string]string{"SlimFaas/TimeoutSecondBeforeSetReplicasMin": "10"}
	twoEdges   = []string{"edge-0", "edge-1"}
)

func TestAFunctionSleepsAfterItsTimeAndWakesAgain(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		_ = w.lead(1, func() {
			w.sleep(time.Second)
			if w.wanted("hello") != 0 {
				t.Fatal("first sight must not wake")
			}
			w.edges[0].park("hello", 1)
			w.until("woken", 100*time.Millisecond, func() bool { return w.wanted("hello") == 1 })
			w.until("told ready", time.Second, func() bool { return w.state("hello") == "1 READY" })
			w.edges[0].park("hello", -1)
			w.edges[0].call("hello", "hello-0", 1)
			w.never("put to sleep with a call in it", 30*time.Second, func() bool { return w.state("hello") != "1 READY" })
			w.edges[0].call("hello", "hello-0", -1)
			took := w.until("asleep", 12*time.Second, func() bool { return w.wanted("hello") == 0 })
			if took < 10*time.Second || took > 10100*time.Millisecond {
				t.Errorf("it slept after %s, not after 10 s", took)
			}
			w.until("told asleep", time.Second, func() bool { return w.state("hello") == "0 " })
		})
		if got := w.orchestrator.Log(); !slices.Equal(got, []string{"wake hello 1", "scale hello 0 [hello-0]"}) {
			t.Errorf("requests: %v", got)
		}
	})
}

func TestNoReplicaIsStoppedBeforeEveryEdgeHasLetGo(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.up("hello", 3)
		_ = w.lead(1, func() {
			w.report()
			w.edges[1].call("hello", "hello-1", 2)
			w.edges[1].call("hello", "hello-2", 1)
			w.sleep(6 * time.Second)
			w.operator("hello", 1, time.Hour)
			w.until("victims draining", time.Second, func() bool { return w.state("hello") == "1 READY DRAINING DRAINING" })
			w.never("stopped with calls in it", 20*time.Second, func() bool { return w.wanted("hello") != 3 })
			if e := w.explain("hello"); e.Replicas.Draining != 2 || !strings.Contains(strings.Join(e.Awaited, " "), "open on hello-1") {
				t.Errorf("explain does not say what is awaited: %+v", e)
			}
			w.edges[1].call("hello", "hello-1", -2)
			w.sleep(time.Second)
			w.edges[1].call("hello", "hello-2", -1)
			w.until("stopped", 100*time.Millisecond, func() bool { return w.wanted("hello") == 1 })
			w.until("told", time.Second, func() bool { return w.state("hello") == "1 READY" })
		})
		if got := w.orchestrator.Log(); got[len(got)-1] != "scale hello 1 [hello-1 hello-2]" {
			t.Errorf("requests: %v", got)
		}
	})
}

func TestADeadlineEndsAShrinkAnOperatorAskedFor(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.up("hello", 2)
		_ = w.lead(1, func() {
			w.report()
			w.edges[0].call("hello", "hello-1", 1)
			w.sleep(6 * time.Second)
			w.operator("hello", 1, time.Hour)
			took := w.until("stopped with its call", 400*time.Second, func() bool { return w.wanted("hello") == 1 })
			if took < 299*time.Second || took > 302*time.Second {
				t.Errorf("after %s, not after 300 s", took)
			}
		})
	})
}

func TestACallCancelsADrain(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 1)
		_ = w.lead(1, func() {
			w.sleep(time.Second)
			w.report()
			w.edges[1].setMute(true) // it applies the drain and does not say so: the drain waits
			w.until("draining", 20*time.Second, func() bool { return w.state("hello") == "0 DRAINING" })
			draining := w.record("hello").GetVersion().GetSeq()
			w.edges[0].park("hello", 1)
			w.until("ready again", 100*time.Millisecond, func() bool { return w.state("hello") == "1 READY" })
			if w.record("hello").GetVersion().GetSeq() <= draining {
				t.Error("Ready must have a higher version than Draining")
			}
			w.edges[1].setMute(false)
			w.edges[0].park("hello", -1)
			w.until("asleep in the end", 20*time.Second, func() bool { return w.wanted("hello") == 0 })
		})
	})
}

func TestAWakeCancelsADrain(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 1)
		_ = w.lead(1, func() {
			w.sleep(time.Second)
			w.report()
			w.edges[1].setMute(true)
			w.until("draining", 20*time.Second, func() bool { return w.state("hello") == "0 DRAINING" })
			w.waker.Heard([]string{"hello", "unknown"})
			w.leader.Changed()
			w.until("ready again", 100*time.Millisecond, func() bool { return w.state("hello") == "1 READY" })
		})
	})
}

func TestACallAfterTheRequestWasSentIsAColdWake(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 1)
		_ = w.lead(1, func() {
			w.report()
			w.until("asleep", 20*time.Second, func() bool { return w.wanted("hello") == 0 })
			w.edges[0].park("hello", 1)
			w.until("awake", 100*time.Millisecond, func() bool { return w.wanted("hello") == 1 })
			w.until("ready", time.Second, func() bool { return w.state("hello") == "1 READY" })
		})
	})
}

// The answer to "0 replicas" arrives after the watch has shown that somebody woke the function again: the watch is right.
func TestALateAnswerDoesNotHideAWake(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.AnswerTime = 500 * time.Millisecond
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 1)
		_ = w.lead(1, func() {
			w.report()
			w.until("asleep", 20*time.Second, func() bool { return w.wanted("hello") == 0 })
			w.waker.Heard([]string{"hello"})
			w.until("awake", 100*time.Millisecond, func() bool { return w.wanted("hello") == 1 })
			w.until("ready", 2*time.Second, func() bool { return w.state("hello") == "1 READY" })
			w.until("asleep again", 20*time.Second, func() bool { return w.wanted("hello") == 0 })
		})
	})
}

func TestANewLeaderShrinksNothingBeforeItKnows(t *testing.T) {
	t.Parallel()
	const idle = 20 * time.Second
	prepare := func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 1)
		w.queue.history["hello"] = time.Now().Add(-time.Hour)
	}
	asleep := func(w *world) func() bool { return func() bool { return w.wanted("hello") == 0 } }
	tests := map[string]struct {
		before  func(*world)
		during  func(*world)
		hinders string
		after   func(*world)
	}{
		"the queue cannot be read": {
			before: func(w *world) { w.queue.setDown(true) }, hinders: "history",
			after: func(w *world) { w.queue.setDown(false) },
		},
		"a live edge does not report": {
			before: func(w *world) { w.edges[1].setMute(true) }, hinders: "edge-1 has not reported",
			after: func(w *world) { w.edges[1].setMute(false); w.report() },
		},
		"a live edge has not applied the new table": {
			before: func(w *world) { w.edges[1].setDeaf(true) }, hinders: "under epoch",
			after: func(w *world) { w.edges[1].setDeaf(false); w.edges[1].apply(w.record("hello")); w.report() },
		},
		"an edge vanished a moment ago": {
			before: func(w *world) { w.vanish("edge-1") }, hinders: "edge-1 vanished",
			after: func(w *world) { w.orchestrator.SetPart("edge-1", false) },
		},
		"the orchestrator is away": {
			during:  func(w *world) { w.fleet.Lost(errors.New("gone")) },
			hinders: "orchestrator is not being watched",
			after:   func(w *world) { w.orchestrator.Interrupt() },
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, twoEdges, func(w *world) {
				prepare(w)
				if test.before != nil {
					test.before(w)
				}
				_ = w.lead(1, func() {
					w.report()
					if test.during != nil {
						test.during(w)
					}
					w.never("asleep", idle, asleep(w))
					if e := w.explain("hello"); !strings.Contains(strings.Join(e.Awaited, " "), test.hinders) {
						t.Errorf("explain awaits %q, want … %s …", e.Awaited, test.hinders)
					}
					test.after(w)
					w.until("asleep", 10*time.Second, asleep(w))
				})
			})
		})
	}
}

func TestAVanishedEdgeBlocksForAMinute(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 1)
		w.queue.history["hello"] = time.Now().Add(-time.Hour)
		w.vanish("edge-1")
		_ = w.lead(1, func() {
			w.report()
			took := w.until("asleep", 2*time.Minute, func() bool { return w.wanted("hello") == 0 })
			if took < 58*time.Second || took > 66*time.Second {
				t.Errorf("after %s, not after a minute", took)
			}
		})
	})
}

func TestATakeoverPutsNothingToSleepThatWasActive(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 1)
		_ = w.lead(1, func() {
			w.report()
			w.sleep(8 * time.Second)
			w.edges[0].call("hello", "hello-0", 1)
			w.edges[0].call("hello", "hello-0", -1)
			w.sleep(6 * time.Second) // the activity was persisted meanwhile
		})
		w.edges[0].forget() // the edge restarted: it does not know any more
		w.fresh()
		_ = w.lead(2, func() {
			w.report()
			took := w.until("asleep", 10*time.Second, func() bool { return w.wanted("hello") == 0 })
			if took < 3*time.Second {
				t.Errorf("it slept %s after the takeover: 6 s + that is less than its 10 s", took)
			}
		})
	})
}

func TestATakeoverInADrainStatesEverythingAfresh(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.up("hello", 2)
		_ = w.lead(1, func() {
			w.sleep(time.Second)
			w.report()
			w.edges[1].setMute(true)
			w.until("draining", 20*time.Second, func() bool { return w.state("hello") == "0 DRAINING DRAINING" })
		})
		w.mu.Lock()
		w.tables = []*wire.TableDigest{{Version: &wire.Version{Epoch: 17}}, {Version: &wire.Version{Epoch: 3}}}
		w.mu.Unlock()
		w.fresh()
		_ = w.lead(5, func() {
			w.until("stated afresh", time.Second, func() bool { return w.record("hello").GetVersion().GetEpoch() == 18 })
			if got := w.state("hello"); got != "2 READY READY" {
				t.Errorf("the new leader states %q", got)
			}
			if w.leader.Epoch() != 18 {
				t.Errorf("epoch %d, want one more than anybody has seen", w.leader.Epoch())
			}
		})
	})
}

func TestFirstSightCountsAsActivityAndIsPersisted(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("old", tenSeconds)
		w.up("old", 1)
		w.queue.history["again"] = time.Now().Add(-time.Hour)
		_ = w.lead(1, func() {
			w.report()
			w.until("the function nobody has seen", 11*time.Second, func() bool { return w.wanted("old") == 0 })
			// One that comes back counts from now, whatever history says.
			w.orchestrator.Add("again", tenSeconds)
			if _, err := w.orchestrator.Wake(t.Context(), "again", "", 1); err != nil {
				t.Fatal(err)
			}
			w.never("killed at once", 9*time.Second, func() bool { return w.wanted("again") != 1 })
			w.until("asleep", 3*time.Second, func() bool { return w.wanted("again") == 0 })
		})
		if age := time.Since(w.queue.history["old"]); age > time.Minute {
			t.Errorf("the first sight was not persisted: history is %s old", age)
		}
	})
}

func TestActivityIsPersistedSparingly(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.up("hello", 1)
		_ = w.lead(1, func() {
			w.report()
			w.sleep(10 * time.Second)
			before := w.queue.operations()
			for range 200 {
				w.edges[0].call("hello", "hello-0", 1)
				w.edges[0].call("hello", "hello-0", -1)
				w.sleep(100 * time.Millisecond)
			}
			if n := w.queue.operations() - before; n < 3 || n > 5 {
				t.Errorf("%d operations in 20 s, want one each 5 s", n)
			}
			w.sleep(10 * time.Second)
			before = w.queue.operations()
			w.sleep(time.Minute)
			if w.queue.operations() != before {
				t.Error("activity that did not change was persisted again")
			}
		})
	})
}

func TestAnOperatorsWordGoesUpAndDownAndEnds(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		_ = w.lead(1, func() {
			w.report()
			w.sleep(6 * time.Second)
			for range 5 {
				w.operator("hello", 3, 20*time.Second)
				w.until("three", 100*time.Millisecond, func() bool { return w.wanted("hello") == 3 })
				w.until("ready", time.Second, func() bool { return w.state("hello") == "3 READY READY READY" })
				w.operator("hello", 1, 20*time.Second)
				w.until("one", 100*time.Millisecond, func() bool { return w.wanted("hello") == 1 })
			}
			e := w.explain("hello")
			if e.Facts.Override == nil || !strings.Contains(e.Reason, "operator asked for 1") {
				t.Errorf("explain: %+v", e)
			}
			w.until("asleep when the operator's time is over", 31*time.Second, func() bool { return w.wanted("hello") == 0 })
		})
	})
}

func TestQueuedCallsWakeAndKeepAwake(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		say := func(sequence uint64, work *wire.FunctionDemand) {
			work.Function = "hello"
			w.demand.Apply(time.Now(), &wire.DemandReport{Term: 2, Sequence: sequence, Functions: []*wire.FunctionDemand{work}})
			w.leader.Changed()
		}
		_ = w.lead(1, func() {
			w.sleep(time.Second)
			say(1, &wire.FunctionDemand{Queued: 3})
			w.until("woken by queued calls alone", 100*time.Millisecond, func() bool { return w.wanted("hello") == 1 })
			w.never("asleep with a backlog", 40*time.Second, func() bool { return w.wanted("hello") != 1 })
			say(2, &wire.FunctionDemand{Waiting: 1, HasNextTry: true, NextTryInMs: 60_000})
			took := w.until("asleep while a call waits long", 15*time.Second, func() bool { return w.wanted("hello") == 0 })
			w.until("woken when the call is due", time.Minute, func() bool { return w.wanted("hello") == 1 })
			if w.explain("hello").Facts.Waiting != 1 {
				t.Error("explain does not tell the waiting call")
			}
			if took < 10*time.Second {
				t.Errorf("asleep %s after the work ended", took)
			}
		})
	})
}

func TestQueuedCallsWakeWithoutTheBus(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		_ = w.lead(1, func() {
			w.sleep(10 * time.Second)
			w.queue.mu.Lock()
			w.queue.demand = &wire.DemandReport{Term: 1, Full: true, Parts: 1, Functions: []*wire.FunctionDemand{{Function: "hello", Queued: 1}}}
			w.queue.mu.Unlock()
			w.until("woken by what the queue answers", 1100*time.Millisecond, func() bool { return w.wanted("hello") == 1 })
		})
	})
}

func TestDependenciesStartFirst(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("shop", map[string]string{"SlimFaas/DependsOn": "db", "SlimFaas/TimeoutSecondBeforeSetReplicasMin": "10"})
		w.orchestrator.Add("db", map[string]string{"SlimFaas/DependsOn": "disk", "SlimFaas/TimeoutSecondBeforeSetReplicasMin": "10"})
		w.orchestrator.Add("disk", tenSeconds)
		_ = w.lead(1, func() {
			w.report()
			w.edges[0].park("shop", 1)
			w.until("shop up", time.Second, func() bool { return w.wanted("shop") == 1 })
			if got := w.orchestrator.Log(); !slices.Equal(got, []string{"wake disk 1", "wake db 1", "wake shop 1"}) {
				t.Errorf("started in the order %v", got)
			}
			w.edges[0].park("shop", -1)
			w.edges[0].call("shop", "shop-0", 1)
			w.never("a dependency asleep", 30*time.Second, func() bool { return w.wanted("db") != 1 || w.wanted("disk") != 1 })
			w.edges[0].call("shop", "shop-0", -1)
			w.until("all asleep", 12*time.Second, func() bool { return w.wanted("shop")+w.wanted("db")+w.wanted("disk") == 0 })
		})
	})
}

func TestARequestWhoseAnswerWasLostIsSettled(t *testing.T) {
	t.Parallel()
	for name, carriedOut := range map[string]bool{"carried out": true, "not carried out": false} {
		for again, comesBack := range map[string]bool{"and a call comes": true, "and nothing comes": false} {
			t.Run(name+" "+again, func(t *testing.T) {
				t.Parallel()
				play(t, twoEdges, func(w *world) {
					w.orchestrator.Add("hello", tenSeconds)
					w.up("hello", 1)
					_ = w.lead(1, func() {
						w.report()
						var failed atomic.Int32
						w.orchestrator.Fail(func(what string, done bool) error {
							if strings.HasPrefix(what, "scale") && done == carriedOut && failed.Load() < 3 {
								failed.Add(1)
								return orchestrator.ErrUnreachable
							}
							return nil
						})
						w.until("the request", 20*time.Second, func() bool { return failed.Load() > 0 })
						if comesBack {
							w.edges[0].park("hello", 1)
							w.until("a ready replica", 10*time.Second, func() bool { return w.state("hello") == "1 READY" })
							w.never("flapping", 5*time.Second, func() bool { return w.state("hello") != "1 READY" })
						} else {
							w.until("asleep", 10*time.Second, func() bool { return w.wanted("hello") == 0 })
							w.until("told", 10*time.Second, func() bool { return w.state("hello") == "0 " })
						}
					})
				})
			})
		}
	}
}

func TestANewerEpochEndsTheTerm(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		f := w.orchestrator.Get("hello")
		if _, err := w.orchestrator.Scale(t.Context(), orchestrator.Request{Function: "hello", Replicas: 1, Epoch: 99, IfRevision: f.Revision}); err != nil {
			t.Fatal(err)
		}
		err := w.lead(1, func() {
			w.report()
			w.sleep(20 * time.Second)
			if w.leader.Epoch() != 0 {
				t.Error("it still leads")
			}
		})
		if !errors.Is(err, orchestrator.ErrStaleEpoch) {
			t.Errorf("the term ended with %v", err)
		}
		if w.wanted("hello") != 1 {
			t.Error("a stale leader scaled")
		}
	})
}

func TestABrokenFunctionHurtsOnlyItself(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("good", tenSeconds)
		w.orchestrator.Add("bad", map[string]string{"SlimFaas/ReplicasMin": "many"})
		w.up("good", 1)
		w.up("bad", 2)
		_ = w.lead(1, func() {
			w.report()
			w.until("the good one asleep", 20*time.Second, func() bool { return w.wanted("good") == 0 })
			if w.wanted("bad") != 2 {
				t.Error("the broken one was touched")
			}
			if record := w.record("bad"); len(record.GetProblems()) != 1 || !strings.Contains(record.GetProblems()[0], "ReplicasMin") {
				t.Errorf("its record says %v", record.GetProblems())
			}
			if e := w.explain("bad"); len(e.Problems) != 1 || !strings.Contains(e.Reason, "problems") {
				t.Errorf("explain: %+v", e)
			}
			w.orchestrator.Add("bad", tenSeconds)
			w.until("the mended one asleep", 20*time.Second, func() bool { return w.wanted("bad") == 0 })
		})
	})
}

func TestADeletedFunctionIsStatedGone(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", tenSeconds)
		w.orchestrator.Add("other", tenSeconds)
		_ = w.lead(1, func() {
			w.sleep(time.Second)
			w.orchestrator.Remove("hello")
			w.until("stated gone", 100*time.Millisecond, func() bool { return w.record("hello").GetDeleted() })
			w.sleep(2 * time.Second)
			w.mu.Lock()
			count := w.digests[len(w.digests)-1].GetCount()
			w.mu.Unlock()
			if count != 2 {
				t.Errorf("the digest counts %d records, want the deletion too", count)
			}
			w.sleep(wire.DeletionKept + 2*time.Second)
			w.mu.Lock()
			count = w.digests[len(w.digests)-1].GetCount()
			w.mu.Unlock()
			if count != 1 {
				t.Errorf("after ten minutes the digest counts %d records", count)
			}
		})
	})
}

func TestADigestComesEachSecondUnderTheTermsEpoch(t *testing.T) {
	t.Parallel()
	play(t, nil, func(w *world) {
		_ = w.lead(41, func() {
			w.sleep(10*time.Second + 500*time.Millisecond)
			w.mu.Lock()
			defer w.mu.Unlock()
			if n := len(w.digests); n < 10 || n > 12 {
				t.Errorf("%d digests in 10 s", n)
			}
			for _, digest := range w.digests {
				if digest.GetVersion().GetEpoch() != 42 || digest.GetLeader() != "scaler-0" || digest.GetLeaderApi() != "here:1" {
					t.Errorf("digest %v", digest)
				}
			}
		})
	})
}

func TestRecordsDoNotChangeWithTheNumberOfCalls(t *testing.T) {
	t.Parallel()
	play(t, twoEdges, func(w *world) {
		w.orchestrator.Add("hello", nil)
		w.up("hello", 1)
		_ = w.lead(1, func() {
			w.report()
			w.sleep(10 * time.Second)
			w.mu.Lock()
			before := len(w.records)
			w.mu.Unlock()
			for n := range 20 {
				w.edges[0].call("hello", "hello-0", n+1)
				w.sleep(time.Second)
			}
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			if n := len(w.records) - before; n > 1 {
				t.Errorf("%d records were published while only calls came", n)
			}
		})
	})
}
