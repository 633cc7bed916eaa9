package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/api"
	"github.com/slimfaas/slimfaas/shared/keys"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// bin holds the programs: bin/local and the demo function as they are, and one stand-in as edge, queue and scaler.
var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if bin, err = os.MkdirTemp("", "local"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(bin)
	for program, source := range map[string]string{"local": ".", "demo-function": "./demo-function", "edge": "./testdata/part"} {
		if out, err := exec.Command("go", "build", "-o", filepath.Join(bin, program), source).CombinedOutput(); err != nil {
			panic(fmt.Sprintf("building %s: %v\n%s", program, err, out))
		}
	}
	for _, program := range []string{"queue", "scaler"} {
		if err := os.Link(filepath.Join(bin, "edge"), filepath.Join(bin, program)); err != nil {
			panic(err)
		}
	}
	return m.Run()
}

// ports of the manifests: each stack has its own hundred.
var (
	hundredMu sync.Mutex
	hundred   = 170
)

// stackUp is a supervisor that runs.
type stackUp struct {
	t        *testing.T
	state    string
	manifest string
	entry    int
	cmd      *exec.Cmd
	ready    chan struct{}
	ended    chan struct{}
	output   *bytes.Buffer // stderr, readable once ended
}

// write makes a manifest of one function and one process, in a folder with a state directory.
func write(t *testing.T, extra string) *stackUp {
	t.Helper()
	hundredMu.Lock()
	base := hundred * 100
	hundred++
	hundredMu.Unlock()
	dir := t.TempDir()
	s := &stackUp{t: t, state: filepath.Join(dir, "state"), manifest: filepath.Join(dir, "m.yaml"), entry: base}
	text := fmt.Sprintf(`
cluster: {nodes: 3, edges: 2, entrypointPort: %d}
processPorts: {from: %d, to: %d}
functions:
  hello:
    command: [%s/demo-function]
    annotations: {SlimFaas/Function: "true", SlimFaas/ReplicasMin: "1"}
processes:
  web: {command: [%s/demo-function], port: auto}
%s`, base, base+20, base+99, bin, bin, extra)
	if err := os.WriteFile(s.manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range s.marked() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return s
}

// start runs bin/local in the foreground.
func (s *stackUp) start(args ...string) {
	s.t.Helper()
	s.cmd = exec.Command(filepath.Join(bin, "local"), append([]string{"-f", s.manifest, "--state", s.state}, args...)...)
	s.cmd.Env = append(os.Environ(), "EDGE_SOMETHING=passed", "QUEUE_SOMETHING=passed", "OTHER_SECRET=hidden")
	s.output, s.ready, s.ended = &bytes.Buffer{}, make(chan struct{}), make(chan struct{})
	s.cmd.Stderr = s.output
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, ready, ended := s.cmd, s.ready, s.ended
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if lines.Text() == fmt.Sprintf("ready http://127.0.0.1:%d", s.entry) {
				close(ready)
			}
		}
		_ = cmd.Wait() // the tests look at the state
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
}

func (s *stackUp) awaitReady() {
	s.t.Helper()
	select {
	case <-s.ready:
	case <-s.ended:
		s.t.Fatalf("ended before it was ready:\n%s", s.output)
	case <-time.After(30 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.ended
		s.t.Fatalf("not ready:\n%s", s.output)
	}
}

// end sends a signal and waits for the exit code.
func (s *stackUp) end(signal syscall.Signal) int {
	s.t.Helper()
	_ = s.cmd.Process.Signal(signal)
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second):
		s.t.Fatal("does not end")
	}
	return s.cmd.ProcessState.ExitCode()
}

// marked lists what carries the mark of the state directory in its environment.
func (s *stackUp) marked() []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		content, _ := os.ReadFile(file)
		pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
		if slices.Contains(strings.Split(string(content), "\x00"), "SLIMFAAS_LOCAL_STATE="+s.state) && !zombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func zombie(pid int) bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.HasPrefix(content[bytes.LastIndexByte(content, ')')+1:], []byte(" Z"))
}

func (s *stackUp) pid(name string) int {
	content, _ := os.ReadFile(filepath.Join(s.state, "pids", name+".pid"))
	var pid int
	var start uint64
	_, _ = fmt.Sscan(string(content), &pid, &start) // 0 while it is not there
	return pid
}

func (s *stackUp) client() *api.Client {
	s.t.Helper()
	token, err := secret.Read(filepath.Join(s.state, "secrets"), keys.Local)
	if err != nil {
		s.t.Fatal(err)
	}
	return api.NewClient(s.state, token)
}

func (s *stackUp) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("never: %s", what)
		}
	}
}

var everything = []string{"queue-0", "queue-1", "queue-2", "edge-0", "edge-1", "scaler-0", "fn-hello-0", "process-web"}

