package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
)

// seed of the random choices of a test: SEED, else the clock; always printed.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("SEED=%d", s)
	return rand.New(rand.NewPCG(s, 0))
}

func asleep(c *cluster.Cluster, function string) func() error {
	return func() error {
		if n := c.Replicas(function); n > 0 {
			_, why, _ := c.Get(0, "/explain/"+function)
			return fmt.Errorf("%d replicas: %s", n, why)
		}
		return nil
	}
}

// TestInPeace: what holds while nothing goes wrong: functions sleep, wake and stay awake as they should, events come to every
// replica, and callers may do what they may.
func TestInPeace(t *testing.T) {
	sideBySide(t, map[string]scenario{
		"private is private however it is spelt":                  privateIsPrivateHoweverItIsSpelt(),
		"an odd path lands on the function it names":              anOddPathLandsOnTheFunctionItNames(),
		"a broken annotation hurts only its function":             brokenAnnotationHurtsOnlyItsFunction(),
		"bad input is a problem and costs nothing":                badInputIsAProblemAndCostsNothing(),
		"publish reaches each replica once":                       publishReachesEachReplicaOnce(),
		"a function sleeps after its timeout and not during work": sleepsAfterItsTimeoutAndNotDuringWork(),
		"queued calls alone wake a function and keep it awake":    queuedCallsAloneWakeAndKeepAwake(),
		"dependencies wake first and stay awake":                  dependenciesWakeFirstAndStayAwake(),
		"scaling up and down under load loses nothing":            scalingUpAndDownLosesNothing(),
		"the caller chooses how to wait":                          callerChoosesHowToWait(),
		"a function has a host name of its own":                   functionUnderAHostNameOfItsOwn(),
		"go-httpbin answers as it does directly":                  goHTTPBinAnswersAsItDoesDirectly(t),
		"a killed replica is replaced and the other answers":      killedReplicaIsReplacedAndOthersAnswer(),
	}, "EDGE_MAX_ASYNC_BODY=1048576", "EDGE_ACCESS_LOG=true")
}

func sleepsAfterItsTimeoutAndNotDuringWork() scenario {
	idle := map[string]string{"TimeoutSecondBeforeSetReplicasMin": "2"}
	return scenario{[]fn{
		fn{name: "short", annotations: idle}, fn{name: "slow", annotations: idle}, fn{name: "stream", annotations: idle}, fn{name: "async", annotations: idle},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		var wg sync.WaitGroup
		began := time.Now()
		const work = 11 * time.Second // the drain history of a fresh leader (5 s) and the timeout fit in it several times
		wg.Go(func() {
			status, body, err := c.Get(0, "/function/slow/?ms="+strconv.Itoa(int(work.Milliseconds())))
			if err := wantStatus(status, 200, body, err); err != nil {
				t.Errorf("slow call: %v", err)
			}
		})
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", c.URL(0)+"/function/stream/?stream=11&every=1000", nil)
			res, err := cluster.Client.Do(req)
			if err != nil {
				t.Errorf("stream: %v", err)
				return
			}
			defer res.Body.Close()
			n := 0
			for lines := bufio.NewScanner(res.Body); lines.Scan(); {
				if lines.Text() != "" {
					n++
				}
			}
			if n != 11 {
				t.Errorf("stream brought %d of 11 events", n)
			}
		})
		if a := enqueue(c, 0, "async", "0-0", "&ms="+strconv.Itoa(int(work.Milliseconds()))); a.Outcome != history.OK {
			t.Errorf("async: %+v", a)
		}
		status, body, err := c.Get(0, "/function/short/")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Errorf("short call: %v", err)
		}
		c.Eventually(20*time.Second, "the short one sleeps", asleep(c, "short"))
		t.Logf("short slept %v after the start of the test", time.Since(began).Round(100*time.Millisecond))
		wg.Wait()
		for _, f := range []string{"slow", "stream", "async"} {
			c.Eventually(20*time.Second, f+" sleeps after its work", asleep(c, f))
			if cut := rec.cut(t, f); len(cut) > 0 {
				t.Errorf("%s was stopped with a call in it: %+v", f, cut)
			}
		}
	}}
}

