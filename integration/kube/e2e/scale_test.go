package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// full: the sizes and bars of docs/reliability.md; otherwise CI's, where figures are printed and no machine is judged.
func full() bool { return os.Getenv("SLIMFAAS_FULL") != "" }

// size of the test on simulated nodes.
func size() (functions, pods, woken, changes int) {
	if full() {
		return 2000, 3, 500, 100
	}
	return 60, 2, 30, 12
}

// figure prints a figure, and at full size holds it against its bar.
func figure[T int | float64 | time.Duration](t *testing.T, what string, got, bar T) {
	t.Helper()
	t.Logf("figure %s: %v (bar %v)", what, got, bar)
	if full() && got > bar {
		t.Errorf("%s: %v, over %v", what, got, bar)
	}
}

// simulated makes nodes of kwok, and functions whose pods run there.
func simulated(t *testing.T, functions, pods int) {
	t.Helper()
	if strings.TrimSpace(kubectl(t, "get", "pods", "-A", "-o", "name")) == "" {
		t.Skip("no pods at all: is this a cluster?")
	}
	var nodes strings.Builder
	for i := range functions*pods/100 + 2 {
		fmt.Fprintf(&nodes, `---
apiVersion: v1
kind: Node
metadata: {name: fake-%d, annotations: {kwok.x-k8s.io/node: fake, node.alpha.kubernetes.io/ttl: "0"}, labels: {type: kwok, kubernetes.io/hostname: fake-%d}}
spec: {taints: [{key: kwok.x-k8s.io/node, value: fake, effect: NoSchedule}]}
status: {allocatable: {cpu: "64", memory: 256Gi, pods: "200"}, capacity: {cpu: "64", memory: 256Gi, pods: "200"}}
`, i, i)
	}
	if _, err := try(t.Context(), nodes.String(), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	const batch = 250
	for from := 0; from < functions; from += batch {
		var manifest strings.Builder
		for i := from; i < min(from+batch, functions); i++ {
			one := fn("Deployment", fmt.Sprintf("many%d", i), "TimeoutSecondBeforeSetReplicasMin", "3600", "ReplicasAtStart", "1")
			one = strings.Replace(one, "replicas: 0", fmt.Sprintf("replicas: %d", pods), 1)
			manifest.WriteString(onKwok(one))
		}
		if _, err := try(t.Context(), manifest.String(), "create", "-n", namespace, "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { removeSimulated(t) })
}

// onKwok gives the pods of a Deployment to simulated nodes.
func onKwok(manifest string) string {
	manifest = strings.Replace(manifest, "    spec:\n", "    spec:\n      nodeSelector: {type: kwok}\n      tolerations: [{operator: Exists}]\n", 1)
	manifest = strings.Replace(manifest, "metadata: {name: ", "metadata: {labels: {simulated: \"true\"}, name: ", 1)
	return strings.Replace(manifest, "    metadata: {labels: {", "    metadata: {labels: {simulated: \"true\", ", 1)
}

// removeSimulated takes away what runs on simulated nodes, and the nodes last: without one nobody says that a pod has ended.
func removeSimulated(t *testing.T) {
	t.Helper()
	eventually(t, 15*time.Minute, "no simulated pod is left", func() error {
		for _, one := range []struct{ path, more string }{
			{"/apis/apps/v1/namespaces/" + namespace + "/deployments", ""},
			{"/apis/apps/v1/namespaces/" + namespace + "/replicasets", ""}, // by the garbage collector, at times later
			{"/api/v1/namespaces/" + namespace + "/pods", "&gracePeriodSeconds=0"},
		} {
			path := one.path + "?labelSelector=simulated%3Dtrue"
			if strings.Contains(kubectl(t, "get", "--raw", path+"&limit=1"), `"items":[]`) {
				continue
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
			_, err := try(ctx, "", "delete", "--raw", path+one.more)
			cancel()
			return errors.Join(errNotYet, err) // thousands take longer than a request may: again
		}
		return nil
	})
	kubectl(t, "delete", "nodes", "-l", "type=kwok", "--wait=false")
}

// complete counts the functions that an edge shows with so many ready replicas.
func complete(prefix string, pods int) (n int, err error) {
	return count(prefix, func(ready, _ int) bool { return ready == pods })
}

// raised counts the functions of which an edge knows that replicas are asked for.
func raised(prefix string) (n int, err error) {
	return count(prefix, func(_, requested int) bool { return requested > 0 })
}

func count(prefix string, is func(ready, requested int) bool) (n int, err error) {
	_, body, _, err := do(http.MethodGet, "/status-functions", nil, "")
	if err != nil {
		return 0, err
	}
	var all []struct {
		Name                         string
		NumberReady, NumberRequested int
	}
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		return 0, fmt.Errorf("%w: %.200s", err, body)
	}
	for _, f := range all {
		if strings.HasPrefix(f.Name, prefix) && is(f.NumberReady, f.NumberRequested) {
			n++
		}
	}
	return n, nil
}

// metric of a pod's program; 0 where it has none of that name.
func metric(t *testing.T, pod, name string) float64 {
	t.Helper()
	answer, err := client.Get("http://" + kubectl(t, "get", "pod", pod, "-n", namespace, "-o", "jsonpath={.status.podIP}") + ":9090/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// rss is the resident memory of a pod's process that is its own, in MiB.
func rss(t *testing.T, pod string) int {
	t.Helper()
	pid, err := pidOf(t, pod)
	if err != nil {
		t.Log(err)
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(raw)
	if match == nil {
		return 0
	}
	kib, _ := strconv.Atoi(string(match[1]))
	return kib >> 10
}

// TestManyFunctions on simulated nodes: the table at an edge, changes, a storm of wakes, memory.
func TestManyFunctions(t *testing.T) {
	needsCluster(t)
	installed(t)
	functions, pods, woken, changes := size()
	simulated(t, functions, pods)
	took := eventually(t, 20*time.Minute, "every pod is ready at an edge", func() error {
		n, err := complete("many", pods)
		if err == nil && n < functions {
			err = fmt.Errorf("%d of %d", n, functions)
		}
		time.Sleep(200 * time.Millisecond) // each look is a large answer
		return err
	})
	t.Logf("%d functions, %d pods: ready at the edges after %v", functions, functions*pods, took.Round(100*time.Millisecond))

	t.Run("a new edge has the whole table", func(t *testing.T) {
		edges := strings.Fields(kubectl(t, "get", "pods", "-n", namespace, "-l", "app.kubernetes.io/component=edge", "-o", "jsonpath={.items[*].metadata.name}"))
		ip := kubectl(t, "get", "pod", edges[0], "-n", namespace, "-o", "jsonpath={.status.podIP}")
		fresh := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		table := func() (n int, err error) {
			answer, err := fresh.Get("http://" + ip + ":5000/status-functions")
			if err != nil {
				return 0, err
			}
			defer answer.Body.Close()
			raw, err := io.ReadAll(answer.Body)
			return strings.Count(string(raw), `"many`), err
		}
		began := time.Now()
		kill(t, edges[0])
		eventually(t, 10*time.Second, "the killed edge is gone", func() error {
			if _, err := table(); err == nil {
				return errNotYet
			}
			return nil
		})
		eventually(t, 60*time.Second, "the new edge shows everything", func() error {
			n, err := table()
			if err == nil && n < functions {
				err = fmt.Errorf("%d of %d", n, functions)
			}
			return err
		})
		took := time.Since(began)
		figure(t, "table complete at an edge after it was killed, the kubelet's restart included", took.Round(10*time.Millisecond), 5*time.Second)
	})
	t.Run("a change comes to an edge", func(t *testing.T) {
		a := newAPI(t)
		var mu sync.Mutex
		ready := map[string]map[string]bool{} // pods by function
		full := map[string]time.Time{}        // when a function had one pod more than at first
		a.watch(t, "/api/v1/namespaces/"+namespace+"/pods?watch=1&labelSelector=app", func(at time.Time, _ string, raw json.RawMessage) {
			var p struct {
				Metadata struct {
					Name   string
					Labels map[string]string
				}
				Status struct {
					Conditions []struct{ Type, Status string }
				}
			}
			if json.Unmarshal(raw, &p) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			app := p.Metadata.Labels["app"]
			for _, c := range p.Status.Conditions {
				if c.Type == "Ready" && c.Status == "True" {
					if ready[app] == nil {
						ready[app] = map[string]bool{}
					}
					ready[app][p.Metadata.Name] = true
				}
			}
			if len(ready[app]) == pods+1 && full[app].IsZero() {
				full[app] = at
			}
		})
		var all []time.Duration
		for _, i := range rand.Perm(functions)[:changes] {
			name := fmt.Sprintf("many%d", i)
			kubectl(t, "scale", "-n", namespace, "deployment/"+name, fmt.Sprintf("--replicas=%d", pods+1))
			var seen time.Time
			eventually(t, 10*time.Second, "the edge sees one more", func() error {
				_, body, _, err := do(http.MethodGet, "/status-function/"+name, nil, "")
				if err == nil && !strings.Contains(body, fmt.Sprintf(`"NumberReady":%d`, pods+1)) {
					err = fmt.Errorf("%w: %s", errNotYet, body)
				}
				seen = time.Now()
				return err
			})
			eventually(t, 10*time.Second, "the watch sees one more", func() error {
				mu.Lock()
				defer mu.Unlock()
				if full[name].IsZero() {
					return errNotYet
				}
				all = append(all, max(seen.Sub(full[name]), 0))
				return nil
			})
		}
		figure(t, fmt.Sprintf("pod change → edge, seen by polling every 20 ms, p99 of %d (median %v)", len(all), percentile(all, 50).Round(time.Millisecond)),
			percentile(all, 99).Round(time.Millisecond), 100*time.Millisecond)
	})
	memory := func(when string) {
		if now, err := leader(t); err == nil {
			figure(t, "RSS of the leading scaler in MiB "+when, rss(t, now), 150)
		}
		for pod := range strings.FieldsSeq(kubectl(t, "get", "pods", "-n", namespace, "-l", "app.kubernetes.io/component=edge", "-o", "jsonpath={.items[*].metadata.name}")) {
			figure(t, "RSS of "+pod+" in MiB "+when, rss(t, pod), 80)
		}
	}
	memory("before the storm")
	t.Run("many are woken at once", func(t *testing.T) {
		var manifest strings.Builder
		for i := range woken {
			one := fn("Deployment", fmt.Sprintf("storm%d", i+1), "TimeoutSecondBeforeSetReplicasMin", "3600")
			manifest.WriteString(onKwok(one))
		}
		if _, err := try(t.Context(), manifest.String(), "create", "-n", namespace, "-f", "-"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, "all are known", func() error {
			n, err := complete("storm", 0)
			if err == nil && n < woken {
				err = fmt.Errorf("%d of %d", n, woken)
			}
			return err
		})
		before, err := leader(t)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var refused atomic.Int64
		var work sync.WaitGroup
		for i := range woken {
			work.Go(func() {
				if status, _, _, err := do(http.MethodPost, fmt.Sprintf("/wake-function/storm%d", i+1), nil, ""); err != nil || status >= 300 {
					refused.Add(1)
				}
			})
		}
		work.Wait()
		eventually(t, 2*time.Minute, "all are raised", func() error {
			n, err := raised("storm")
			if err == nil && n < woken {
				err = fmt.Errorf("%d of %d", n, woken)
			}
			return err
		})
		t.Logf("figure scale: %d functions woken at once, all raised after %v", woken, time.Since(began).Round(10*time.Millisecond))
		eventually(t, 10*time.Minute, "all are awake", func() error {
			n, err := complete("storm", 1)
			if err == nil && n < woken {
				err = fmt.Errorf("%d of %d", n, woken)
			}
			time.Sleep(50 * time.Millisecond)
			return err
		})
		after, err := leader(t)
		if err != nil || after != before || refused.Load() > 0 {
			t.Errorf("leader %s, before %s, %v; %d wakes refused", after, before, err, refused.Load())
		}
		t.Logf("figure scale: %d functions woken at once, all ready after %v; the Lease was kept", woken, time.Since(began).Round(10*time.Millisecond))
	})
	if now, err := leader(t); err == nil {
		before := metric(t, now, "slimfaas_scaler_orchestrator_lists_total")
		rest := 5 * time.Second
		if full() {
			rest = 20 * time.Second
		}
		time.Sleep(rest) // a steady state
		figure(t, fmt.Sprintf("listings in %v at rest", rest), metric(t, now, "slimfaas_scaler_orchestrator_lists_total")-before, 0)
		looks, all := metric(t, now, "slimfaas_scaler_pass_seconds_count"), metric(t, now, "slimfaas_scaler_pass_seconds_sum")
		figure(t, fmt.Sprintf("milliseconds of a decision pass, mean of %g (longest %.1f)", looks, 1000*metric(t, now, "slimfaas_scaler_pass_longest_seconds")),
			1000*all/max(looks, 1), 50)
	}
	memory("after the storm")
}