func TestEverythingStartsAndNothingIsLeftAtTheEnd(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	s.start()
	s.awaitReady()
	for _, name := range everything {
		s.eventually(name+" runs", func() bool { return s.pid(name) > 0 })
	}
	content, err := os.ReadFile(filepath.Join(s.state, "ports.json"))
	if err != nil {
		t.Fatal(err)
	}
	var book map[string]map[string]int
	if err := json.Unmarshal(content, &book); err != nil {
		t.Fatal(err)
	}
	if book["edge-1"]["public"] != s.entry+1 || book["queue-2"]["raft"] == 0 || book["scaler-0"]["api"] == 0 {
		t.Errorf("ports.json is %s", content)
	}
	log, err := os.ReadFile(filepath.Join(s.state, "logs", "edge-0.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"EDGE_SOMETHING=passed", "EDGE_INTERNAL_ON_PUBLIC=true", fmt.Sprintf("EDGE_PUBLIC_ADDRESS=:%d", s.entry), "EDGE_SECRETS_DIR="} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the environment of edge-0 lacks %s", want)
		}
	}
	token, _ := secret.Read(filepath.Join(s.state, "secrets"), "token-edge")
	for _, not := range []string{"QUEUE_SOMETHING", "OTHER_SECRET", token} {
		if strings.Contains(string(log), not) {
			t.Errorf("the environment of edge-0 has %s", not)
		}
	}
	out, err := exec.Command(filepath.Join(bin, "local"), "status", "--state", s.state).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "fn-hello-0") || !strings.Contains(string(out), "edge-1") {
		t.Errorf("status says %v:\n%s", err, out)
	}
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d:\n%s", code, s.output)
	}
	if left := s.marked(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if pids, _ := filepath.Glob(filepath.Join(s.state, "pids", "*")); len(pids) > 0 {
		t.Errorf("pid files are left: %v", pids)
	}
	order, _ := os.ReadFile(filepath.Join(s.state, "order"))
	if got := strings.Fields(string(order)); !slices.Equal(got, []string{"EDGE", "EDGE", "SCALER", "QUEUE", "QUEUE", "QUEUE"}) {
		t.Errorf("they ended in the order %v", got)
	}
}