// TestChangeOfLeadersStopsNothingBusyAndPutsNothingToSleep: scaler and queue leaders die, the first in the middle of a drain.
func TestChangeOfLeadersStopsNothingBusyAndPutsNothingToSleep(t *testing.T) {
	inCompany(t)
	const idle, busy = 17 * time.Second, "ms=15000"
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Scalers: 2, Functions: rec.yaml(
		// Later than the last change of leaders, about 10 s after the call, and the 5 s in which a new one shrinks nothing.
		fn{name: "awake", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "17"}},
		fn{name: "busy", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "1"}},
		fn{name: "drained", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "300"}},
	)})
	setScale(t, c, "drained", 2)
	replicas := func(n int) func() error {
		return func() error {
			if got := c.Replicas("drained"); got != n {
				return fmt.Errorf("%d", got)
			}
			return nil
		}
	}
	c.Eventually(20*time.Second, "two replicas", replicas(2))
	status, body, err := c.Get(0, "/function/awake/")
	if err := wantStatus(status, 200, body, err); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var wg sync.WaitGroup
	for call := range 9 { // both replicas of the drained one are busy for longer than the takeover takes
		function := "drained"
		if call == 8 {
			function = "busy"
		}
		wg.Go(func() {
			status, body, err := c.Get(0, "/function/"+function+"/?"+busy)
			if err := wantStatus(status, 200, body, err); err != nil {
				t.Errorf("slow call of %s: %v", function, err)
			}
		})
	}
	c.Eventually(10*time.Second, "calls run", func() error {
		if n := len(rec.started(t, "drained")) + len(rec.started(t, "busy")); n < 9 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	setScale(t, c, "drained", 1) // a drain that must wait for the calls
	for range 2 {
		c.Kill(c.ScalerLeader(0))
		pace(2 * time.Second)
		c.Kill(c.QueueLeader(0))
		pace(2 * time.Second)
	}
	if took := time.Since(began); took > idle-5*time.Second {
		t.Logf("the leaders changed until %v after the call: little is left of the timeout", took)
	}
	for time.Since(began) < idle-2*time.Second {
		if c.Replicas("awake") == 0 {
			t.Fatalf("asleep %v after its call, timeout %v", time.Since(began), idle)
		}
		pace(50 * time.Millisecond)
	}
	wg.Wait()
	for _, f := range []string{"busy", "drained"} {
		if cut := rec.cut(t, f); len(cut) > 0 {
			t.Errorf("%s was stopped with calls in it: %+v", f, cut)
		}
	}
	status, body, err = c.Get(0, "/function/drained/")
	if err := wantStatus(status, 200, body, err); err != nil {
		t.Errorf("a call after the takeovers: %v", err)
	}
	c.Eventually(60*time.Second, "one replica at last", replicas(1))
	c.Eventually(60*time.Second, "it sleeps after its timeout", asleep(c, "awake"))
	if took := time.Since(began); took < idle {
		t.Errorf("asleep after %v, timeout %v", took, idle)
	}
}

func setScale(t *testing.T, c *cluster.Cluster, function string, n int) {
	t.Helper()
	c.Eventually(15*time.Second, fmt.Sprintf("PUT /scale %d", n), func() error {
		body, _ := json.Marshal(map[string]int{"Replicas": n, "ForSeconds": 120})
		status, answer, err := c.Do(0, http.MethodPut, "/scale/"+function, http.Header{"Content-Type": {"application/json"}}, body)
		return wantStatus(status, 200, answer, err)
	})
}

// steady sends requests to a function at a rate until stop is closed, and counts those that failed.
func steady(ctx context.Context, c *cluster.Cluster, function string, perSecond int, stop <-chan struct{}) (sent, failed int, first error) {
	return steadily(ctx, perSecond, stop, func() error {
		status, body, err := c.Get(0, "/function/"+function+"/?ms=5")
		return wantStatus(status, 200, body, err)
	})
}

// steadily calls so many times a second, whether or not earlier calls have ended, until stop.
func steadily(ctx context.Context, perSecond int, stop <-chan struct{}, call func() error) (sent, failed int, first error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			wg.Wait()
			return sent, failed, first
		case <-ctx.Done():
			wg.Wait()
			return sent, failed, ctx.Err()
		case <-tick.C:
		}
		sent++
		wg.Go(func() {
			if err := call(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed++
				if first == nil {
					first = err
				}
			}
		})
	}
}

// scalingUpAndDownLosesNothing: 100 calls a second while it is scaled from 3 to 1 and back, twenty times.
func scalingUpAndDownLosesNothing() scenario {
	return scenario{[]fn{
		fn{name: "scaled", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "300"}},
	}, scaleUpAndDown}
}

