package raftnode

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// backlogEnv is how many calls TestBacklog queues; it does not run without.
const backlogEnv = "QUEUE_TEST_BACKLOG"

func controlBacklog(n *Node, verb string, number uint64) string {
	switch verb {
	case "fill":
		if err := fill(n, number); err != nil {
			return err.Error()
		}
		return "ok"
	case "state":
		var out string
		n.View(func(m *fsm.Machine) {
			unfinished, _, _ := m.Sizes()
			out = fmt.Sprintf("%d %d %d", m.Applied(), m.Hash(), unfinished)
		})
		return out
	case "payloads":
		var calls []fsm.Call
		n.View(func(m *fsm.Machine) {
			every := 0
			for c := range m.Unfinished() {
				if every++; every%100 == 0 {
					calls = append(calls, c)
				}
			}
		})
		begin := time.Now()
		for _, c := range calls {
			if payload, err := n.Payload(c.Seq); err != nil || uint32(len(payload)) != c.Size {
				return fmt.Sprintf("payload of %d: %d bytes, %v", c.Seq, len(payload), err)
			}
		}
		return fmt.Sprintf("ok %d payloads, %v each", len(calls), time.Since(begin)/time.Duration(max(1, len(calls))))
	}
	return "what?"
}

// fill queues so many calls more.
func fill(n *Node, calls uint64) error {
	var next atomic.Uint64
	n.View(func(m *fsm.Machine) {
		unfinished, _, _ := m.Sizes()
		next.Store(uint64(unfinished))
	})
	end := next.Load() + calls
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- fillSome(n, &next, end) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

func fillSome(n *Node, next *atomic.Uint64, end uint64) error {
	random := rand.NewChaCha8([32]byte{byte(rand.Uint32())})
	for {
		last := next.Add(200)
		if last > end {
			return nil
		}
		commands := make([]command.Command, 200)
		for i := range commands {
			payload := make([]byte, 1024)
			_, _ = random.Read(payload)
			commands[i] = command.Accept{ID: idOf(last - uint64(i)), Function: "asleep", Payload: payload}
		}
		if _, _, err := n.Propose(context.Background(), commands); err != nil {
			return err
		}
	}
}

// The backlog of the queue issue, point 3, as far as it is the node's: memory and restarts. Without bus, dispatcher and API.
func TestBacklog(t *testing.T) {
	calls, err := strconv.Atoi(os.Getenv(backlogEnv))
	if err != nil {
		t.Skipf("set %s to a number of calls", backlogEnv)
	}
	nodes := startProcesses(t, 3, func(c *processConfig) { c.Large = true })
	leader := inOffice(t, nodes)
	for step := range 4 {
		begin, cpu := time.Now(), cpuTime(t, nodes)
		if answer, _, err := leader.ask(fmt.Sprintf("fill %d", calls/4), time.Minute*5); err != nil || answer != "ok" {
			t.Fatal(answer, err)
		}
		t.Logf("filled quarter %d: %.0f calls/s, %.1f µs CPU of all three nodes a call", step+1,
			float64(calls/4)/time.Since(begin).Seconds(), float64((cpuTime(t, nodes)-cpu).Microseconds())/float64(calls/4))
	}
	state := settled(t, nodes)
	t.Logf("state: applied, hash, calls: %s", state)
	for _, n := range nodes {
		t.Logf("%s: %s", n.config.Name, memory(t, n))
	}
	answer, _, err := leader.ask("payloads", time.Minute)
	t.Log(answer, err)

	for _, n := range nodes {
		if n != leader {
			n.kill()
			n.start()
			begin := time.Now()
			eventually(t, "the old state after a kill", func() bool {
				answer, _, err := n.ask("state", time.Second)
				return err == nil && answer == state
			})
			t.Logf("%s killed, at the same state again after %v: %s", n.config.Name, time.Since(begin).Round(time.Millisecond), memory(t, n))
			break
		}
	}
	for _, n := range nodes {
		n.kill()
	}
	begin := time.Now()
	for _, n := range nodes {
		n.start()
	}
	eventually(t, "a leader", func() bool {
		for _, n := range nodes {
			if answer, _, err := n.ask("office", time.Second); err == nil && answer == "yes" {
				return true
			}
		}
		return false
	})
	t.Logf("all three killed, a leader in office after %v", time.Since(begin).Round(time.Millisecond))
	for _, n := range nodes {
		t.Logf("%s: %s", n.config.Name, memory(t, n))
	}
}

func settled(t *testing.T, nodes []*process) (state string) {
	t.Helper()
	eventually(t, "equal states", func() bool {
		seen := map[string]bool{}
		for _, n := range nodes {
			answer, _, err := n.ask("state", time.Second)
			if err != nil {
				return false
			}
			seen[answer], state = true, answer
		}
		return len(seen) == 1
	})
	return state
}

// cpuTime of all nodes; the kernel counts in hundredths of a second.
func cpuTime(t *testing.T, nodes []*process) (sum time.Duration) {
	t.Helper()
	for _, n := range nodes {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.command.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(content), ") ") // fields from the third
		fields := strings.Fields(after)
		for _, field := range fields[11:13] {
			ticks, _ := strconv.Atoi(field)
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

func memory(t *testing.T, p *process) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmHWM") {
			out = append(out, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(out, ", ")
}
