package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// sights are what independent observers saw of one wake. Zero: nothing yet.
type sights struct {
	sent, firstByte      time.Time // the caller
	scaled, ip, answered time.Time // the watches of the Deployment and of the pod, the prober
	changes              int       // of spec.replicas
}

// observer watches Deployments and pods of functions, and probes each new pod every 5 ms.
type observer struct {
	t   *testing.T
	mu  sync.Mutex
	all map[string]*sights
	ips map[string]bool
	job sync.WaitGroup
}

func observe(t *testing.T, prefix string) *observer {
	t.Helper()
	o := &observer{t: t, all: map[string]*sights{}, ips: map[string]bool{}}
	a := newAPI(t)
	wanted := map[string]int{}
	a.watch(t, "/apis/apps/v1/namespaces/"+namespace+"/deployments?watch=1", func(at time.Time, _ string, raw json.RawMessage) {
		var d struct {
			Metadata struct{ Name string }
			Spec     struct{ Replicas int }
		}
		if json.Unmarshal(raw, &d) != nil || !strings.HasPrefix(d.Metadata.Name, prefix) {
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		old, known := wanted[d.Metadata.Name]
		wanted[d.Metadata.Name] = d.Spec.Replicas
		if s := o.all[d.Metadata.Name]; s != nil && known && old != d.Spec.Replicas {
			s.changes++
			if s.scaled.IsZero() && d.Spec.Replicas > 0 {
				s.scaled = at
			}
		}
	})
	a.watch(t, "/api/v1/namespaces/"+namespace+"/pods?watch=1", func(at time.Time, _ string, raw json.RawMessage) {
		var p struct {
			Metadata struct{ Labels map[string]string }
			Status   struct{ PodIP string }
		}
		if json.Unmarshal(raw, &p) != nil || p.Status.PodIP == "" || !strings.HasPrefix(p.Metadata.Labels["app"], prefix) {
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		s := o.all[p.Metadata.Labels["app"]]
		if s == nil || o.ips[p.Status.PodIP] || !s.ip.IsZero() {
			return
		}
		o.ips[p.Status.PodIP], s.ip = true, at
		o.job.Go(func() { o.probe(s, p.Status.PodIP) })
	})
	t.Cleanup(o.job.Wait)
	return o
}

func (o *observer) probe(s *sights, ip string) {
	prober := &http.Client{Timeout: 50 * time.Millisecond}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		answer, err := prober.Get("http://" + ip + ":8080/health")
		if err != nil {
			continue
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			o.mu.Lock()
			s.answered = time.Now()
			o.mu.Unlock()
			return
		}
	}
}

// wake calls a sleeping function and gives what everybody saw.
func (o *observer) wake(function string) (*sights, error) {
	s := &sights{}
	o.mu.Lock()
	o.all[function] = s
	o.mu.Unlock()
	trace := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		WroteHeaders:         func() { o.mu.Lock(); s.sent = time.Now(); o.mu.Unlock() },
		GotFirstResponseByte: func() { o.mu.Lock(); s.firstByte = time.Now(); o.mu.Unlock() },
	})
	request, err := http.NewRequestWithContext(trace, http.MethodGet, entry()+"/function/"+function+"/hello/x", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %d", function, answer.StatusCode)
	}
	return s, nil
}

