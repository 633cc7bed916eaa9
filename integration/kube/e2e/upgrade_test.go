package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// load calls a function at a rate and hands over async calls, and keeps count.
type load struct {
	sent, failed atomic.Int64
	open         atomic.Int64 // sync calls under way
	excused      atomic.Int64 // calls that were under way when somebody was killed
	first        atomic.Pointer[string]
	mu           sync.Mutex
	accepted     []string
	refused      atomic.Int64
	stop         chan struct{}
	work         sync.WaitGroup
}

func startLoad(function string, perSecond int) *load {
	l := &load{stop: make(chan struct{})}
	l.work.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			if i%10 == 0 {
				l.work.Go(func() {
					status, _, header, err := do(http.MethodPost, "/async-function/"+function+"/hello/x", nil, "x")
					if err != nil || status != http.StatusAccepted {
						l.refused.Add(1)
						return
					}
					l.mu.Lock()
					l.accepted = append(l.accepted, header.Get("SlimFaas-Element-Id"))
					l.mu.Unlock()
				})
				continue
			}
			l.sent.Add(1)
			l.open.Add(1)
			l.work.Go(func() {
				defer l.open.Add(-1)
				status, body, _, err := do(http.MethodGet, "/function/"+function+"/hello/x", nil, "")
				if err != nil || status != http.StatusOK {
					l.failed.Add(1)
					text := fmt.Sprintf("%s %d %s %v", time.Now().Format("15:04:05.000"), status, body, err)
					l.first.CompareAndSwap(nil, &text)
				}
			})
		}
	})
	return l
}

// end stops the load, and waits until every accepted async call has succeeded. mayFail of the sync calls may have failed, and those
// that were excused.
func (l *load) end(t *testing.T, what string, mayFail int64) {
	t.Helper()
	close(l.stop)
	l.work.Wait()
	mayFail += l.excused.Load()
	if n := l.failed.Load(); n > mayFail {
		t.Errorf("%s: %d of %d sync calls failed, the first: %s", what, n, l.sent.Load(), *l.first.Load())
	}
	for _, id := range l.accepted {
		eventually(t, 60*time.Second, "async call "+id, func() error {
			_, body, _, err := do(http.MethodGet, "/async-calls/"+id+"?wait=5s", nil, "")
			if err == nil && !strings.Contains(strings.ToLower(body), "succeeded") {
				err = fmt.Errorf("%w: %s", errNotYet, body)
			}
			return err
		})
	}
	t.Logf("figure %s: %d sync calls, %d failed (%d may); %d async calls accepted and carried out, %d refused", what, l.sent.Load(), l.failed.Load(), mayFail, len(l.accepted), l.refused.Load())
}

// ready waits until a function has n ready replicas in the eyes of every edge: the next call may come to any of them.
func ready(t *testing.T, function string, n int) {
	t.Helper()
	says := func(body string) error {
		if !strings.Contains(strings.ReplaceAll(body, " ", ""), fmt.Sprintf(`"NumberReady":%d,`, n)) {
			return fmt.Errorf("%w: %s", errNotYet, body)
		}
		return nil
	}
	what := fmt.Sprintf("%s has %d ready replicas", function, n)
	eventually(t, 90*time.Second, what, func() error {
		_, body, _, err := do(http.MethodGet, "/status-function/"+function, nil, "")
		if err == nil {
			err = says(body)
		}
		return err
	})
	eventually(t, 30*time.Second, what+" at every edge", func() error {
		for _, edge := range edges(t) {
			answer, err := client.Get(edge + "/status-function/" + function)
			if err != nil {
				return err
			}
			body, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if err == nil {
				err = says(string(body))
			}
			if err != nil {
				return fmt.Errorf("%s: %w", edge, err)
			}
		}
		return nil
	})
}

// edges are the URLs of every edge pod there is, past the Service.
func edges(t *testing.T) (all []string) {
	t.Helper()
	for ip := range strings.FieldsSeq(kubectl(t, "get", "pods", "-n", namespace, "-l", "app.kubernetes.io/component=edge", "-o", "jsonpath={.items[*].status.podIP}")) {
		all = append(all, "http://"+ip+":5000")
	}
	return all
}

// next is a second tag of the images the harness pushes; the same tag stands for it on a cluster that has no other.
func next(image string) string {
	if os.Getenv("E2E_CLUSTER_DIR") == "" {
		return image + ":dev"
	}
	return image + ":next"
}

