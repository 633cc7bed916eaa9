package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strconv"
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
	timing               string    // Server-Timing of the answer
}

// observer watches Deployments and pods of functions, and probes each new pod every 5 ms.
type observer struct {
	t   *testing.T
	api *api
	mu  sync.Mutex
	all map[string]*sights
	ips map[string]bool
	job sync.WaitGroup
	// again is what the edges had sent again when the observer began.
	again int
}

func observe(t *testing.T, prefixes ...string) *observer {
	t.Helper()
	a := newAPI(t)
	o := &observer{t: t, api: a, all: map[string]*sights{}, ips: map[string]bool{}, again: sentAgain(t)}
	ours := func(name string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	}
	wanted := map[string]int{}
	a.watch(t, "/apis/apps/v1/namespaces/"+namespace+"/deployments?watch=1", func(at time.Time, _ string, raw json.RawMessage) {
		var d struct {
			Metadata struct{ Name string }
			Spec     struct{ Replicas int }
		}
		if json.Unmarshal(raw, &d) != nil || !ours(d.Metadata.Name) {
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
		if json.Unmarshal(raw, &p) != nil || p.Status.PodIP == "" || !ours(p.Metadata.Labels["app"]) {
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
		// Most tries find nobody, and twenty probers of HTTP would take a third of a processor from those they watch.
		conn, err := net.DialTimeout("tcp", ip+":8080", 50*time.Millisecond)
		if err != nil {
			continue
		}
		_ = conn.Close()
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
	s.timing = answer.Header.Get("Server-Timing")
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

// placed is a Deployment of nobody's whose pod fits no node: what a change of its scale costs without us.
func placed(name string) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 0
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeSelector: {fits: nothing}
      containers: [{name: none, image: none}]
`, name)
}

// peers are Deployments that the test itself scales, right after each wake, to know what the API server takes for it at that time.
func peers(t *testing.T, prefix string, n int) (names []string) {
	t.Helper()
	var manifest strings.Builder
	for i := range n {
		names = append(names, fmt.Sprintf("%s%d", prefix, i))
		manifest.WriteString(placed(names[i]))
	}
	apply(t, manifest.String())
	t.Cleanup(func() {
		_, _ = try(context.WithoutCancel(t.Context()), "", append([]string{"delete", "deployment", "-n", namespace, "--wait=false"}, names...)...)
	})
	return names
}

// scale is the same request as the scaler's, sent by the test.
func (o *observer) scale(deployment string) (*sights, error) {
	s := &sights{sent: time.Now()}
	o.mu.Lock()
	o.all[deployment] = s
	o.mu.Unlock()
	err := o.api.patch(o.t.Context(), "/apis/apps/v1/namespaces/"+namespace+"/deployments/"+deployment+"/scale", `{"spec":{"replicas":1}}`)
	if err != nil {
		return nil, err
	}
	eventually(o.t, 10*time.Second, deployment+" is seen scaled", func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if s.scaled.IsZero() {
			return errNotYet
		}
		return nil
	})
	return s, nil
}

// percentile by nearest rank: the smallest value that p of a hundred are not above.
func percentile(all []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max((len(sorted)*p+99)/100-1, 0)]
}

// Of one machine that is everything at once, the API server's own time is most of a wake: at CI's size a wake is held against the
// same change sent by the test in the same run, at full size against the bars too.
const (
	ratioBar  = 4
	ratioRoom = 10 * time.Millisecond
)

// judge prints the figures of wakes, and holds them against the bars and against changes that the test made itself; nil: none.
func (o *observer) judge(t *testing.T, what string, all, byTest []*sights) {
	t.Helper()
	for _, s := range all { // the caller had its answer before the watches, at times
		eventually(t, 10*time.Second, what+": the watches have seen it", func() error {
			o.mu.Lock()
			defer o.mu.Unlock()
			if s.scaled.IsZero() || s.ip.IsZero() {
				return errNotYet
			}
			return nil
		})
	}
	o.job.Wait()
	var toScale, toUsable, toAnswer, whole, direct []time.Duration
	for _, s := range byTest {
		direct = append(direct, s.scaled.Sub(s.sent))
	}
	for _, s := range all {
		toScale = append(toScale, s.scaled.Sub(s.sent))
		reachable := s.ip
		if s.answered.After(reachable) {
			reachable = s.answered
		}
		waited, err := edgeWaited(s.timing)
		if err != nil {
			t.Fatal(err)
		}
		toUsable = append(toUsable, max(s.sent.Add(waited).Sub(reachable), 0))
		toAnswer = append(toAnswer, max(s.firstByte.Sub(reachable), 0))
		whole = append(whole, s.firstByte.Sub(s.sent))
		if s.changes != 1 {
			t.Errorf("%s: spec.replicas changed %d times in one wake", what, s.changes)
		}
	}
	// Of a few calls the 95th percentile is the slowest one, and a network loses a packet of some hundred answers beside pods that come
	// and go; the next one follows after 210 ms. As many are excused as the edges' kernels say that they sent again.
	lost := sentAgain(t) - o.again
	t.Logf("figure %s: the edges sent %d packets again", what, lost)
	for _, figure := range []struct {
		name         string
		all          []time.Duration
		median, p95  time.Duration
		judged, tail bool // the median; the p95, too
	}{
		{"request → spec.replicas", toScale, 15 * time.Millisecond, 50 * time.Millisecond, full(), true},
		{"the same change sent by the test → spec.replicas", direct, 0, 0, false, false},
		{"reachable → released by the edge", toUsable, 25 * time.Millisecond, 70 * time.Millisecond, true, true},
		{"reachable → first byte", toAnswer, 25 * time.Millisecond, 70 * time.Millisecond, true, full()},
		{"reachable → first byte, without those sent again", but(toAnswer, lost, 70*time.Millisecond), 25 * time.Millisecond, 70 * time.Millisecond, true, true},
		{"whole wake, the kubelet's part included", whole, 0, 0, false, false},
	} {
		if len(figure.all) == 0 {
			continue
		}
		median, p95 := percentile(figure.all, 50), percentile(figure.all, 95)
		t.Logf("figure %s, %s: median %v, p95 %v, n=%d (bars %v, %v)", what, figure.name, median.Round(100*time.Microsecond), p95.Round(100*time.Microsecond), len(figure.all), figure.median, figure.p95)
		if full() && len(figure.all) <= 20 {
			t.Logf("%s, %s, in the order of the answers: %v", what, figure.name, figure.all)
		}
		if figure.judged && (median > figure.median || figure.tail && p95 > figure.p95) {
			t.Errorf("%s, %s: median %v, p95 %v", what, figure.name, median, p95)
			for _, s := range all {
				t.Logf("sent %v, then: scaled %v, address %v, reached %v, first byte %v; %s", s.sent.Format(time.StampMilli),
					s.scaled.Sub(s.sent), s.ip.Sub(s.sent), s.answered.Sub(s.sent), s.firstByte.Sub(s.sent), s.timing)
			}
		}
	}
	if len(direct) > 0 {
		ours, theirs := percentile(toScale, 50), percentile(direct, 50)
		t.Logf("figure %s: a wake takes %.1f times what the change alone does", what, float64(ours)/float64(theirs))
		if ours > ratioBar*theirs+ratioRoom {
			t.Errorf("%s: request → spec.replicas %v, the change alone %v", what, ours, theirs)
		}
	}
}

// but gives durations without the longest n, as far as those are over the bar.
func but(all []time.Duration, n int, bar time.Duration) []time.Duration {
	left := slices.Sorted(slices.Values(all))
	for ; n > 0 && len(left) > 1 && left[len(left)-1] > bar; n-- {
		left = left[:len(left)-1]
	}
	return left
}

// sentAgain counts the TCP segments that the edges' kernels have sent again; 0 where their processes cannot be reached.
func sentAgain(t *testing.T) (all int) {
	t.Helper()
	for pod := range strings.FieldsSeq(kubectl(t, "get", "pods", "-n", namespace, "-l", "app.kubernetes.io/component=edge", "-o", "jsonpath={.items[*].metadata.name}")) {
		pid, err := pidOf(t, pod)
		if errors.Is(err, errElsewhere) {
			return 0
		}
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", pid))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for line := range strings.Lines(string(raw)) {
			fields := strings.Fields(line)
			if fields[0] != "Tcp:" {
				continue
			}
			if names == nil {
				names = fields
				continue
			}
			n, err := strconv.Atoi(fields[slices.Index(names, "RetransSegs")])
			if err != nil {
				t.Fatalf("reading RetransSegs of %s: %v", pod, err)
			}
			all += n
		}
	}
	return all
}

// edgeWaited is how long a call waited in the edge, by its Server-Timing.
func edgeWaited(timing string) (all time.Duration, err error) {
	for part := range strings.SplitSeq(timing, ", ") {
		_, ms, _ := strings.Cut(part, ";dur=")
		n, err := strconv.ParseFloat(ms, 64)
		if err != nil {
			return 0, fmt.Errorf("reading Server-Timing %q: %w", timing, err)
		}
		all += time.Duration(n * float64(time.Millisecond))
	}
	return all, nil
}

// pace is a caller's, between wakes that are measured alone: after its first answer a pod goes on costing everybody for about a second.
const pace = 1500 * time.Millisecond

// TestWake: what we add to a wake, measured within it by others: the scale is asked for at once, and the answer follows as soon as
// the pod can be reached, with a readiness probe every 10 s.
func TestWake(t *testing.T) {
	needsCluster(t)
	installed(t)
	n := 6
	if full() {
		n = 30
	}
	names, others := sleeping(t, "wake", n), peers(t, "direct", n)
	o := observe(t, "wake", "direct")
	var all, direct []*sights
	for i, name := range names {
		time.Sleep(pace)
		s, err := o.wake(name)
		if err != nil {
			explain(t)
			t.Fatal(err)
		}
		all = append(all, s)
		time.Sleep(pace)
		if s, err = o.scale(others[i]); err != nil {
			t.Fatal(err)
		}
		direct = append(direct, s)
	}
	o.judge(t, "wake", all, direct)
}

// TestWakeWithoutALeader: the leading scaler is killed, and functions are woken within the next seconds.
func TestWakeWithoutALeader(t *testing.T) {
	needsCluster(t)
	installed(t)
	n := 8
	if full() {
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
	o.judge(t, "without a leader", all, nil)
	eventually(t, 40*time.Second, "another scaler leads", func() error {
		now, err := holder(t)
		if err == nil && now == old {
			err = errNotYet
		}
		return err
	})
	t.Logf("figure takeover: %v after the kill", time.Since(killed).Round(100*time.Millisecond))
}
