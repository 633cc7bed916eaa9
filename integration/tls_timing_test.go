//go:build timing

package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// TestTimingTLS: what mutual TLS on every internal link costs the accept: our client, 1 KiB of random bytes, three nodes, two
// stacks beside one another that take turns, each second another. CPU per accept is of the three nodes together; it says
// more than the rate where the machine or its disk has other work.
func TestTimingTLS(t *testing.T) {
	const turns, length = 12, time.Second
	rec := newRecords(t)
	stacks := map[string]*tlsStack{"plain": newTLSStack(t, rec, "false"), "TLS": newTLSStack(t, rec, "true")}
	for _, callers := range []int{64, 512} {
		rates, medians, cpu := map[string][]float64{}, map[string][]time.Duration{}, map[string]time.Duration{}
		accepted := map[string]int{}
		for turn := range turns {
			order := []string{"plain", "TLS"}
			if turn%2 == 1 {
				slices.Reverse(order)
			}
			for _, name := range order {
				s := stacks[name]
				before := s.cpu(t)
				n, took, median := accepts(t, s.client, callers, length)
				cpu[name] += s.cpu(t) - before
				accepted[name] += n
				rates[name], medians[name] = append(rates[name], float64(n)/took.Seconds()), append(medians[name], median)
			}
		}
		text := fmt.Sprintf("%d callers, median of %d turns of %v:", callers, turns, length)
		for _, name := range []string{"plain", "TLS"} {
			slices.Sort(rates[name])
			slices.Sort(medians[name])
			r := rates[name]
			text += fmt.Sprintf(" %s %.0f accepts/s (%.0f to %.0f, p50 %v, CPU %v per accept);", name, r[turns/2], r[0], r[turns-1],
				medians[name][turns/2].Round(10*time.Microsecond), (cpu[name] / time.Duration(accepted[name])).Round(time.Microsecond))
		}
		t.Logf("%s TLS/plain %.2f of the rate, %.2f of the CPU", text, rates["TLS"][turns/2]/rates["plain"][turns/2],
			float64(cpu["TLS"])/float64(accepted["TLS"])/(float64(cpu["plain"])/float64(accepted["plain"])))
	}
}

// tlsStack is a stack and our client of its queue.
type tlsStack struct {
	client *queueclient.Client
	nodes  []int // pids
}

func newTLSStack(t *testing.T, rec records, with string) *tlsStack {
	t.Helper()
	c := cluster.Start(t, cluster.Options{Functions: rec.yaml(fn{name: "idle"}), Env: []string{"SLIMFAAS_LOCAL_TLS=" + with}})
	secrets := filepath.Join(c.State, "secrets")
	token, err := secret.Read(secrets, "token-edge")
	if err != nil {
		t.Fatal(err)
	}
	files, err := tlsconf.Open(filepath.Join(secrets, "edge-0"), slog.New(slog.DiscardHandler)) // of a plain stack: none
	if err != nil {
		t.Fatal(err)
	}
	o := queueclient.Options{Token: token, Name: "timing", RPCTimeout: 10 * time.Second}
	if files != nil {
		o.TLS = files.Client(tlsconf.Names("queue"))
	}
	s := &tlsStack{}
	for i := range 3 {
		name := fmt.Sprintf("queue-%d", i)
		o.Endpoints = append(o.Endpoints, fmt.Sprintf("http://127.0.0.1:%d", c.Ports()[name]["api"]))
		s.nodes = append(s.nodes, c.PID(name))
	}
	s.client = queueclient.New(o)
	t.Cleanup(s.client.Close)
	return s
}

// cpu is what the three nodes have used so far, in the kernel's ticks of 10 ms.
func (s *tlsStack) cpu(t *testing.T) (all time.Duration) {
	t.Helper()
	for _, pid := range s.nodes {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		for _, f := range fields[11:13] { // user and system time
			ticks, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			all += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return all
}

// accepts of calls for a function that nobody has: how many, in what time, and their median latency.
func accepts(t *testing.T, client *queueclient.Client, callers int, length time.Duration) (n int, took, median time.Duration) {
	t.Helper()
	payload := make([]byte, 1<<10)
	_, _ = rand.Read(payload)
	ctx, cancel := context.WithTimeout(t.Context(), length+10*time.Second)
	defer cancel()
	var all sync.WaitGroup
	latencies := make([][]time.Duration, callers)
	began := time.Now()
	for i := range callers {
		all.Go(func() {
			for time.Since(began) < length {
				id := make([]byte, 16)
				_, _ = rand.Read(id)
				id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80 // UUIDv7 in shape
				sent := time.Now()
				r, err := client.Do(ctx, &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{
					Id: id, Function: "nobody", Payload: bytes.Clone(payload), Size: uint64(len(payload)),
				}}})
				if err != nil || r.GetCode() != wire.Code_CODE_OK {
					t.Errorf("accept: %v, %v", r, err)
					return
				}
				latencies[i] = append(latencies[i], time.Since(sent))
			}
		})
	}
	all.Wait()
	took = time.Since(began)
	flat := slices.Concat(latencies...)
	if len(flat) == 0 {
		t.Fatal("nothing was accepted")
	}
	slices.Sort(flat)
	return len(flat), took, flat[len(flat)/2]
}
