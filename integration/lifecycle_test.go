package integration

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestStackLivesAndLeavesNothingBehind: a call wakes a function; there is one supervisor, parts that are killed come back, and
// however the supervisor ends, no process is left, or none once it was started again.
func TestStackLivesAndLeavesNothingBehind(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Functions: rec.yaml(fn{name: "hello"}, fn{name: "always", annotations: map[string]string{"ReplicasMin": "1"}})})
	if n := c.Replicas("hello"); n != 0 {
		t.Fatalf("%d replicas before the first call, want 0", n)
	}
	calls := func(function string) func() error {
		return func() error {
			status, body, err := c.Get(0, "/function/"+function+"/some/path?x=1")
			return wantStatus(status, 200, body, err)
		}
	}
	if err := calls("hello")(); err != nil {
		t.Fatalf("cold call: %v", err)
	}
	if got := rec.started(t, "hello"); len(got) != 1 || got[0].URI != "/some/path?x=1" {
		t.Fatalf("the function saw %+v", got)
	}

	second := exec.CommandContext(t.Context(), filepath.Join(cluster.Bin(), "local"), "-f", filepath.Join(c.State, "manifest.yaml"), "--state", c.State)
	second.Env = c.Env()
	if out, err := second.CombinedOutput(); err == nil || !bytes.Contains(out, []byte(c.State)) {
		t.Fatalf("a second bin/local: err %v, printed %s", err, out)
	}
	if err := calls("hello")(); err != nil {
		t.Fatalf("the first one after that: %v", err)
	}

	c.Eventually(10*time.Second, "a replica that always runs", calls("always"))
	for _, name := range []string{"queue-0", "queue-1", "queue-2", "scaler-0", "edge-0", "fn-always-0"} {
		c.Kill(name)
		c.Eventually(5*time.Second, name+" runs again", func() error {
			if c.PID(name) == 0 {
				return errNotYet
			}
			return nil
		})
	}
	c.Eventually(20*time.Second, "a call succeeds", calls("always"))

	c.Stop(syscall.SIGINT)
	c.CheckNothingLeft()
	c.Run()
	c.Stop(syscall.SIGKILL)
	c.Run()
	c.CheckAlive("queue-0", "queue-1", "queue-2", "edge-0", "scaler-0")
	c.Stop(syscall.SIGTERM)
	c.CheckNothingLeft()
}

func TestWarmCallsNeedNobody(t *testing.T) {
	inCompany(t)
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{NoRestart: true, Scalers: 2, Functions: rec.yaml(fn{name: "hello"})})
	call := func() error {
		status, body, err := c.Get(0, "/function/hello/")
		return wantStatus(status, 200, body, err)
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	failed := make(chan error, 1)
	count := make(chan int, 1)
	go func() {
		n := 0
		defer func() { count <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := call(); err != nil {
				select {
				case failed <- err:
				default:
				}
			}
			n++
		}
	}()
	for _, name := range []string{"scaler-0", "queue-0", "scaler-1", "queue-1", "queue-2"} {
		c.Kill(name)
	}
	// Ten seconds: longer than every session, lock and election timeout.
	pace(10 * time.Second)
	close(stop)
	n := <-count
	select {
	case err := <-failed:
		t.Fatalf("a warm call failed: %v", err)
	default:
	}
	if n < 100 {
		t.Fatalf("only %d warm calls in 10 s", n)
	}
}
