package integration

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
)

// pollInterval is how late asynchronous work may be without the bus: the scaler's poll of the queue.
const pollInterval = 2 * time.Second

// linked is a cluster whose edges and scalers reach the bus through BusLinks.
func linked(t *testing.T, functions string) (*cluster.Cluster, *cluster.BusLinks) {
	t.Helper()
	links := cluster.NewBusLinks(t, 3)
	c := cluster.New(t, cluster.Options{Edges: 2, Scalers: 2, Functions: functions, Prelude: map[string]string{
		"edge": links.Prelude("EDGE"), "scaler": links.Prelude("SCALER"),
	}})
	links.Attach(c)
	c.Run()
	return c, links
}

// TestChaosB1BusGone: without the bus warm calls go on, and asynchronous work for sleeping functions is late by a poll at most.
func TestChaosB1BusGone(t *testing.T) {
	inCompany(t)
	n := newNemesis(t)
	rec := newRecords(t)
	sleeper := map[string]string{"TimeoutSecondBeforeSetReplicasMin": "600"}
	rounds := n.runs(2, 20)
	functions := []fn{{name: "warm", annotations: map[string]string{"ReplicasMin": "1"}}}
	for i := range 2*rounds + 1 {
		functions = append(functions, fn{name: fmt.Sprintf("cold%d", i), annotations: sleeper})
	}
	c, links := linked(t, rec.yaml(functions...))
	readyReplicas(c, "warm", 1)

	// delivered is how long a call to a function that sleeps takes until the function has it.
	delivered := func(i int) time.Duration {
		name := fmt.Sprintf("cold%d", i)
		began := time.Now()
		a := enqueue(c, i%2, name, "0-0", "")
		if a.Outcome != history.OK {
			t.Fatalf("%s: %+v", name, a)
		}
		c.Eventually(20*time.Second, name+" has its call", func() error {
			if len(rec.started(t, name)) == 0 {
				return errNotYet
			}
			return nil
		})
		return time.Since(began)
	}
	var with, without []time.Duration
	for i := range rounds {
		with = append(with, delivered(i))
	}

	stop := make(chan struct{})
	var calls atomic.Int64
	var work sync.WaitGroup
	for edge := range 2 {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				status, body, err := c.Get(edge, "/function/warm/")
				if err := wantStatus(status, 200, body, err); err != nil {
					t.Errorf("a warm call without the bus: %v", err)
					return
				}
				calls.Add(1)
				pace(5 * time.Millisecond)
			}
		})
	}
	links.Cut()
	down := time.Now()
	first := delivered(2 * rounds) // tables are not polled before the silence of digests is noticed, after 3 s
	pace(time.Until(down.Add(3500 * time.Millisecond)))
	for i := range rounds {
		without = append(without, delivered(rounds+i))
		pace(n.between(100*time.Millisecond, time.Second)) // somewhere in the poll's period
	}
	if n.full { // longer than every session and every digest
		pace(time.Until(down.Add(5 * time.Minute * time.Duration(n.runs(100, 100)) / 100)))
	}
	links.Mend()
	pace(2 * time.Second)
	close(stop)
	work.Wait()
	t.Logf("%d warm calls in %v without the bus; from 202 to the function: with the bus %v, just cut %v, without %v",
		calls.Load(), time.Since(down).Round(time.Second), with, first, without)
	late := percentile(without, 100) - percentile(with, 50)
	if limit := pollInterval + time.Second; late > limit { // a second for the start of the function on a busy machine
		t.Errorf("without the bus work was late by %v, want ≤ %v", late, limit)
	}
	if limit := pollInterval + 4*time.Second; first-percentile(with, 50) > limit {
		t.Errorf("right after the cut work was late by %v, want ≤ %v", first, limit)
	}
	for i := range 2*rounds + 1 {
		workedOff(c, fmt.Sprintf("cold%d", i), 20*time.Second)
	}
}

