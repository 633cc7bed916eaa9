package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/deploy/local/internal/ports"
	"github.com/slimfaas/slimfaas/deploy/local/internal/proc"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// One host for all tests: it reaps every child of this program.
var (
	host   *proc.Host
	folder string
	demo   string // the demo function's program
	spare  *ports.Range
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if folder, err = os.MkdirTemp("", "fleet"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(folder)
	demo = filepath.Join(folder, "demo-function")
	if out, err := exec.Command("go", "build", "-o", demo, "../../demo-function").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("building the demo function: %v\n%s", err, out))
	}
	for _, name := range []string{"pids", "logs"} {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			panic(err)
		}
	}
	host, err = proc.NewHost(proc.Options{State: folder, PidDir: filepath.Join(folder, "pids"), LogDir: filepath.Join(folder, "logs"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	spare = ports.NewRange(19000, 19399)
	code := m.Run()
	if err := host.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// bundle is a fleet with one function and a watch on it.
type bundle struct {
	t     *testing.T
	fleet *Fleet
	watch *Watcher
	name  string
	state wire.LocalWorkload
	seen  []wire.LocalWorkload
}

// setup starts a fleet with one function of the demo program; alter may change it.
func setup(t *testing.T, alter func(*manifest.Function, *Options)) *bundle {
	t.Helper()
	f := manifest.Function{
		Name: strings.ToLower(fmt.Sprintf("f%x", time.Now().UnixNano())), Command: []string{demo}, Dir: folder,
		Health: manifest.Health{Path: "/health", Period: time.Second, Timeout: 2 * time.Second, StartupTimeout: time.Minute},
		Spec:   function.Specification{ReplicasAtStart: 2},
	}
	f.Shutdown.Timeout = 5 * time.Second
	o := Options{Namespace: "test", Host: host, Ports: spare, Environ: os.Environ(), URL: "http://127.0.0.1:1", Log: slog.New(slog.DiscardHandler)}
	if alter != nil {
		alter(&f, &o)
	}
	b := &bundle{t: t, fleet: New(o, []manifest.Function{f}), name: f.Name}
	b.watch = b.fleet.Watch()
	for _, line := range b.watch.First {
		b.take(line)
	}
	b.fleet.Start()
	t.Cleanup(b.fleet.Stop)
	return b
}

func (b *bundle) take(line []byte) {
	var e wire.LocalEvent
	if err := json.Unmarshal(line, &e); err != nil {
		b.t.Fatalf("event %q: %v", line, err)
	}
	if e.Type == wire.LocalEventWorkload {
		b.state = *e.Workload
		b.seen = append(b.seen, b.state)
	}
}

// await follows the watch until ok says so.
func (b *bundle) await(what string, ok func(wire.LocalWorkload) bool) {
	b.t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok(b.state) {
		select {
		case line, open := <-b.watch.Next:
			if !open {
				b.t.Fatalf("waiting for %s: the watch was cut", what)
			}
			b.take(line)
		case <-deadline:
			b.t.Fatalf("waiting for %s: the state is %+v", what, b.state)
		}
	}
}

// names lists the replicas in a state.
func names(w wire.LocalWorkload, state string) []string {
	var out []string
	for _, r := range w.Replicas {
		if r.State == state {
			out = append(out, r.Name[strings.LastIndexByte(r.Name, '-')+1:])
		}
	}
	return out
}

func ready(indexes ...string) func(wire.LocalWorkload) bool {
	return func(w wire.LocalWorkload) bool {
		return slices.Equal(names(w, wire.LocalReady), indexes) && len(w.Replicas) == len(indexes)
	}
}

func (b *bundle) scale(n int, epoch uint64, victims ...string) {
	b.t.Helper()
	_, workloads := b.fleet.Status()
	scaled, err := b.fleet.Scale(wire.LocalScale{Function: b.name, Replicas: n, Epoch: epoch, IfRevision: workloads[0].Revision, Victims: victims})
	if err != nil || scaled.Wanted != n {
		b.t.Fatalf("scaling to %d: %+v, %v", n, scaled, err)
	}
}

func TestScalingStopsVictimsThenTheHighestAndFillsTheLowestFreePlaces(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.scale(3, 1)
	b.await("three ready", ready("0", "1", "2"))
	b.scale(2, 1, "fn-"+b.name+"-0")
	b.await("the victim gone", ready("1", "2"))
	b.scale(3, 1)
	b.await("the free place filled", ready("0", "1", "2"))
	b.scale(1, 1)
	b.await("the highest gone", ready("0"))
	b.scale(0, 1)
	b.await("all gone", func(w wire.LocalWorkload) bool { return len(w.Replicas) == 0 && w.Wanted == 0 })
}

func TestAReplicaBeingStoppedIsNotWantedAnyMoreAndItsPlaceIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.scale(1, 1)
	b.await("ready", ready("0"))
	// A request that runs holds the process for as long as it takes.
	res, err := testkit.Client.Get(fmt.Sprintf("http://127.0.0.1:%d/slow?ms=1500&early=1", b.state.Replicas[0].Port))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b.scale(0, 1)
	b.await("stopping", func(w wire.LocalWorkload) bool { return w.Wanted == 0 && len(names(w, wire.LocalStopping)) == 1 })
	if _, err := b.fleet.Wake(wire.LocalWake{Function: b.name}); err != nil {
		t.Fatal(err)
	}
	b.await("woken while one stops", func(w wire.LocalWorkload) bool {
		return w.Wanted == 2 && slices.Equal(names(w, wire.LocalReady), []string{"1", "2"}) && len(names(w, wire.LocalStopping)) == 1
	})
	if body, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(body), "waited") {
		t.Errorf("the request in the stopped replica ended with %q, %v", body, err)
	}
	b.await("the old one gone", ready("1", "2"))
}

func TestAWakeRaisesZeroOnly(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	first, err := b.fleet.Wake(wire.LocalWake{Function: b.name, IfRevision: b.state.Revision})
	if err != nil || first.Wanted != 2 {
		t.Fatalf("waking: %+v, %v", first, err)
	}
	// Another that heard the same wake, with the revision it saw before: what it wants is so already.
	again, err := b.fleet.Wake(wire.LocalWake{Function: b.name, IfRevision: b.state.Revision})
	if err != nil || again != first {
		t.Errorf("waking again: %+v, %v; want %+v", again, err, first)
	}
	b.await("ready", ready("0", "1"))
	b.scale(0, 1)
	if _, err := b.fleet.Wake(wire.LocalWake{Function: b.name, IfRevision: first.Revision}); !errors.Is(err, ErrConflict) {
		t.Errorf("waking under an old revision: %v, want a conflict", err)
	}
	if _, err := b.fleet.Wake(wire.LocalWake{Function: "nobody"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("waking nobody: %v", err)
	}
}

func TestAnOldEpochAndAnOldRevisionChangeNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.scale(1, 7)
	_, workloads := b.fleet.Status()
	now := workloads[0]
	for _, c := range []struct {
		name  string
		scale wire.LocalScale
		want  error
	}{
		{"epoch below", wire.LocalScale{Function: b.name, Replicas: 0, Epoch: 6, IfRevision: now.Revision}, ErrEpoch},
		{"revision before", wire.LocalScale{Function: b.name, Replicas: 0, Epoch: 7, IfRevision: now.Revision - 1}, ErrConflict},
		{"revision missing", wire.LocalScale{Function: b.name, Replicas: 0, Epoch: 7}, ErrConflict},
		{"negative", wire.LocalScale{Function: b.name, Replicas: -1, Epoch: 7, IfRevision: now.Revision}, ErrInvalid},
		{"unknown", wire.LocalScale{Function: "nobody", Replicas: 1, Epoch: 7}, ErrUnknown},
		{"epoch above, revision before", wire.LocalScale{Function: b.name, Replicas: 0, Epoch: 9, IfRevision: 1}, ErrConflict},
		{"epoch below the refused one", wire.LocalScale{Function: b.name, Replicas: 0, Epoch: 8, IfRevision: now.Revision}, ErrEpoch},
	} {
		scaled, err := b.fleet.Scale(c.scale)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if !errors.Is(c.want, ErrUnknown) && (scaled.Wanted != 1 || scaled.Revision != now.Revision) {
			t.Errorf("%s: the state %+v is not told", c.name, scaled)
		}
	}
}

func TestTheAddressIsToldBeforeTheReplicaListens(t *testing.T) {
	t.Parallel()
	b := setup(t, func(f *manifest.Function, _ *Options) {
		f.Spec.ReplicasAtStart = 1
		f.Environment = map[string]string{"START_DELAY_MS": "300"}
	})
	if _, err := b.fleet.Wake(wire.LocalWake{Function: b.name}); err != nil {
		t.Fatal(err)
	}
	b.await("an address", func(w wire.LocalWorkload) bool { return len(w.Replicas) == 1 })
	r := b.state.Replicas[0]
	if r.State != wire.LocalStarting || r.Port == 0 || r.Host == "" || r.PID == 0 || r.Instance == "" || r.HealthPath != "/health" {
		t.Errorf("the first word of a replica is %+v", r)
	}
	if _, err := testkit.Client.Get(fmt.Sprintf("http://%s:%d/health", r.Host, r.Port)); err == nil {
		t.Error("it listens already: nothing was shown")
	}
	b.await("ready", ready("0"))
	if !b.state.Replicas[0].WasReady {
		t.Error("ready, but not WasReady")
	}
}

func TestACrashedReplicaComesBackAsAnotherInstance(t *testing.T) {
	t.Parallel()
	b := setup(t, func(f *manifest.Function, _ *Options) { f.Spec.ReplicasMin = 1 })
	b.await("ready at its minimum", ready("0"))
	before := b.state.Replicas[0]
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.await("back-off", func(w wire.LocalWorkload) bool { return len(names(w, wire.LocalBackoff)) == 1 })
	if r := b.state.Replicas[0]; r.Port != 0 || r.PID != 0 || !strings.Contains(r.Detail, "killed") || r.WasReady {
		t.Errorf("a dead replica is told as %+v", r)
	}
	b.await("ready again", ready("0"))
	if after := b.state.Replicas[0]; after.Instance == before.Instance || after.PID == before.PID {
		t.Errorf("the successor %+v looks like %+v", after, before)
	}
}

func TestWithoutRestartTheDeadStayDeadUntilScaled(t *testing.T) {
	t.Parallel()
	b := setup(t, func(f *manifest.Function, o *Options) { f.Spec.ReplicasMin, o.NoRestart = 1, true })
	b.await("ready", ready("0"))
	if err := syscall.Kill(b.state.Replicas[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.await("dead", func(w wire.LocalWorkload) bool { return len(names(w, wire.LocalBackoff)) == 1 })
	if detail := b.state.Replicas[0].Detail; !strings.Contains(detail, "--no-restart") {
		t.Errorf("the reason is %q", detail)
	}
	b.scale(0, 1)
	b.await("gone", func(w wire.LocalWorkload) bool { return len(w.Replicas) == 0 })
}

func TestAProgramThatCannotStartIsToldAndTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, func(f *manifest.Function, _ *Options) { f.Spec.ReplicasMin, f.Command = 1, []string{"./nothing-here"} })
	b.await("the second crash", func(w wire.LocalWorkload) bool {
		return len(w.Replicas) == 1 && strings.Contains(w.Replicas[0].Detail, "crash 2")
	})
	if !strings.Contains(b.state.Replicas[0].Detail, "nothing-here is not there") {
		t.Errorf("the reason is %q", b.state.Replicas[0].Detail)
	}
}

func TestAReplicaThatNeverGetsReadyIsReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t, func(f *manifest.Function, _ *Options) {
		f.Spec.ReplicasMin, f.Command, f.Health.StartupTimeout = 1, []string{"sleep", "1000"}, 300*time.Millisecond
	})
	b.await("given up", func(w wire.LocalWorkload) bool {
		return len(w.Replicas) == 1 && strings.Contains(w.Replicas[0].Detail, "not ready for 300ms")
	})
}