func TestADeadPartIsBackWithinASecond(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	s.start()
	s.awaitReady()
	for _, name := range []string{"edge-0", "queue-1", "scaler-0"} {
		before := s.pid(name)
		began := time.Now()
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.eventually(name+" is back", func() bool { now := s.pid(name); return now > 0 && now != before })
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s came back after %v", name, took)
		}
	}
	s.end(syscall.SIGINT)
	if left := s.marked(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

func TestNoRestartLeavesTheDeadDead(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	s.start("--no-restart")
	s.awaitReady()
	for _, name := range []string{"edge-0", "queue-1", "fn-hello-0"} {
		if err := syscall.Kill(s.pid(name), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.eventually("these deaths, and no other, are told", func() bool {
		status, err := s.client().Status(t.Context())
		return err == nil && status.Workloads[0].Replicas[0].State == wire.LocalBackoff &&
			!slices.ContainsFunc(status.Parts, func(p wire.LocalPart) bool {
				dead := p.Name == "edge-0" || p.Name == "queue-1"
				return p.Alive == dead
			})
	})
}

func TestAfterKill9OfTheSupervisorTheNextStartFindsNothingAlive(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	s.start()
	s.awaitReady()
	s.eventually("grandchildren run", func() bool { return len(s.marked()) >= len(everything)+6 })
	before := s.marked()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	// The children die of their parent-death signal, at once; grandchildren that left their groups stay until the next start.
	s.eventually("children are dead", func() bool { return len(s.marked()) <= 6 })
	s.start()
	s.awaitReady()
	for _, pid := range before {
		if slices.Contains(s.marked(), pid) {
			t.Errorf("process %d of the killed run is still there", pid)
		}
	}
	s.end(syscall.SIGTERM)
	if left := s.marked(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if !strings.Contains(s.output.String(), "ended what an earlier run left") {
		t.Errorf("the second start does not say so:\n%s", s.output)
	}
}

func TestASecondSupervisorIsRefusedWithTheNameOfTheFirst(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	s.start()
	s.awaitReady()
	out, err := exec.Command(filepath.Join(bin, "local"), "-f", s.manifest, "--state", s.state).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), fmt.Sprintf("pid %d", s.cmd.Process.Pid)) {
		t.Errorf("got %v:\n%s", err, out)
	}
	if s.pid("edge-0") == 0 {
		t.Error("the refused one harmed the first")
	}
}

func TestABusyEntryPortIsNamedWithItsHolder(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", s.entry))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.start()
	<-s.ended
	want := fmt.Sprintf("port %d for edge-0 (public) is in use by", s.entry)
	if code := s.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(s.output.String(), want) || !strings.Contains(s.output.String(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("exit code %d:\n%s", code, s.output)
	}
}

func TestEphemeralStateIsEmptyAtTheEnd(t *testing.T) {
	t.Parallel()
	s := write(t, "state: {mode: ephemeral}\n")
	s.start()
	s.awaitReady()
	if _, err := os.Stat(filepath.Join(s.state, "queue-0", "data")); err != nil {
		t.Fatal(err)
	}
	s.end(syscall.SIGTERM)
	if left, _ := filepath.Glob(filepath.Join(s.state, "queue-*")); len(left) > 0 {
		t.Errorf("data is left: %v", left)
	}
}

func TestAnotherNumberOfQueueNodesIsRefusedUnlessClean(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	s.start()
	s.awaitReady()
	s.end(syscall.SIGTERM)
	over := filepath.Join(filepath.Dir(s.manifest), "over.yaml")
	if err := os.WriteFile(over, []byte("cluster: {nodes: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start("-f", over)
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(s.output.String(), "holds the data of 3 queue nodes, the manifest asks for 1") {
		t.Errorf("exit code %d:\n%s", code, s.output)
	}
	s.start("-f", over, "--clean")
	s.awaitReady()
	s.end(syscall.SIGTERM)
}

func TestTheSocketWorksInADeepDirectoryAndAsksForTheToken(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	s.state = filepath.Join(s.state, strings.Repeat("deep/", 30))
	s.state = filepath.Clean(s.state)
	s.start()
	s.awaitReady()
	if _, err := api.NewClient(s.state, "wrong").Status(t.Context()); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("a wrong token: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(s.state, "logs", "scaler-0.log"))
	if err != nil || !strings.Contains(string(log), "SCALER_PROCESS_SOCKET=local.sock\n") {
		t.Errorf("the scaler is not told a name it can dial: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var workload *wire.LocalWorkload
	pings := 0
	err = s.client().Watch(ctx, func(e wire.LocalEvent) bool {
		if e.Workload != nil {
			workload = e.Workload
		}
		if e.Type == wire.LocalEventPing {
			pings++
		}
		return pings < 1
	})
	if err != nil || workload == nil {
		t.Fatalf("watching: %v, %v", workload, err)
	}
	code, scaled, err := s.client().Change(ctx, wire.LocalPathScale, wire.LocalScale{Function: "hello", Replicas: 2, Epoch: 5, IfRevision: workload.Revision})
	if err != nil || code != http.StatusOK || scaled.Wanted != 2 {
		t.Fatalf("scaling: %d %+v %v", code, scaled, err)
	}
	for _, c := range []struct {
		path    string
		request any
		want    int
	}{
		{wire.LocalPathScale, wire.LocalScale{Function: "hello", Epoch: 5, IfRevision: workload.Revision}, http.StatusConflict},
		{wire.LocalPathScale, wire.LocalScale{Function: "hello", Epoch: 4, IfRevision: scaled.Revision}, http.StatusPreconditionFailed},
		{wire.LocalPathScale, wire.LocalScale{Function: "nobody", Epoch: 5}, http.StatusNotFound},
		{wire.LocalPathScale, map[string]any{"function": "hello", "bogus": 1}, http.StatusBadRequest},
		{wire.LocalPathWake, wire.LocalWake{Function: "hello"}, http.StatusOK},
	} {
		if code, got, err := s.client().Change(ctx, c.path, c.request); err != nil || code != c.want || code == http.StatusConflict && (got.Wanted != 2 || got.Revision != scaled.Revision) {
			t.Errorf("%s %+v: %d %+v %v, want %d", c.path, c.request, code, got, err, c.want)
		}
	}
}

func TestASecondSignalEndsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	s := write(t, `  stubborn: {command: [sh, -c, "trap '' TERM; while true; do sleep 1; done"]}`+"\n")
	s.start()
	s.awaitReady()
	s.eventually("the stubborn one runs", func() bool { return s.pid("process-stubborn") > 0 })
	began := time.Now()
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	s.eventually("the edges are gone", func() bool { return s.pid("edge-0") == 0 })
	s.end(syscall.SIGINT)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("took %v", took)
	}
	if left := s.marked(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

func TestCommandLines(t *testing.T) {
	t.Parallel()
	s := write(t, "")
	broken := filepath.Join(filepath.Dir(s.manifest), "broken.yaml")
	if err := os.WriteFile(broken, []byte("functions: {hello: {annotations: {SlimFaas/ReplicasMin: many}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"validate", "-f", s.manifest}, 0, "ok: slimfaas-local with 1 functions, 1 processes"},
		{[]string{"validate", "-f", s.manifest + "," + broken}, 2, "functions.hello.annotations.SlimFaas/ReplicasMin"},
		{[]string{"validate", "-f", "/nowhere.yaml"}, 2, "/nowhere.yaml: cannot be read"},
		{[]string{"validate", "-f", s.manifest, "--env-file", "/nowhere.env"}, 2, "/nowhere.env"},
		{[]string{"validate", "--clean", "-f", s.manifest}, 2, "--clean goes with up only"},
		{[]string{"bogus"}, 2, `unknown command "bogus"`},
		{[]string{"--bogus"}, 2, "bogus"},
		{[]string{"up", "-f", broken, "--state", s.state}, 2, "command is missing"},
		{[]string{"status", "--state", s.state}, 1, "nothing has run in"},
		{[]string{"--help"}, 0, "--no-restart"},
		{[]string{"version"}, 0, obs.Version},
	} {
		var out bytes.Buffer
		if code := command(c.args, nil, &out, io.MultiWriter(&out)); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("%v: exit code %d, want %d:\n%s", c.args, code, c.code, out.String())
		}
	}
}
