package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
)

// enqueue one async call through an edge and tell the truth about the answer.
func enqueue(c *cluster.Cluster, edge int, function, key, query string) history.Attempt {
	a := history.Attempt{Key: key}
	status, header, body, err := c.Send(edge, http.MethodPost, "/async-function/"+function+"/work?key="+key+query, nil, []byte(key))
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		a.Outcome = history.None // there is no edge: nothing was sent
	case err != nil:
		a.Outcome = history.Unknown // the edge died under the request: the client cannot know
	case status == http.StatusAccepted:
		a.Outcome, a.ID = history.OK, header.Get("SlimFaas-Element-Id")
	default:
		var p problem
		if json.Unmarshal(body, &p) == nil && p.Outcome != "" {
			a.Outcome, a.ID = history.Outcome(p.Outcome), header.Get("SlimFaas-Element-Id")
		} else {
			a.Outcome = history.None
		}
	}
	return a
}

func keyOf(l line) string {
	_, query, _ := strings.Cut(l.URI, "?")
	for _, part := range strings.Split(query, "&") {
		if k, v, _ := strings.Cut(part, "="); k == "key" {
			return v
		}
	}
	return ""
}

// deliveries by key, as the function saw them.
func deliveries(t testing.TB, rec records, function string) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for _, l := range rec.started(t, function) {
		seen[keyOf(l)]++
	}
	return seen
}

// workedOff waits until nothing is queued, running or waiting and all nodes agree about everything at one index.
func workedOff(c *cluster.Cluster, function string, limit time.Duration) history.Counts {
	var counts history.Counts
	c.Eventually(limit, "the queue is empty and conserves", func() error {
		nodes, err := c.Counters()
		if err != nil {
			return err
		}
		if counts = nodes[0].Functions[function]; counts.Unfinished() > 0 {
			return fmt.Errorf("%+v", counts)
		}
		return history.Agree(nodes)
	})
	return counts
}

// TestAcceptedCallsSurviveKillsOfEverything: 5,000 calls from 32 clients while the queue leader, an edge and the scaler leader
// are killed in turn, three rounds.
func TestAcceptedCallsSurviveKillsOfEverything(t *testing.T) {
	const calls, clients = 5000, 32
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Edges: 2, Scalers: 2, Functions: rec.yaml(fn{name: "work", annotations: map[string]string{
		"NumberParallelRequest": "64", "NumberParallelRequestPerPod": "64", "TimeoutSecondBeforeSetReplicasMin": "600",
	}})})
	var ledger history.Ledger
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for client := range clients {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= calls {
					return
				}
				// A client that is refused asks again later under a new key, as people's clients do.
				for try := 0; ; try++ {
					a := enqueue(c, (client+try)%2, "work", fmt.Sprintf("%d-%d", n, try), "&ms=5")
					ledger.Add(a)
					if a.Outcome != history.None || try == 50 {
						break
					}
					pace(100 * time.Millisecond) // the client's own pace, not a wait for the system
				}
				// Paced so that the kills fall into the load: 5,000 calls over about 14 s.
				if ahead := time.Duration(n)*2800*time.Microsecond - time.Since(began); ahead > 0 {
					pace(ahead)
				}
			}
		})
	}
	for round := range 3 {
		for _, kill := range []func() string{
			func() string { return c.QueueLeader(1) },
			func() string { return "edge-0" },
			func() string { return c.ScalerLeader(1) },
		} {
			name := kill()
			c.Kill(name)
			t.Logf("round %d: killed %s at %v", round, name, time.Since(began).Round(time.Millisecond))
			c.Eventually(15*time.Second, name+" is back", func() error {
				if c.PID(name) == 0 {
					return errNotYet
				}
				return nil
			})
			pace(700 * time.Millisecond) // load between the kills
		}
	}
	wg.Wait()
	checkLedger(t, c, rec, "work", &ledger)
}

// checkLedger waits until the queue has worked everything off and holds the ledger against what the function saw.
func checkLedger(t *testing.T, c *cluster.Cluster, rec records, function string, ledger *history.Ledger) history.Report {
	t.Helper()
	workedOff(c, function, 120*time.Second)
	report := history.Check(ledger.Attempts(), deliveries(t, rec, function))
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	t.Log(report)
	return report
}