func TestGrandchildrenDieWithTheirReplica(t *testing.T) {
	t.Parallel()
	mark := fmt.Sprint(time.Now().UnixNano())
	// One in the replica's group and one that left it (setsid).
	script := "sleep 7" + mark[8:] + " & setsid sleep 8" + mark[8:] + " & exec " + demo
	b := setup(t, func(f *manifest.Function, _ *Options) {
		f.Spec.ReplicasMin, f.Command = 1, []string{"sh", "-c", script}
	})
	b.await("ready", ready("0"))
	if n := running(mark[8:]); n != 2 {
		t.Fatalf("%d grandchildren run, want 2", n)
	}
	b.scale(0, 1)
	b.await("gone", func(w wire.LocalWorkload) bool { return len(w.Replicas) == 0 })
	for deadline := time.Now().Add(5 * time.Second); running(mark[8:]) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d grandchildren outlive their replica", running(mark[8:]))
		}
		time.Sleep(time.Millisecond)
	}
}

// running counts sleeps whose argument ends with mark. (No ps here: the host reaps every child.)
func running(mark string) int {
	found := 0
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		content, _ := os.ReadFile(path)
		words := strings.Split(strings.TrimRight(string(content), "\x00"), "\x00")
		if words[0] == "sleep" && strings.HasSuffix(words[len(words)-1], mark) {
			found++
		}
	}
	return found
}

