package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// part gives the pid of one of the harness's own parts.
func part(t *testing.T, name string) int {
	t.Helper()
	dir := os.Getenv("E2E_CLUSTER_DIR")
	if dir == "" {
		t.Skip("needs the harness's own cluster: nobody stops the API server of somebody else's")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "pid", name))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(raw), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestWithoutTheAPIServer: it hangs, the worst way of being gone: warm calls and queued calls of running functions go on, nothing is
// scaled on what is not known, and waking works again within seconds.
func TestWithoutTheAPIServer(t *testing.T) {
	needsCluster(t)
	pid := part(t, "apiserver")
	installed(t)
	outage := 15 * time.Second
	if full() {
		outage = 5 * time.Minute
	}
	apply(t, fn("Deployment", "warm", "ReplicasMin", "2", "NumberParallelRequest", "100")+fn("Deployment", "cold", "TimeoutSecondBeforeSetReplicasMin", "600")+
		fn("Deployment", "idle", "TimeoutSecondBeforeSetReplicasMin", "10"))
	ready(t, "warm", 2)
	eventually(t, 30*time.Second, "idle is awake", func() error { return get("/function/idle/hello/x") })
	// Past the Service: after 40 s Kubernetes itself takes the node for dead, and its pods out of every Service for a moment.
	t.Setenv("SLIMFAAS_URL_E2E", edges(t)[0])
	l := startLoad("warm", 50)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(resume)
	time.Sleep(outage) // that is the test
	resume()
	answered := make(chan time.Duration, 1)
	ended := time.Now()
	l.work.Go(func() {
		for time.Since(ended) < 2*time.Minute {
			if status, _, _, err := do(http.MethodGet, "/function/cold/hello/x", nil, ""); err == nil && status == http.StatusOK {
				answered <- time.Since(ended)
				return
			}
			time.Sleep(50 * time.Millisecond) // the caller's pace
		}
		t.Error("a sleeping function does not answer again")
		answered <- 0
	})
	raised := eventually(t, time.Minute, "a sleeping function is raised again", func() error {
		if wanted, _ := replicas(t, "deployment", "cold"); wanted != 1 {
			return errNotYet
		}
		return nil
	})
	figure(t, fmt.Sprintf("recovery from an outage of %v: a sleeping function is raised after", outage), raised.Round(10*time.Millisecond), 5*time.Second)
	// The rest is Kubernetes': its controllers wait up to half a minute between tries once an API server has been away for long.
	t.Logf("figure outage of %v: its call is answered after %v (a pod's start of about 1.5 s in it)", outage, (<-answered).Round(10*time.Millisecond))
	l.end(t, "outage of the API server", 0)
	if wanted, _ := replicas(t, "deployment", "warm"); wanted != 2 {
		t.Errorf("warm has %d replicas", wanted)
	}
}

// TestAStoppedLeaderWritesNothingLate: the leading scaler is frozen for longer than its Lease lives, and another has taken over when it
// goes on.
func TestAStoppedLeaderWritesNothingLate(t *testing.T) {
	needsCluster(t)
	_ = part(t, "apiserver") // the harness's own cluster
	installed(t)
	timeout, frozen, after := 15*time.Second, 22*time.Second, 5*time.Second
	if full() {
		timeout, frozen, after = 25*time.Second, time.Minute, 10*time.Second
	}
	apply(t, fn("Deployment", "kept", "TimeoutSecondBeforeSetReplicasMin", strconv.Itoa(int(timeout.Seconds()))))
	eventually(t, 30*time.Second, "kept is awake", func() error { return get("/function/kept/hello/x") })
	old, err := leader(t)
	if err != nil {
		t.Fatal(err)
	}
	if err := signal(t, old, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw := func() { _ = signal(t, old, syscall.SIGCONT) }
	defer thaw()
	began := time.Now()
	eventually(t, 25*time.Second, "another leads", func() error {
		now, err := leader(t)
		if err == nil && now == old {
			err = errNotYet
		}
		return err
	})
	t.Logf("figure takeover: another leads %v after the leader froze (bar 20 s)", time.Since(began).Round(100*time.Millisecond))
	// The frozen one would put "kept" to sleep by what it knew; calls that it never heard of keep it awake.
	for time.Since(began) < frozen {
		if err := get("/function/kept/hello/x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // the caller's pace
	}
	thaw()
	for until := time.Now().Add(after); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if err := get("/function/kept/hello/x"); err != nil {
			t.Fatal(err)
		}
		if wanted, _ := replicas(t, "deployment", "kept"); wanted != 1 {
			t.Fatalf("%d replicas after the old leader went on", wanted)
		}
	}
}