func TestDeathOfAnEdgeRedeliversWithinEightSeconds(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Edges: 2, NoRestart: true, Functions: rec.yaml(fn{name: "work", annotations: map[string]string{
		"NumberParallelRequest": "8", "NumberParallelRequestPerPod": "8", "ReplicasMin": "1",
	}})})
	c.Eventually(15*time.Second, "both edges deliver", func() error { // ready does not wait for an edge's session
		info, err := c.Info(1)
		if err == nil && len(info.Edges) < 2 {
			err = fmt.Errorf("sessions of %v", info.Edges)
		}
		return err
	})
	const calls = 8
	for n := range calls { // through the edge that will die: where a call waits for nothing, the edge that takes it delivers it
		if a := enqueue(c, 0, "work", fmt.Sprintf("%d-0", n), "&ms=20000"); a.Outcome != history.OK {
			t.Fatalf("call %d: %+v", n, a)
		}
	}
	c.Eventually(15*time.Second, "all calls run", func() error {
		if got := len(rec.started(t, "work")); got < calls {
			return fmt.Errorf("%d of %d", got, calls)
		}
		return nil
	})
	killed := time.Now()
	c.Kill("edge-0")
	c.Eventually(20*time.Second, "a second delivery starts", func() error {
		if len(rec.started(t, "work")) <= calls {
			return errNotYet
		}
		return nil
	})
	first := rec.started(t, "work")[calls]
	took := time.UnixMilli(first.AtMs).Sub(killed)
	if took > 8*time.Second {
		t.Errorf("redelivery started %v after the death of the edge, want ≤ 8 s", took)
	}
	if first.Header.Get("Slimfaas-Try-Number") != "2" {
		t.Errorf("the second delivery carries try number %q, want 2", first.Header.Get("Slimfaas-Try-Number"))
	}
	t.Logf("redelivery %v after the death of the edge", took.Round(time.Millisecond))
	c.Kill("fn-work-0") // the rest of its 20 s is of no interest, and the edge that is left would wait for it at its end
}

func queuedCallsAloneWakeAndKeepAwake() scenario {
	return scenario{[]fn{
		fn{name: "backlog", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "1", "NumberParallelRequest": "1"}},
		// 12 s: a fresh leader shrinks nothing for 5 s, and the function must be asleep when the retry is due.
		fn{name: "retry", annotations: map[string]string{
			"TimeoutSecondBeforeSetReplicasMin": "1",
			"Configuration":                     `{"DefaultAsync":{"TimeoutRetries":[12],"HttpStatusRetries":[503]}}`,
		}},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		for n := range 8 { // one at a time, 500 ms each: four times the sleep timeout
			if a := enqueue(c, 0, "backlog", fmt.Sprintf("%d-0", n), "&ms=500"); a.Outcome != history.OK {
				t.Fatalf("%+v", a)
			}
		}
		if a := enqueue(c, 0, "retry", "0-0", "&status=503"); a.Outcome != history.OK {
			t.Fatalf("%+v", a)
		}
		c.Eventually(30*time.Second, "the backlog is worked off", func() error {
			if got := len(rec.started(t, "backlog")); got < 8 {
				return fmt.Errorf("%d of 8", got)
			}
			return nil
		})
		listens := 0
		for _, l := range rec.read(t, "backlog") {
			if l.Phase == "listen" {
				listens++
			}
		}
		if listens != 1 {
			t.Errorf("the backlog was served by %d lives of the function, want 1: it must stay awake until it is done", listens)
		}
		c.Eventually(30*time.Second, "the retry was made by a woken function", func() error {
			lines := rec.read(t, "retry")
			phases := ""
			for _, l := range lines {
				phases += l.Phase + " "
			}
			if want := "listen start end listen start end "; phases != want {
				return fmt.Errorf("saw %q, want %q", phases, want)
			}
			return nil
		})
		c.Eventually(20*time.Second, "the backlog's function sleeps again", asleep(c, "backlog"))
		c.Eventually(20*time.Second, "the retry's function sleeps again", asleep(c, "retry"))
	}}
}