func TestTheShutdownHookIsPostedBeforeTheSignal(t *testing.T) {
	t.Parallel()
	b := setup(t, func(f *manifest.Function, _ *Options) {
		f.Spec.ReplicasMin, f.Shutdown.Path = 1, "/shutdown"
	})
	b.await("ready", ready("0"))
	name := b.state.Replicas[0].Name
	b.scale(0, 1)
	b.await("gone", func(w wire.LocalWorkload) bool { return len(w.Replicas) == 0 })
	var log []byte
	testkit.Eventually(t, 10*time.Second, "its last line is copied into its log", func() (copied bool) {
		log, _ = os.ReadFile(filepath.Join(folder, "logs", name+".log"))
		return strings.Contains(string(log), "told to end")
	})
	if hook := strings.Index(string(log), "asked by the shutdown hook"); hook < 0 || hook > strings.Index(string(log), "told to end") {
		t.Errorf("want the hook, then the signal; the log is\n%s", log)
	}
}

func TestADebugURLGivesOneReplicaThatIsNeverScaled(t *testing.T) {
	t.Parallel()
	b := setup(t, func(f *manifest.Function, _ *Options) { f.Spec.ReplicasMin = 1 })
	b.await("something to point at", ready("0"))
	url := fmt.Sprintf("http://127.0.0.1:%d", b.state.Replicas[0].Port)
	d := setup(t, func(f *manifest.Function, _ *Options) { f.Name, f.DebugURL, f.Command = f.Name+"d", url, nil })
	d.await("the virtual replica ready", func(w wire.LocalWorkload) bool {
		return w.Fixed && w.Wanted == 1 && len(w.Replicas) == 1 && w.Replicas[0].State == wire.LocalReady && w.Replicas[0].Name == d.name+"-debug"
	})
	if _, err := d.fleet.Scale(wire.LocalScale{Function: d.name, Replicas: 0, Epoch: 1, IfRevision: d.state.Revision}); !errors.Is(err, ErrInvalid) {
		t.Errorf("scaling it: %v", err)
	}
	b.scale(0, 1)
	d.await("its end seen", func(w wire.LocalWorkload) bool { return w.Replicas[0].State == wire.LocalNotReady })
}

func TestASlowWatcherIsCutAndNobodyWaitsForIt(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	for range watchBuffer + 1 {
		b.fleet.SetPart(wire.LocalPart{Name: "edge-0", Alive: true})
	}
	n := 0
	for range b.watch.Next { // ends because it was closed
		n++
	}
	if n != watchBuffer {
		t.Errorf("%d events were kept, want %d", n, watchBuffer)
	}
	b.fleet.SetPart(wire.LocalPart{Name: "edge-0"})
}

func TestRevisionsOnlyGrowAndAnUnchangedCountKeepsIts(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.scale(1, 1)
	b.await("ready", ready("0"))
	before := b.state.Revision
	b.scale(1, 1)
	if _, workloads := b.fleet.Status(); workloads[0].Revision != before {
		t.Errorf("asking for what is so already moved the revision from %d to %d", before, workloads[0].Revision)
	}
	last := uint64(0)
	for _, w := range b.seen {
		if w.Revision < last {
			t.Errorf("the revision went from %d to %d", last, w.Revision)
		}
		last = w.Revision
	}
}