// TestChaosB2HintsHarmed: with a third of the messages lost, a third doubled and a third of the rest reordered, the same comes about.
func TestChaosB2HintsHarmed(t *testing.T) {
	inCompany(t)
	n := newNemesis(t)
	rec := newRecords(t)
	c, links := linked(t, rec.yaml(
		fn{name: "work", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "2", "NumberParallelRequest": "16", "NumberParallelRequestPerPod": "16"}},
		fn{name: "cold", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "2"}},
	))
	links.Harm(cluster.Hints{Lose: 0.3, Double: 0.3, Reorder: 0.3})
	var ledger history.Ledger
	for round := range n.runs(1, 20) {
		for i := range 100 {
			ledger.Add(enqueue(c, i%2, "work", fmt.Sprintf("%d-%d", round, i), "&ms=5"))
		}
		status, body, err := c.Get(1, "/function/cold/")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Errorf("a cold call: %v", err)
		}
		c.Eventually(30*time.Second, "both sleep again", func() error {
			return errors.Join(asleep(c, "work")(), asleep(c, "cold")())
		})
	}
	report := checkLedger(t, c, rec, "work", &ledger)
	if report.Again > 0 {
		t.Errorf("%d deliveries were repeated, and nothing died", report.Again)
	}
	if cut := rec.cut(t, "work"); len(cut) > 0 {
		t.Errorf("%d calls were cut by a sleep", len(cut))
	}
	t.Logf("%d messages lost, %d doubled, %d reordered", links.Lost.Load(), links.Doubled.Load(), links.Reordered.Load())
	if links.Lost.Load() == 0 || links.Doubled.Load() == 0 || links.Reordered.Load() == 0 {
		t.Error("no message came to harm: the test tests nothing")
	}
}

// chaosB6Strangers: who has no key, another's name, no password or no idea is refused and written down.
func chaosB6Strangers(t *testing.T, c *cluster.Cluster) {
	ports := c.Ports()["queue-0"]
	password, err := os.ReadFile(filepath.Join(c.State, "secrets", "routes.password"))
	if err != nil {
		t.Fatal(err)
	}
	const ask = "SUB slimfaas.> 1\r\nSUB > 2\r\nPING\r\n"
	for name, s := range map[string]struct {
		port int
		say  string
	}{
		"no credentials":             {ports["bus"], `CONNECT {"verbose":false,"protocol":1}` + "\r\n" + ask},
		"wrong user":                 {ports["bus"], `CONNECT {"user":"edge","pass":"edge"}` + "\r\n" + ask},
		"routes' password as client": {ports["bus"], fmt.Sprintf(`CONNECT {"user":"routes","pass":%q}`, strings.TrimSpace(string(password))) + "\r\n" + ask},
		"nkey without a signature":   {ports["bus"], `CONNECT {"nkey":"UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4","sig":"AAAA"}` + "\r\n" + ask},
		"no CONNECT on the bus":      {ports["bus"], ask},
		"plain TCP on the routes":    {ports["routes"], "GET / HTTP/1.1\r\nHost: queue\r\n\r\n"},
		"route without a password":   {ports["routes"], forgedRoute("", "")},
		"route with a wrong one":     {ports["routes"], forgedRoute("routes", "guess")},
	} {
		refusedAt(t, name, s.port, s.say)
	}
	c.Eventually(5*time.Second, "the node has written it down", func() error {
		log := c.Log("queue-0")
		for _, want := range []string{"cid:", "rid:"} { // of a client, of a route
			if !slices.ContainsFunc(strings.Split(log, "\n"), func(l string) bool {
				return strings.Contains(l, want) && strings.Contains(strings.ToLower(l), "authentication error")
			}) {
				return fmt.Errorf("the log of queue-0 has no authentication error of a %q", want)
			}
		}
		return nil
	})
	healthy(c, 5*time.Second)
}