// TestChangesUnderLoadLoseNothing: scale-downs, rollouts of the function, its pods deleted by hand and its containers killed, and a
// rolling restart and upgrade of each tier.
func TestChangesUnderLoadLoseNothing(t *testing.T) {
	needsCluster(t)
	installed(t)
	scales, rollouts, abrupt := 2, 1, 1
	if full() {
		scales, rollouts, abrupt = 10, 20, 5
	}
	// As docs/kubernetes.md has it: what is on its way when a pod is told to end still arrives.
	apply(t, strings.Replace(fn("Deployment", "busy", "ReplicasMin", "1", "NumberParallelRequest", "100"), "          ports:", "          lifecycle: {preStop: {sleep: {seconds: 2}}}\n          ports:", 1))
	ready(t, "busy", 1)
	var l *load
	phase := func(name string, run func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			l = startLoad("busy", 200)
			run(t)
			l.end(t, name, 0)
		})
	}
	phase("scale-downs", func(t *testing.T) {
		for range scales {
			scaleTo(t, "busy", 5)
			ready(t, "busy", 5)
			scaleTo(t, "busy", 1)
			ready(t, "busy", 1)
		}
		scaleTo(t, "busy", 2)
		ready(t, "busy", 2)
	})
	phase("rollouts", func(t *testing.T) {
		rollOut(t, "busy", rollouts)
	})
	t.Run("rollouts of one that refuses at once", func(t *testing.T) {
		apply(t, fn("Deployment", "abrupt", "ReplicasMin", "2", "NumberParallelRequest", "100"))
		ready(t, "abrupt", 2)
		l := startLoad("abrupt", 200)
		rollOut(t, "abrupt", abrupt)
		l.end(t, "rollouts of one that refuses at once", int64(2*2*abrupt)) // what each of its pods had under way
		kubectl(t, "delete", "-n", namespace, "--wait=false", "deployment/abrupt")
	})
	phase("deleted pods", func(t *testing.T) {
		for range 2 {
			pods := strings.Fields(kubectl(t, "get", "pods", "-n", namespace, "-l", "app=busy", "--field-selector=status.phase=Running", "-o", "name"))
			kubectl(t, "delete", "-n", namespace, "--wait=true", pods[0]) // until it is gone, under load
			ready(t, "busy", 2)
		}
	})
	phase("killed containers", func(t *testing.T) {
		pods := strings.Fields(kubectl(t, "get", "pods", "-n", namespace, "-l", "app=busy", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}"))
		for _, pod := range pods { // each once: the kubelet starts it at once, and after a second kill 10 s later
			before := restarts(t, pod)
			killUnder(t, l, pod)
			eventually(t, 30*time.Second, "the kubelet has started it again", func() error {
				if restarts(t, pod) == before {
					return errNotYet
				}
				return nil
			})
			ready(t, "busy", 2)
		}
	})
	for _, tier := range []string{"deployment/slimfaas-scaler", "deployment/slimfaas-edge", "statefulset/slimfaas-queue"} {
		if !full() {
			continue // an upgrade is one, too
		}
		phase("rolling restart of "+tier, func(t *testing.T) {
			kubectl(t, "rollout", "restart", "-n", namespace, tier)
			rolledOut(t, tier)
		})
	}
	for _, part := range []string{"scaler", "edge", "queue"} {
		tier := "deployment/slimfaas-" + part
		if part == "queue" {
			tier = "statefulset/slimfaas-queue"
		}
		phase("upgrade of "+tier, func(t *testing.T) {
			kubectl(t, "set", "image", "-n", namespace, tier, part+"="+next("slimfaas/"+part))
			rolledOut(t, tier)
		})
	}
}

// killUnder kills the container of a pod, and excuses the calls that are under way at that moment or sent until it is gone, which may
// be its own.
func killUnder(t *testing.T, l *load, pod string) {
	t.Helper()
	pid, err := pidOf(t, pod)
	if err != nil {
		kill(t, pod) // on a cluster of somebody else's the pod is deleted
		return
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("watch the process %d: %v", pid, err)
	}
	defer unix.Close(process) //nolint:errcheck // nothing was written to it
	own, before := l.open.Load(), l.sent.Load()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Readable once the last of its threads has ended, and closed its connections with that.
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, 5000) //nolint:gosec // a descriptor is a small number
		if errors.Is(err, unix.EINTR) {
			continue // a signal of Go's own
		}
		if n != 1 {
			t.Fatalf("the killed process %d does not end: %v", pid, err)
		}
		break
	}
	l.excused.Add(own + l.sent.Load() - before)
}

// rollOut gives a function of the demo image another one, and back, n times.
func rollOut(t *testing.T, function string, n int) {
	t.Helper()
	for i := range n {
		image := "slimfaas/demo-function:dev"
		if i%2 == 0 {
			image = next("slimfaas/demo-function")
		}
		kubectl(t, "set", "image", "-n", namespace, "deployment/"+function, "demo="+image)
		rolledOut(t, "deployment/"+function)
	}
}

func rolledOut(t *testing.T, what string) {
	t.Helper()
	if _, err := try(t.Context(), "", "rollout", "status", "-n", namespace, what, "--timeout=300s"); err != nil {
		explain(t)
		t.Fatal(err)
	}
}

// restarts of the container of a pod; -1: there is none yet.
func restarts(t *testing.T, pod string) int {
	t.Helper()
	n, err := strconv.Atoi(kubectl(t, "get", "pod", pod, "-n", namespace, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"))
	if err != nil {
		return -1
	}
	return n
}
