//go:build bench

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

const (
	// backlog calls wait for a function that sleeps; backlogCallers put them there.
	backlog, backlogCallers = 1_000_000, 512
	// asked of the waiting calls by id, one after the other.
	asked = 1000
)

// TestBenchBacklog: what a million waiting calls of 1 KiB cost: memory, accepts, status by id, restarts; then all are delivered.
func TestBenchBacklog(t *testing.T) {
	o := startOurs(t, "QUEUE_MAX_UNFINISHED=2000000")
	var mu sync.Mutex
	var ids []uuid.UUID // guarded by mu
	total := 0          // guarded by mu
	accepted := func(id uuid.UUID) {
		mu.Lock()
		defer mu.Unlock()
		if total++; total%(backlog/asked) == 0 {
			ids = append(ids, id)
		}
	}
	empty := o.submitTo(t, "later", backlogCallers, warmUp, *length, accepted)
	began := time.Now()
	for total < backlog {
		o.submitTo(t, "later", backlogCallers, 0, *length, accepted)
	}
	t.Logf("%d calls wait after %.0f s more", total, time.Since(began).Seconds())
	full := o.submitTo(t, "later", backlogCallers, warmUp, *length, accepted)
	memory := 0.0
	for _, name := range o.Queues() {
		mib := ownMemory(t, o.PID(name))
		t.Logf("%s (leader: %t) has %.0f MiB", name, name == o.QueueLeader(0), mib)
		memory = max(memory, mib)
	}
	took := make([]float64, 0, len(ids))
	for _, id := range ids {
		asked := time.Now()
		status, body, err := o.Get(0, "/async-calls/"+id.String())
		if err != nil || status != http.StatusOK {
			t.Fatalf("status of %s: %d %s %v", id, status, body, err)
		}
		took = append(took, millis(time.Since(asked)))
	}
	slices.Sort(took)

	followers := o.Queues()
	followers = slices.DeleteFunc(followers, func(name string) bool { return name == o.QueueLeader(0) })
	one := o.restarted(t, followers[0])
	all := o.restarted(t, o.Queues()...)

	if err := os.WriteFile(o.gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	o.Eventually(20*time.Minute, "all are delivered", func() error {
		counters, err := o.Counters()
		if err != nil {
			return err
		}
		for _, c := range counters {
			if left := c.Functions["later"].Unfinished(); left > 0 {
				return fmt.Errorf("%s has %.0f left", c.Node, left)
			}
		}
		return nil
	})
	drained := time.Since(began)
	for _, c := range o.Agreed(30 * time.Second) {
		f := c.Functions["later"]
		if !f.Holds() || f.Succeeded < float64(total) || f.Succeeded != f.Accepted {
			t.Errorf("%s, told of %d accepts, counts %+v", c.Node, total, f)
		}
	}
	fmt.Printf("\nA backlog of %d calls of 1 KiB (delivered in %.0f s in the end)\n", total, drained.Seconds())
	table([][]string{
		{"", "accepted/s", "servers µs/call", "fsyncs/call", "entries/call"},
		{"empty", fmt.Sprintf("%.0f", empty.rate), us(empty.servers), fmt.Sprintf("%.4f", empty.fsyncs), fmt.Sprintf("%.4f", empty.entries)},
		{"full", fmt.Sprintf("%.0f", full.rate), us(full.servers), fmt.Sprintf("%.4f", full.fsyncs), fmt.Sprintf("%.4f", full.entries)},
	})
	atMost("backlog_memory_mib", "limit", memory, 300, 1)
	atLeast("backlog_accepts", "empty", full.rate, empty.rate, 0.7)
	atMost("backlog_cpu_us", "empty", float64(full.servers)/1e3, float64(empty.servers)/1e3, 1.5)
	atMost("backlog_fsyncs_per_call", "empty", full.fsyncs, empty.fsyncs, 1.5)
	atMost("backlog_entries_per_call", "empty", full.entries, empty.entries, 1.5)
	atMost("backlog_status_by_id_p50_ms", "limit", quantile(took, 0.5), 5, 1)
	atMost("backlog_status_by_id_p99_ms", "limit", quantile(took, 0.99), 5, 1)
	atMost("backlog_restart_one_s", "limit", one.Seconds(), 20, 1)
	atMost("backlog_restart_all_s", "limit", all.Seconds(), 60, 1)
}

// restarted kills queue nodes and waits until all are ready again.
func (o *ours) restarted(t *testing.T, names ...string) time.Duration {
	t.Helper()
	began := time.Now()
	before := map[string]int{}
	for _, name := range names {
		before[name] = o.PID(name)
		o.Kill(name)
	}
	o.Eventually(2*time.Minute, fmt.Sprintf("%v are ready again", names), func() error {
		for _, name := range names {
			if pid := o.PID(name); pid == 0 || pid == before[name] {
				return fmt.Errorf("%s does not run", name)
			}
			res, err := cluster.Client.Get(fmt.Sprintf("http://127.0.0.1:%d/ready", o.Ports()[name]["admin"]))
			if err != nil {
				return err
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("%s answers %d", name, res.StatusCode)
			}
		}
		return nil
	})
	t.Logf("%v ready again after %v", names, time.Since(began).Round(time.Millisecond))
	return time.Since(began)
}

// ownMemory of a process, in MiB: what no other can share and no file backs.
func ownMemory(t *testing.T, pid int) float64 {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sum, found := 0.0, errors.New("no RssAnon")
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name != "RssAnon" && name != "RssShmem" {
			continue
		}
		kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum, found = sum+kib/1024, nil
	}
	if found != nil {
		t.Fatal(found)
	}
	return sum
}