func scaleUpAndDown(t *testing.T, c *cluster.Cluster, rec records) {
	setScale(t, c, "scaled", 3)
	ready := func(n int) func() error {
		return func() error {
			status, body, err := c.Get(0, "/status-function/scaled")
			if err := wantStatus(status, 200, body, err); err != nil {
				return err
			}
			var s struct{ NumberReady, NumberRequested int }
			if err := json.Unmarshal(body, &s); err != nil || s.NumberReady != n || s.NumberRequested != n {
				return fmt.Errorf("status %s, want %d", body, n)
			}
			if got := c.Replicas("scaled"); got != n {
				return fmt.Errorf("%d processes, want %d", got, n)
			}
			return nil
		}
	}
	c.Eventually(30*time.Second, "three replicas", ready(3))
	stop := make(chan struct{})
	type result struct {
		sent, failed int
		first        error
	}
	done := make(chan result, 1)
	go func() {
		s, f, err := steady(t.Context(), c, "scaled", 100, stop)
		done <- result{s, f, err}
	}()
	began := time.Now()
	for round := range 20 {
		setScale(t, c, "scaled", 1)
		c.Eventually(30*time.Second, fmt.Sprintf("one replica, round %d", round), ready(1))
		setScale(t, c, "scaled", 3)
		c.Eventually(30*time.Second, fmt.Sprintf("three replicas, round %d", round), ready(3))
	}
	close(stop)
	r := <-done
	if r.failed > 0 {
		t.Errorf("%d of %d calls failed, the first: %v", r.failed, r.sent, r.first)
	}
	if cut := rec.cut(t, "scaled"); len(cut) > 0 {
		t.Errorf("%d calls were cut: %+v", len(cut), cut[0])
	}
	t.Logf("%d calls, 20 rounds in %v", r.sent, time.Since(began).Round(time.Second))
}

// TestBurstsAroundTheDrainLoseNothing: bursts of 1 s at 100 requests/s, separated by the sleep timeout ± 300 ms, so that
// requests land before, in and after the drain. 100 rounds, spread over ten functions that run side by side.
func TestBurstsAroundTheDrainLoseNothing(t *testing.T) {
	const functions, rounds, rate = 10, 10, 100
	rec := newRecords(t)
	var list []fn
	for i := range functions {
		list = append(list, fn{name: fmt.Sprintf("burst%d", i), annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "1"}})
	}
	c := cluster.Start(t, cluster.Options{Queues: 1, Functions: rec.yaml(list...)})
	random := seed(t)
	gaps := make([][]time.Duration, functions)
	for i := range gaps {
		for range rounds {
			gaps[i] = append(gaps[i], time.Second+time.Duration(random.IntN(601)-300)*time.Millisecond)
		}
	}
	var sent, failed atomic.Int64
	var wg sync.WaitGroup
	for i := range functions {
		wg.Go(func() {
			pace(time.Duration(i) * 200 * time.Millisecond) // half of them burst while the others are quiet
			for round := range rounds {
				stop := make(chan struct{})
				timer := time.AfterFunc(time.Second, func() { close(stop) })
				s, f, err := steady(t.Context(), c, list[i].name, rate, stop)
				timer.Stop()
				sent.Add(int64(s))
				if failed.Add(int64(f)); f > 0 {
					t.Errorf("%s round %d: %d of %d failed, the first: %v", list[i].name, round, f, s, err)
				}
				pace(gaps[i][round])
			}
		})
	}
	wg.Wait()
	lives := 0
	for _, f := range list {
		c.Eventually(20*time.Second, f.name+" sleeps", asleep(c, f.name))
		if cut := rec.cut(t, f.name); len(cut) > 0 {
			t.Errorf("%s: a replica was stopped with %d calls in it: %+v", f.name, len(cut), cut[0])
		}
		for _, l := range rec.read(t, f.name) {
			if l.Phase == "listen" {
				lives++
			}
		}
	}
	t.Logf("%d calls, %d failed, %d lives of %d functions", sent.Load(), failed.Load(), lives, functions)
	if lives <= functions {
		t.Errorf("no function ever slept between the bursts: the test has tested nothing")
	}
}

// killedReplicaIsReplacedAndOthersAnswer: a killed replica comes back under bin/local, and the other answers meanwhile.
func killedReplicaIsReplacedAndOthersAnswer() scenario {
	return scenario{[]fn{
		fn{name: "work", annotations: map[string]string{"ReplicasMin": "2"}},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		c.Eventually(20*time.Second, "both ready", func() error {
			status, body, err := c.Get(0, "/status-function/work")
			var s struct{ NumberReady int }
			if err := wantStatus(status, 200, body, err); err != nil || json.Unmarshal(body, &s) != nil || s.NumberReady != 2 {
				return fmt.Errorf("%s %w", body, err)
			}
			return nil
		})
		for range 2 { // the back-off of a crashed replica doubles: more rounds only wait for it
			c.Kill(c.Names("fn-work-")[0])
			for range 20 {
				res, err := cluster.Client.Get(c.URL(0) + "/function/work/")
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if res.StatusCode != 200 {
					t.Errorf("with one of two replicas killed between requests: %d", res.StatusCode)
				}
			}
			c.Eventually(20*time.Second, "two again", func() error {
				if n := c.Replicas("work"); n != 2 {
					return fmt.Errorf("%d", n)
				}
				return nil
			})
		}
	}}
}
