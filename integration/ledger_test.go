package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// attempt is one line of the ledger: what a client asked and what it was told.
type attempt struct {
	key     string // travels in the query; the recorder writes it down
	id      string // SlimFaas-Element-Id of a 202, or of an unknown outcome
	outcome string // ok, none, unknown
}

// enqueue one async call through an edge and tell the truth about the answer.
func enqueue(c *cluster.Cluster, edge int, function, key, query string) attempt {
	a := attempt{key: key}
	status, header, body, err := c.Send(edge, http.MethodPost, "/async-function/"+function+"/work?key="+key+query, nil, []byte(key))
	switch {
	case err != nil:
		a.outcome = "unknown" // the edge died under the request: the client cannot know
	case status == http.StatusAccepted:
		a.outcome, a.id = "ok", header.Get("SlimFaas-Element-Id")
	default:
		var p problem
		if json.Unmarshal(body, &p) == nil && p.Outcome != "" {
			a.outcome, a.id = p.Outcome, header.Get("SlimFaas-Element-Id")
		} else {
			a.outcome = "none"
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

// conservation of one function as one queue node exports it.
type conservation struct {
	accepted, redriven, succeeded, dead, cancelled, queued, running, waiting float64
	applied                                                                  float64
}

func (v conservation) holds() bool {
	return v.accepted+v.redriven == v.succeeded+v.dead+v.cancelled+v.queued+v.running+v.waiting
}

func readConservation(t testing.TB, c *cluster.Cluster, node, function string) conservation {
	t.Helper()
	res, err := cluster.Client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", c.Ports()[node]["admin"]))
	if err != nil {
		t.Fatalf("metrics of %s: %v", node, err)
	}
	defer res.Body.Close()
	var text strings.Builder
	buf := make([]byte, 64<<10)
	for {
		n, err := res.Body.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			break
		}
	}
	value := func(name string) float64 {
		for _, l := range strings.Split(text.String(), "\n") {
			head, v, ok := strings.Cut(l, "} ")
			if ok && strings.HasPrefix(head, name+"{") && strings.Contains(head, `function="`+function+`"`) {
				f, _ := strconv.ParseFloat(v, 64)
				return f
			}
			if rest, ok := strings.CutPrefix(l, name+" "); ok {
				f, _ := strconv.ParseFloat(rest, 64)
				return f
			}
		}
		return 0
	}
	return conservation{
		accepted: value("slimfaas_async_accepted_total"), redriven: value("slimfaas_async_redriven_total"),
		succeeded: value("slimfaas_async_succeeded_total"), dead: value("slimfaas_async_dead_total"), cancelled: value("slimfaas_async_cancelled_total"),
		queued: value("slimfaas_async_queued"), running: value("slimfaas_async_running"), waiting: value("slimfaas_async_waiting"),
		applied: value("slimfaas_queue_applied_index"),
	}
}

// TestAcceptedCallsSurviveKillsOfEverything: 5,000 calls from 32 clients while the queue leader, an edge and the scaler leader
// are killed in turn, three rounds.
func TestAcceptedCallsSurviveKillsOfEverything(t *testing.T) {
	const calls, clients = 5000, 32
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Edges: 2, Scalers: 2, Functions: rec.yaml(fn{name: "work", annotations: map[string]string{
		"NumberParallelRequest": "64", "NumberParallelRequestPerPod": "64", "TimeoutSecondBeforeSetReplicasMin": "600",
	}})})
	ledger := make([]attempt, calls)
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
					ledger[n] = a
					if a.outcome != "none" || try == 50 {
						break
					}
					pace(100 * time.Millisecond) // the client's own pace, not a wait for the system
				}
				// Paced so that the kills fall into the load: 5,000 calls over about 25 s.
				if ahead := time.Duration(n)*5*time.Millisecond - time.Since(began); ahead > 0 {
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
			pace(1500 * time.Millisecond) // load between the kills
		}
	}
	wg.Wait()
	checkLedger(t, c, rec, "work", ledger)
}

