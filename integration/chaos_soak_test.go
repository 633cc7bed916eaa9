package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// strain is what a process holds at one moment.
type strain struct{ goroutines, files, mib float64 }

func strainOf(t *testing.T, c *cluster.Cluster, name string) (s strain) {
	t.Helper()
	res, err := cluster.Client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", c.Ports()[name]["admin"]))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			s.goroutines, _ = strconv.ParseFloat(value, 64)
		}
	}
	if s.goroutines == 0 {
		t.Fatalf("%s tells no go_goroutines", name)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID(name)))
	if err != nil {
		t.Fatal(err)
	}
	s.files, s.mib = float64(len(files)), resident(t, c.PID(name))
	return s
}

// middle of each of them.
func middle(all []strain) strain {
	of := func(what func(strain) float64) float64 {
		values := make([]float64, 0, len(all))
		for _, s := range all {
			values = append(values, what(s))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return strain{
		of(func(s strain) float64 { return s.goroutines }), of(func(s strain) float64 { return s.files }), of(func(s strain) float64 { return s.mib }),
	}
}

// TestChaosSoak: ten minutes of everything at an even pace, with functions that fall asleep and are woken; what the processes hold in
// the last minutes is what they held in the second one. Small runs have nothing to see.
func TestChaosSoak(t *testing.T) {
	n := newNemesis(t)
	if !n.full {
		t.Skip("ten minutes long: make chaos RUN='^TestChaosSoak$'")
	}
	minutes := n.runs(0, 10)
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{
		Edges: 2, Scalers: 2, Env: []string{"QUEUE_HISTORY_COUNT=2000"},
		Functions: rec.yaml(
			fn{name: "busy", annotations: map[string]string{"ReplicasMin": "2", "SubscribeEvents": "soaked", "NumberParallelRequest": "20"}},
			fn{name: "sleepy", annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "3"}},
		),
	})
	readyReplicas(c, "busy", 2)
	var load sync.WaitGroup
	stop := make(chan struct{})
	calls := map[string]int{}
	var mu sync.Mutex // of calls
	every := func(period time.Duration, method, path string, want int) {
		load.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(period):
				}
				status, body, err := c.Do(i%2, method, path, nil, bytes.Repeat([]byte("x"), 200))
				if err != nil || status != want {
					t.Errorf("%s %s: %d %s %v", method, path, status, body, err)
				}
				mu.Lock()
				calls[path]++
				mu.Unlock()
			}
		})
	}
	for range 4 {
		every(20*time.Millisecond, http.MethodPost, "/function/busy/", http.StatusOK)
		every(20*time.Millisecond, http.MethodPost, "/async-function/busy/", http.StatusAccepted)
	}
	every(200*time.Millisecond, http.MethodPost, "/publish-event/soaked/", http.StatusNoContent)
	every(8*time.Second, http.MethodGet, "/function/sleepy/", http.StatusOK)
	names := append(c.Queues(), "edge-0", "edge-1", "scaler-0", "scaler-1")
	pids := map[string]int{}
	for _, name := range names {
		pids[name] = c.PID(name)
	}
	minute := func() map[string]strain {
		seen := map[string][]strain{}
		for range 12 {
			pace(5 * time.Second)
			for _, name := range names {
				seen[name] = append(seen[name], strainOf(t, c, name))
			}
		}
		middles := map[string]strain{}
		for name, all := range seen {
			middles[name] = middle(all)
		}
		return middles
	}
	minute() // connections and pools come about
	begin := minute()
	var end map[string]strain
	for range max(1, minutes-2) {
		end = minute()
	}
	close(stop)
	load.Wait()
	for _, name := range names {
		b, e := begin[name], end[name]
		t.Logf("figure soak %s: goroutines %.0f → %.0f, files %.0f → %.0f, resident %.0f → %.0f MiB", name, b.goroutines, e.goroutines, b.files, e.files, b.mib, e.mib)
		if e.goroutines > b.goroutines*1.1+10 || e.files > b.files*1.1+10 {
			t.Errorf("%s holds more than %d minutes before", name, minutes-2)
		}
		if pids[name] != c.PID(name) {
			t.Errorf("%s is another process than at the beginning", name)
		}
	}
	t.Logf("calls made: %v", calls)
	for _, counters := range c.Agreed(30 * time.Second) {
		for function, f := range counters.Functions {
			if !f.Holds() {
				t.Errorf("%s: %s counts %+v", counters.Node, function, f)
			}
		}
	}
}
