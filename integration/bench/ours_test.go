//go:build bench

package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// sink is a function that never becomes ready: its calls stay in the queue. The others are the reader: reads and burst read as fast
// as they can, slow takes a second a call and ten at a time, later is not ready before it is opened.
const functions = `  sink:
    command: ["sleep", "1000000"]
    annotations:
      SlimFaas/Function: "true"
    health:
      path: /health
  reads:
    command: [%[1]q]
    annotations:
      SlimFaas/Function: "true"
      SlimFaas/NumberParallelRequest: "256"
      SlimFaas/NumberParallelRequestPerPod: "256"
      SlimFaas/TimeoutSecondBeforeSetReplicasMin: "600"
    health:
      path: /health
  burst:
    command: [%[1]q]
    annotations:
      SlimFaas/Function: "true"
      SlimFaas/NumberParallelRequest: "64"
      SlimFaas/NumberParallelRequestPerPod: "64"
      SlimFaas/TimeoutSecondBeforeSetReplicasMin: "600"
    health:
      path: /health
  slow:
    command: [%[1]q]
    environment:
      TAKES: 1s
    annotations:
      SlimFaas/Function: "true"
      SlimFaas/TimeoutSecondBeforeSetReplicasMin: "600"
    health:
      path: /health
  later:
    command: [%[1]q]
    environment:
      READY_FILE: %[2]q
    annotations:
      SlimFaas/Function: "true"
      SlimFaas/NumberParallelRequest: "256"
      SlimFaas/NumberParallelRequestPerPod: "256"
      SlimFaas/TimeoutSecondBeforeSetReplicasMin: "600"
    health:
      path: /health
`

// ours is the local stack: three queue nodes, an edge, a scaler.
type ours struct {
	*cluster.Cluster
	edge string // host:port
	gate string // a file that makes the function later ready
}

func startOurs(t *testing.T, env ...string) *ours {
	t.Helper()
	gate := filepath.Join(t.TempDir(), "open")
	c := cluster.Start(t, cluster.Options{
		Functions: fmt.Sprintf(functions, filepath.Join(programs, "reader"), gate),
		Env:       append([]string{"LOG_LEVEL=warn", fmt.Sprintf("QUEUE_PROFILE=%t", *profiles != ""), fmt.Sprintf("EDGE_PROFILE=%t", *profiles != "")}, env...),
	})
	return &ours{c, strings.TrimPrefix(c.URL(0), "http://"), gate}
}

// submit measures the queue's own client.
func (o *ours) submit(t *testing.T, callers int, warm, length time.Duration) sample {
	t.Helper()
	return o.submitTo(t, "sink", callers, warm, length, func(uuid.UUID) {})
}

// submitTo is submit for calls of one function; accepted is told of each that was, by many callers at once.
func (o *ours) submitTo(t *testing.T, function string, callers int, warm, length time.Duration, accepted func(uuid.UUID)) sample {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(o.State, "secrets", "token-edge"))
	if err != nil {
		t.Fatal(err)
	}
	var endpoints []string
	for name, ports := range o.Ports() {
		if strings.HasPrefix(name, "queue-") {
			endpoints = append(endpoints, fmt.Sprintf("http://127.0.0.1:%d", ports["api"]))
		}
	}
	client := queueclient.New(queueclient.Options{Endpoints: endpoints, Token: strings.TrimSpace(string(token)), Name: "bench"})
	defer client.Close()
	return o.counted(t, share(warm, length), func() sample {
		return drive(t, callers, warm, length, func(int) (caller, func()) {
			return func(ctx context.Context, n int) error {
				id := uuid.Must(uuid.NewV7())
				result, err := client.Do(ctx, &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{Id: id[:], Function: function, Payload: stored(n)}}})
				if err == nil && result.GetCode() != wire.Code_CODE_OK {
					err = fmt.Errorf("%v: %s", result.GetCode(), result.GetDetail())
				}
				if err == nil {
					accepted(id)
				}
				return err
			}, func() {}
		})
	})
}

// requests of one payload each as an edge stores them. The peers' publishers have nothing to encode either.
var requests = sync.OnceValue(func() [][]byte {
	all := make([][]byte, 256)
	for i := range all {
		raw, err := proto.Marshal(&wire.StoredRequest{Method: http.MethodPost, Path: "/", Body: payload(i)})
		if err != nil {
			panic(err)
		}
		all[i] = raw
	}
	return all
})

// stored request n of a caller. Nobody writes to it.
func stored(n int) []byte {
	all := requests()
	return all[n%len(all)]
}

// http measures the edge.
func (o *ours) http(t *testing.T, callers int, warm, length time.Duration) sample {
	t.Helper()
	return o.counted(t, share(warm, length), func() sample { return overHTTP(t, o.edge, callers, warm, length) })
}

// counted adds what the leader's log says about the calls, those of the warm-up included.
func (o *ours) counted(t *testing.T, part float64, measure func() sample) sample {
	t.Helper()
	leader := o.QueueLeader(0)
	before := o.metrics(t, leader)
	wait := o.profile(t)
	var pids []int
	for _, name := range append(o.Names("queue-"), "edge-0", "scaler-0") {
		pids = append(pids, o.PID(name))
	}
	s := weighed(pids, part, measure)
	wait()
	after := o.metrics(t, leader)
	calls := after["slimfaas_async_accepted_total"] - before["slimfaas_async_accepted_total"]
	s.fsyncs = (after["slimfaas_raft_log_fsyncs_total"] - before["slimfaas_raft_log_fsyncs_total"]) / calls
	s.entries = (after["slimfaas_raft_log_entries_total"] - before["slimfaas_raft_log_entries_total"]) / calls
	return s
}

// profile asks every queue node and the edge for profiles of processor time and allocations in the measured interval, when -profiles is given.
func (o *ours) profile(t *testing.T) (wait func()) {
	t.Helper()
	var all sync.WaitGroup
	if *profiles == "" {
		return all.Wait
	}
	leader := o.QueueLeader(0)
	for _, name := range append(o.Names("queue-"), "edge-0") {
		role := map[string]string{leader: "leader", "edge-0": "edge"}[name]
		if role == "" {
			role = "follower"
		}
		file := filepath.Join(*profiles, fmt.Sprintf("%s-%s.%d.pprof", role, name, time.Now().UnixMilli()))
		for what, suffix := range map[string]string{"profile": "", "allocs": ".allocs"} {
			url := fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/%s?seconds=%d", o.Ports()[name]["admin"], what, int((*length + warmUp).Seconds()))
			all.Go(func() {
				if err := fetch(t.Context(), url, file+suffix); err != nil {
					t.Errorf("profiling %s: %v", name, err)
				}
			})
		}
	}
	return all.Wait
}

func fetch(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := cluster.Client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, raw)
	}
	return os.WriteFile(file, raw, 0o600)
}

// metrics of a process by name, summed over labels.
func (o *ours) metrics(t *testing.T, name string) map[string]float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/metrics", o.Ports()[name]["admin"]), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := cluster.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	values := map[string]float64{}
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), " ")
		if i := strings.IndexByte(lines.Text(), '}'); i > 0 {
			key, value = lines.Text()[:i], strings.TrimSpace(lines.Text()[i+1:])
		}
		key, _, _ = strings.Cut(key, "{")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[key] += v
		}
	}
	return values
}