// checkLedger waits until the queue has worked everything off and holds the ledger against what the function saw.
func checkLedger(t *testing.T, c *cluster.Cluster, rec records, function string, ledger []attempt) {
	t.Helper()
	c.Eventually(120*time.Second, "the queue is empty and conserves", func() error {
		v := readConservation(t, c, c.QueueLeader(1), function)
		if v.queued+v.running+v.waiting > 0 || !v.holds() {
			return fmt.Errorf("%+v", v)
		}
		return nil
	})
	seen := map[string]int{}
	for _, l := range rec.started(t, function) {
		seen[keyOf(l)]++
	}
	var ok, none, unknown, lost, untrue, repeated int
	attempted := map[string]bool{}
	for _, a := range ledger {
		attempted[a.key] = true
		switch a.outcome {
		case "ok":
			ok++
			if seen[a.key] == 0 {
				lost++
				t.Errorf("call %s (id %s) was answered 202 and never delivered", a.key, a.id)
			}
		case "none":
			none++
			if seen[a.key] > 0 {
				untrue++
				t.Errorf("call %s was answered `outcome: none` and delivered", a.key)
			}
		case "unknown":
			unknown++
		}
	}
	for key, n := range seen {
		index, _, _ := strings.Cut(key, "-")
		if i, err := strconv.Atoi(index); err != nil || i < 0 || i >= len(ledger) {
			t.Errorf("a delivery of %q belongs to no request", key)
		}
		repeated += n - 1
	}
	for _, node := range c.Names("queue-") {
		if v := readConservation(t, c, node, function); !v.holds() {
			t.Errorf("conservation does not hold on %s: %+v", node, v)
		}
	}
	t.Logf("ledger: %d ok, %d refused, %d unknown; lost %d, untrue %d, delivered again %d", ok, none, unknown, lost, untrue, repeated)
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
	for n := range calls {
		if a := enqueue(c, 1, "work", fmt.Sprintf("%d-0", n), "&ms=20000"); a.outcome != "ok" {
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
}

func TestQueuedCallsAloneWakeAndKeepAwake(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Functions: rec.yaml(
		fn{name: "backlog", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "1", "NumberParallelRequest": "1"}},
		// 12 s: a fresh leader shrinks nothing for 5 s, and the function must be asleep when the retry is due.
		fn{name: "retry", annotations: map[string]string{
			"TimeoutSecondBeforeSetReplicasMin": "1",
			"Configuration":                     `{"DefaultAsync":{"TimeoutRetries":[12],"HttpStatusRetries":[503]}}`,
		}},
	)})
	for n := range 8 { // one at a time, 500 ms each: four times the sleep timeout
		if a := enqueue(c, 0, "backlog", fmt.Sprintf("%d-0", n), "&ms=500"); a.outcome != "ok" {
			t.Fatalf("%+v", a)
		}
	}
	if a := enqueue(c, 0, "retry", "0-0", "&status=503"); a.outcome != "ok" {
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
}

func TestQueueWithoutMajorityIsToldTruthfully(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{NoRestart: true, Functions: rec.yaml(fn{name: "work"})})
	if a := enqueue(c, 0, "work", "0-0", ""); a.outcome != "ok" {
		t.Fatalf("with all nodes: %+v", a)
	}
	leader := c.QueueLeader(0)
	for _, name := range []string{"queue-0", "queue-1", "queue-2"} {
		if name != leader {
			c.Signal(name, syscall.SIGSTOP)
			defer c.Signal(name, syscall.SIGCONT)
		}
	}
	// The first call may be handed over before the leader notices: unknown, in time. Later ones are refused at once.
	began := time.Now()
	first := enqueue(c, 0, "work", "1-0", "")
	if took := time.Since(began); took > 6*time.Second || first.outcome == "ok" {
		t.Errorf("without a majority the call was answered %+v after %v", first, took)
	}
	c.Eventually(15*time.Second, "calls are refused with outcome none", func() error {
		if a := enqueue(c, 0, "work", "2-0", ""); a.outcome != "none" {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
}