// forgedRoute introduces a server that does not exist and asks for everything in the words of routes.
func forgedRoute(user, password string) string {
	return fmt.Sprintf("CONNECT {\"echo\":true,\"verbose\":false,\"pedantic\":false,\"user\":%q,\"pass\":%q,\"tls_required\":false,\"name\":\"FORGED\",\"cluster\":\"slimfaas\",\"headers\":true,\"dynamic\":false}\r\n"+
		"INFO {\"server_id\":\"FORGED\",\"server_name\":\"queue-9\",\"version\":\"2.15.2\",\"proto\":1,\"host\":\"127.0.0.1\",\"port\":1,\"cluster\":\"slimfaas\",\"headers\":true,\"max_payload\":65536}\r\n"+
		"PING\r\nRS+ slimfaas slimfaas.table.digest\r\n", user, password)
}

// refusedAt says something to a port and wants to be shown the door within 5 s, without having been told anything but the
// server's greeting.
func refusedAt(t *testing.T, name string, port int, say string) {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(say)); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		word, _, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "PONG", "PING", "MSG", "RMSG", "RS+", "+OK":
			t.Errorf("%s was served: %s", name, lines.Text())
			return
		}
	}
	if err := lines.Err(); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("%s: the connection is still open after 5 s", name)
	}
}

// TestChaosQ19ConsumerDies: functions that die of a call, and edges that die while they hold calls. What was taken is delivered
// again, and a poison call is dead at its limit and no earlier.
func TestChaosQ19ConsumerDies(t *testing.T) {
	inCompany(t)
	n := newNemesis(t)
	rec := newRecords(t)
	policy := map[string]string{
		"ReplicasMin": "1", "NumberParallelRequest": "8", "NumberParallelRequestPerPod": "8",
		"Configuration": `{"DefaultAsync":{"TimeoutRetries":[1,1],"HttpTimeout":30}}`,
	}
	c := cluster.Start(t, cluster.Options{Edges: 2, Functions: rec.yaml(fn{name: "work", annotations: policy}, fn{name: "poison", annotations: policy})})
	readyReplicas(c, "work", 1)
	readyReplicas(c, "poison", 1)
	var ledger history.Ledger
	poisoned := n.runs(2, 50)
	var ids []string
	for i := range poisoned {
		a := enqueue(c, 1, "poison", fmt.Sprintf("%d-0", i), "&die=1&ms=20")
		if a.Outcome != history.OK {
			t.Fatalf("%+v", a)
		}
		ids = append(ids, a.ID)
	}
	deaths := n.runs(2, 50)
	for i := range deaths {
		for j := range 20 {
			ledger.Add(enqueue(c, 1, "work", fmt.Sprintf("%d-%d", i, j), "&ms=400"))
		}
		before := len(rec.started(t, "work"))
		c.Eventually(45*time.Second, "calls are under way", func() error { // what has crashed often is started again after 30 s
			if len(rec.started(t, "work")) < before+1 && before < 20*(i+1) {
				return errNotYet
			}
			return nil
		})
		victim := "edge-0"
		if n.IntN(2) == 0 {
			victim = "fn-work-0"
		}
		if pid := c.PID(victim); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may be between two lives
		}
	}
	report := checkLedger(t, c, rec, "work", &ledger)
	if most := deaths * 8; report.Again > most {
		t.Errorf("%d deliveries were repeated after %d deaths, each with at most 8 under way", report.Again, deaths)
	}
	counts := workedOff(c, "poison", time.Minute+time.Duration(poisoned)*30*time.Second) // a crash a call, each followed by up to 30 s
	if int(counts.Dead) != poisoned {
		t.Errorf("of %d poison calls %+v", poisoned, counts)
	}
	for i, id := range ids {
		status, body, err := c.Get(1, "/async-calls/"+id)
		if err := wantStatus(status, 200, body, err); err != nil || !strings.Contains(string(body), `"State":"Dead"`) || !strings.Contains(string(body), `"Tries":3,"MaxTries":3`) {
			t.Errorf("poison call %d: %v %s", i, err, body)
		}
	}
}
