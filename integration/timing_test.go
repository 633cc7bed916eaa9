//go:build timing

package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestTimingReady: built, the stack says ready in under 6 s.
func TestTimingReady(t *testing.T) {
	rec := newRecords(t)
	var took []time.Duration
	for range 3 {
		c := cluster.Start(t, cluster.Options{Functions: rec.yaml(fn{name: "hello"})})
		took = append(took, c.ReadyAfter)
		c.Stop(syscall.SIGTERM)
	}
	slices.Sort(took)
	t.Logf("ready after %v", took)
	if took[len(took)-1] > 6*time.Second {
		t.Errorf("ready after %v, want under 6 s each", took)
	}
}

// TestTimingColdStart: what a cold call costs beyond the start of the function itself:
// (time to first byte) − (exec → listening, by the kernel's start time), 20 functions, right after the scaler leader was
// killed, and 5 of them again after a sleep.
func TestTimingColdStart(t *testing.T) {
	const functions = 20
	rec := newRecords(t)
	var list []fn
	for i := range functions {
		list = append(list, fn{name: fmt.Sprintf("cold%02d", i), annotations: map[string]string{"TimeoutSecondBeforeSetReplicasMin": "3"}})
	}
	c := cluster.Start(t, cluster.Options{Scalers: 2, Functions: rec.yaml(list...)})
	leader := c.ScalerLeader(0)
	c.Kill(leader)
	killed := time.Now()
	var overheads []time.Duration
	wake := func(name string) {
		t.Helper()
		if n := c.Replicas(name); n != 0 {
			t.Fatalf("%s has %d processes before its wake", name, n)
		}
		lives := len(rec.read(t, name))
		began := time.Now()
		res, err := cluster.Client.Get(c.URL(0) + "/function/" + name + "/")
		first := time.Since(began)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("cold call of %s: %v %v", name, res, err)
		}
		_ = res.Body.Close()
		lines := rec.read(t, name)[lives:]
		if len(lines) == 0 || lines[0].Phase != "listen" {
			t.Fatalf("%s was not started by the call: %+v", name, lines)
		}
		started, err := cluster.StartedAt(lines[0].PID)
		if err != nil {
			t.Fatal(err)
		}
		own := time.UnixMilli(lines[0].AtMs).Sub(started)
		overhead := first - own
		overheads = append(overheads, overhead)
		t.Logf("%s: first byte %v, of it the function's own start %v, ours %v; %s", name, first.Round(time.Millisecond), own.Round(time.Millisecond), overhead.Round(time.Millisecond), res.Header.Get("Server-Timing"))
	}
	for _, f := range list {
		wake(f.name)
	}
	t.Logf("20 wakes within %v of the death of %s", time.Since(killed).Round(time.Millisecond), leader)
	for _, f := range list[:5] {
		c.Eventually(60*time.Second, f.name+" sleeps", asleep(c, f.name))
		wake(f.name)
	}
	slices.Sort(overheads)
	median, worst := overheads[len(overheads)/2], overheads[len(overheads)-1]
	t.Logf("figure cold_overhead median=%v max=%v n=%d", median.Round(time.Millisecond), worst.Round(time.Millisecond), len(overheads))
	if median >= 60*time.Millisecond || worst >= 250*time.Millisecond {
		t.Errorf("cold overhead median %v (want < 60 ms), max %v (want < 250 ms)", median, worst)
	}
}

// TestTimingFootprint prints idle memory of each program and the sizes of the binaries.
func TestTimingFootprint(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Functions: rec.yaml(fn{name: "hello"})})
	pace(5 * time.Second) // idle
	for _, name := range []string{"edge-0", "scaler-0", "queue-0", "queue-1", "queue-2"} {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID(name)))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, l := range strings.Split(string(raw), "\n") {
			if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "RssAnon") || strings.HasPrefix(l, "Threads") {
				out = append(out, strings.Join(strings.Fields(l), " "))
			}
		}
		t.Logf("figure idle %s %s", name, strings.Join(out, ", "))
	}
	for _, program := range []string{"edge", "queue", "scaler", "local", "demo-function"} {
		if info, err := os.Stat(filepath.Join(cluster.Bin(), program)); err == nil {
			t.Logf("figure size %s %.1f MB", program, float64(info.Size())/1e6)
		}
	}
}