// sleeping makes functions that sleep, and waits until the edge knows them.
func sleeping(t *testing.T, prefix string, n int) (names []string) {
	t.Helper()
	var manifest strings.Builder
	for i := range n {
		name := fmt.Sprintf("%s%d", prefix, i)
		names = append(names, name)
		manifest.WriteString(fn("Deployment", name, "TimeoutSecondBeforeSetReplicasMin", "600"))
	}
	apply(t, manifest.String())
	t.Cleanup(func() {
		_, _ = try(context.WithoutCancel(t.Context()), "", append([]string{"delete", "deployment", "-n", namespace, "--wait=false"}, names...)...)
	})
	for _, name := range names {
		eventually(t, 10*time.Second, name+" is known", func() error {
			status, body, _, err := do(http.MethodGet, "/status-function/"+name, nil, "")
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
	}
	return names
}

func percentile(all []time.Duration, p int) time.Duration {
	slices.Sort(all)
	return all[min(len(all)*p/100, len(all)-1)]
}

// judge prints the figures of wakes, and holds them against the bars.
func (o *observer) judge(t *testing.T, what string, all []*sights) {
	t.Helper()
	o.job.Wait()
	var toScale, toAnswer, whole []time.Duration
	for _, s := range all {
		toScale = append(toScale, s.scaled.Sub(s.sent))
		reachable := s.ip
		if s.answered.After(reachable) {
			reachable = s.answered
		}
		toAnswer = append(toAnswer, max(s.firstByte.Sub(reachable), 0))
		whole = append(whole, s.firstByte.Sub(s.sent))
		if s.changes != 1 {
			t.Errorf("%s: spec.replicas changed %d times in one wake", what, s.changes)
		}
	}
	for _, figure := range []struct {
		name        string
		all         []time.Duration
		median, p95 time.Duration
	}{
		{"request → spec.replicas", toScale, 15 * time.Millisecond, 50 * time.Millisecond},
		{"reachable → first byte", toAnswer, 25 * time.Millisecond, 70 * time.Millisecond},
		{"whole wake, the kubelet's part included", whole, 0, 0},
	} {
		median, p95 := percentile(figure.all, 50), percentile(figure.all, 95)
		t.Logf("figure %s, %s: median %v, p95 %v, n=%d (bars %v, %v)", what, figure.name, median.Round(100*time.Microsecond), p95.Round(100*time.Microsecond), len(figure.all), figure.median, figure.p95)
		if figure.median > 0 && (median > figure.median || p95 > figure.p95) {
			t.Errorf("%s, %s: median %v, p95 %v", what, figure.name, median, p95)
		}
	}
}

// TestWake: what we add to a wake, measured within it by others: the scale is asked for at once, and the answer follows as soon as
// the pod can be reached, with a readiness probe every 10 s.
func TestWake(t *testing.T) {
	needsCluster(t)
	installed(t)
	n := 12
	if os.Getenv("SLIMFAAS_FULL") != "" {
		n = 30
	}
	names := sleeping(t, "wake", n)
	o := observe(t, "wake")
	var all []*sights
	for _, name := range names {
		s, err := o.wake(name)
		if err != nil {
			explain(t)
			t.Fatal(err)
		}
		all = append(all, s)
	}
	o.judge(t, "wake", all)
}

// TestWakeWithoutALeader: the leading scaler is killed, and functions are woken within the next seconds.
func TestWakeWithoutALeader(t *testing.T) {
	needsCluster(t)
	installed(t)
	n := 8
	if os.Getenv("SLIMFAAS_FULL") != "" {
		n = 20
	}
	names := sleeping(t, "orphan", n)
	o := observe(t, "orphan")
	old, err := holder(t)
	if err != nil {
		t.Fatal(err)
	}
	pod, _, _ := strings.Cut(old, "_")
	kill(t, pod)
	killed := time.Now()
	var all []*sights
	var mu sync.Mutex
	var calls sync.WaitGroup
	for i, name := range names {
		calls.Go(func() {
			time.Sleep(time.Duration(i) * 5 * time.Second / time.Duration(n)) // spread over five seconds
			s, err := o.wake(name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			all = append(all, s)
		})
	}
	calls.Wait()
	if t.Failed() {
		explain(t)
		return
	}
	o.judge(t, "without a leader", all)
	eventually(t, 40*time.Second, "another scaler leads", func() error {
		now, err := holder(t)
		if err == nil && now == old {
			err = errNotYet
		}
		return err
	})
	t.Logf("figure takeover: %v after the kill", time.Since(killed).Round(100*time.Millisecond))
}
