// Package cluster starts the real binaries from outside, through bin/local, and kills, pauses and asks them. It knows only
// what interface.md pins: the command line, ports.json, pids/, the HTTP surface.
package cluster

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
)

// Options of a cluster. The zero value is one edge, one scaler, three queue nodes, restarts on.
type Options struct {
	// Functions is the `functions:` section of the manifest, in YAML, indented by two spaces.
	Functions string
	Queues    int // 0: 3
	Edges     int // 0: 1
	Scalers   int // 0: 1
	Ports     int // for replicas of functions; 0: 200
	NoRestart bool
	Env       []string // for bin/local; EDGE_*, QUEUE_*, SCALER_* reach the programs
	State     string   // "": a directory of the test, removed with it
	Before    []string // -f files in front of ours: ours is then the overlay that wins
	Extra     string   // more top-level YAML sections of the manifest
	// Prelude is shell that runs in a program's process before the program, by program (queue, edge, scaler): a test puts
	// its proxies into the environment with it. See Redirect.
	Prelude map[string]string
}

// Cluster is one running local stack, as one test sees it.
type Cluster struct {
	t testing.TB
	*running
}

// running is the stack itself.
type running struct {
	opts     Options
	State    string
	manifest string
	port     int
	cmd      *exec.Cmd
	exited   chan struct{}
	mu       sync.Mutex
	output   bytes.Buffer   // guarded by mu
	seen     map[int]string // every pid ever listed, with its kernel start time; guarded by mu
	// ReadyAfter is how long the last start took until the stack said ready.
	ReadyAfter time.Duration
	bin        string // "": Bin()
}

// raceReports is where programs built with the race detector write what it found, with their pid behind it.
const raceReports = "race"

// Client is the HTTP client of tests: no proxy, no redirects, a pool large enough for the load tests.
var Client = &http.Client{
	Timeout:       150 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{MaxIdleConnsPerHost: 256, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext},
}

// Bin is the directory of the programs under test: SLIMFAAS_BIN, else bin/ of the repository.
func Bin() string {
	if dir := os.Getenv("SLIMFAAS_BIN"); dir != "" {
		return dir
	}
	dir, err := filepath.Abs("../bin")
	if err != nil {
		panic(err)
	}
	return dir
}

// Start writes the manifest, runs bin/local and waits until it says ready. The test's cleanup stops it and checks that no
// process is left.
func Start(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if _, err := os.Stat(filepath.Join(Bin(), "local")); err != nil {
		t.Fatalf("the programs are not built (run `make build`, or set SLIMFAAS_BIN): %v", err)
	}
	c := New(t, opts)
	c.Run()
	return c
}

// New prepares a cluster without running it.
func New(t testing.TB, opts Options) *Cluster {
	t.Helper()
	opts.Queues, opts.Edges, opts.Scalers = max(opts.Queues, 0), max(opts.Edges, 1), max(opts.Scalers, 1)
	if opts.Queues == 0 {
		opts.Queues = 3
	}
	c := &Cluster{t: t, running: &running{opts: opts, State: opts.State, seen: map[int]string{}}}
	if c.State == "" {
		dir, err := os.MkdirTemp("", "slimfaas-test-") //nolint:usetesting // t.TempDir is long, and a unix socket's path has at most 107 bytes
		if err != nil {
			t.Fatalf("making a state directory: %v", err)
		}
		c.State = dir
		t.Cleanup(func() {
			if t.Failed() && os.Getenv("SLIMFAAS_KEEP_LOGS") != "" {
				t.Logf("the state directory is kept: %s", dir)
				return
			}
			_ = os.RemoveAll(dir)
		})
	}
	if opts.Ports == 0 {
		opts.Ports = 200
	}
	from := freeRange(t, opts.Ports)
	c.port = freeRange(t, opts.Edges) // behind them: a large range begins anew at the lowest port
	c.manifest = filepath.Join(c.State, "manifest.yaml")
	text := fmt.Sprintf(`schemaVersion: 1
name: integration
cluster:
  nodes: %d
  edges: %d
  scalers: %d
  entrypointPort: %d
processPorts:
  from: %d
  to: %d
functions:
%s
%s`, opts.Queues, opts.Edges, opts.Scalers, c.port, from, from+opts.Ports-1, opts.Functions, opts.Extra)
	if err := os.WriteFile(c.manifest, []byte(text), 0o600); err != nil {
		t.Fatalf("writing the manifest: %v", err)
	}
	t.Cleanup(func() {
		c.Stop(syscall.SIGTERM)
		c.CheckNothingLeft()
		c.checkRaces()
		if t.Failed() {
			c.dump()
		}
	})
	return c
}

// Env is the environment of this process for programs of the stack. Where they are built with the race detector its reports go to
// files that fail the test at its end, and a program that has found nothing does not wait a second for more of them when it ends.
func (c *Cluster) Env() []string {
	return append(os.Environ(), "GORACE=atexit_sleep_ms=0 log_path="+filepath.Join(c.State, raceReports))
}

// With is the same stack for a subtest, which fails when a wait of its own fails.
func (c *Cluster) With(t testing.TB) *Cluster { return &Cluster{t: t, running: c.running} }

// Run starts bin/local on the prepared state directory and waits for ready.
func (c *Cluster) Run() {
	c.t.Helper()
	var args []string
	for _, f := range append(slices.Clone(c.opts.Before), c.manifest) {
		args = append(args, "-f", f)
	}
	args = append(args, "--state", c.State)
	if c.opts.NoRestart {
		args = append(args, "--no-restart")
	}
	c.cmd = exec.Command(filepath.Join(c.programs(), "local"), args...)
	c.cmd.Env = append(c.Env(), c.opts.Env...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM} // a run that is killed leaves no stack behind
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatalf("piping bin/local: %v", err)
	}
	c.cmd.Stderr = c.cmd.Stdout
	began := time.Now()
	if err := c.cmd.Start(); err != nil {
		c.t.Fatalf("starting bin/local: %v", err)
	}
	ready := make(chan struct{})
	exited := make(chan struct{})
	c.exited = exited
	go func() {
		defer close(exited)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		told := false
		for lines.Scan() {
			c.mu.Lock()
			c.output.Write(lines.Bytes())
			c.output.WriteByte('\n')
			c.mu.Unlock()
			if !told && strings.HasPrefix(lines.Text(), "ready http://") {
				told = true
				close(ready)
			}
		}
		_ = c.cmd.Wait()
	}()
	select {
	case <-ready:
		c.ReadyAfter = time.Since(began)
		c.note()
	case <-exited:
		c.t.Fatalf("bin/local ended before it was ready:\n%s", c.Output())
	case <-time.After(60 * time.Second):
		c.t.Fatalf("bin/local was not ready after 60 s:\n%s", c.Output())
	}
}

// Stop ends bin/local with a signal and waits for it. It may be called again.
func (c *Cluster) Stop(sig syscall.Signal) {
	if c.cmd == nil || c.cmd.Process == nil {
		return
	}
	select {
	case <-c.exited:
		return
	default:
	}
	c.note()
	_ = c.cmd.Process.Signal(sig)
	select {
	case <-c.exited:
	case <-time.After(40 * time.Second):
		c.t.Errorf("bin/local did not end within 40 s of %v", sig)
		_ = c.cmd.Process.Kill()
		<-c.exited
	}
}

// SupervisorPID is the pid of bin/local itself.
func (c *Cluster) SupervisorPID() int { return c.cmd.Process.Pid }

// Output is what bin/local has printed.
func (c *Cluster) Output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.output.String()
}

// URL of edge n.
func (c *Cluster) URL(n int) string { return fmt.Sprintf("http://127.0.0.1:%d", c.port+n) }

// Ports as ports.json has them.
func (c *Cluster) Ports() map[string]map[string]int {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.State, "ports.json"))
	if err != nil {
		c.t.Fatalf("reading ports.json: %v", err)
	}
	ports := map[string]map[string]int{}
	if err := json.Unmarshal(raw, &ports); err != nil {
		c.t.Fatalf("decoding ports.json: %v", err)
	}
	return ports
}

// PID of a process by its name in pids/, 0 when it has none.
func (c *Cluster) PID(name string) int {
	raw, err := os.ReadFile(filepath.Join(c.State, "pids", name+".pid"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw))
	if len(fields) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil || startTime(pid) == "" {
		return 0
	}
	return pid
}

// Names of the processes that have a pid file with this prefix.
func (c *Cluster) Names(prefix string) []string {
	files, _ := filepath.Glob(filepath.Join(c.State, "pids", prefix+"*.pid"))
	var names []string
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".pid")
		if c.PID(name) != 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Replicas is how many processes of a function run.
func (c *Cluster) Replicas(function string) int { return len(c.Names("fn-" + function + "-")) }

// Signal sends a signal to a process of the stack by name.
func (c *Cluster) Signal(name string, sig syscall.Signal) {
	c.t.Helper()
	c.note()
	pid := c.PID(name)
	if pid == 0 {
		c.t.Fatalf("no process %s to send %v to", name, sig)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		c.t.Fatalf("sending %v to %s (%d): %v", sig, name, pid, err)
	}
}

// Kill -9 a process of the stack and wait until bin/local has reaped it: a zombie may have threads that still hold its sockets.
func (c *Cluster) Kill(name string) {
	c.t.Helper()
	pid := c.PID(name)
	_, start := stat(pid)
	c.Signal(name, syscall.SIGKILL)
	c.Eventually(10*time.Second, name+" is gone", func() error {
		if _, now := stat(pid); now == start {
			return errors.New("still there")
		}
		return nil
	})
}

// Info is what GET /cluster says, as far as tests read it.
type Info struct {
	Queue struct {
		Leader       string
		Term         uint64
		AppliedIndex uint64
		Members      []struct{ Name string }
	}
	Scaler struct {
		Leader string
		Epoch  uint64
	}
	Edges []struct{ Name string }
}

// Info asks edge n.
func (c *Cluster) Info(n int) (Info, error) {
	var info Info
	status, body, err := c.Get(n, "/cluster")
	if err != nil {
		return info, err
	}
	if status != 200 {
		return info, fmt.Errorf("GET /cluster: %d %s", status, body)
	}
	return info, json.Unmarshal(body, &info)
}

// QueueLeader is the name of the queue leader, as edge n knows it.
func (c *Cluster) QueueLeader(n int) string {
	c.t.Helper()
	var leader string
	c.Eventually(15*time.Second, "a queue leader", func() error {
		info, err := c.Info(n)
		if err == nil && (info.Queue.Leader == "" || c.PID(info.Queue.Leader) == 0) {
			err = fmt.Errorf("leader %q", info.Queue.Leader)
		}
		leader = info.Queue.Leader
		return err
	})
	return leader
}

// ScalerLeader is the name of the leading scaler, as edge n knows it.
func (c *Cluster) ScalerLeader(n int) string {
	c.t.Helper()
	var leader string
	c.Eventually(20*time.Second, "a scaler leader", func() error {
		info, err := c.Info(n)
		if err == nil && (info.Scaler.Leader == "" || c.PID(info.Scaler.Leader) == 0) {
			err = fmt.Errorf("leader %q", info.Scaler.Leader)
		}
		leader = info.Scaler.Leader
		return err
	})
	return leader
}

// Get a path of edge n.
func (c *Cluster) Get(n int, path string) (int, []byte, error) {
	return c.Do(n, http.MethodGet, path, nil, nil)
}

// Do sends one request to edge n and reads the answer.
func (c *Cluster) Do(n int, method, path string, header http.Header, body []byte) (int, []byte, error) {
	status, _, answer, err := c.Send(n, method, path, header, body)
	return status, answer, err
}

// Send is Do with the answer's headers.
func (c *Cluster) Send(n int, method, path string, header http.Header, body []byte) (int, http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.URL(n)+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := Client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, answer, err
}

// Eventually polls a condition of the black box until it holds or the time is up.
func (c *Cluster) Eventually(limit time.Duration, what string, check func() error) {
	c.t.Helper()
	if err := Poll(c.t.Context(), limit, check); err != nil {
		c.t.Fatalf("%s did not hold within %v: %v", what, limit, err)
	}
}

// Poll a condition every 20 ms until it holds, the time is up or ctx ends.
func Poll(ctx context.Context, limit time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// CheckNothingLeft fails the test when a process that this cluster ever listed still lives.
func (c *Cluster) CheckNothingLeft() {
	c.t.Helper()
	err := Poll(context.Background(), 5*time.Second, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for pid, start := range c.seen {
			if startTime(pid) == start {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				return fmt.Errorf("process %d survived: %s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
			}
		}
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
}

// checkRaces fails the test when the race detector has found something in any program.
func (c *Cluster) checkRaces() {
	reports, _ := filepath.Glob(filepath.Join(c.State, raceReports+".*"))
	for _, path := range reports {
		report, err := os.ReadFile(path)
		if err != nil {
			c.t.Errorf("reading a report of the race detector: %v", err)
		}
		c.t.Errorf("%s: %s", filepath.Base(path), report)
	}
}

// note remembers every process there is now, so that CheckNothingLeft can look for it.
func (c *Cluster) note() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range c.Names("") {
		if pid := c.PID(name); pid != 0 {
			c.seen[pid] = startTime(pid)
		}
	}
}

// dump prints the tail of every log of a failed test.
func (c *Cluster) dump() {
	c.t.Logf("bin/local printed:\n%s", tail(c.Output(), 40))
	files, _ := filepath.Glob(filepath.Join(c.State, "logs", "*.log"))
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err == nil && len(raw) > 0 {
			c.t.Logf("--- %s\n%s", filepath.Base(f), tail(string(raw), 25))
		}
	}
	if dir := os.Getenv("SLIMFAAS_KEEP_LOGS"); dir != "" {
		dst := filepath.Join(dir, strings.ReplaceAll(c.t.Name(), "/", "_"))
		_ = os.RemoveAll(dst)
		if err := os.CopyFS(dst, os.DirFS(filepath.Join(c.State, "logs"))); err != nil {
			c.t.Logf("keeping logs: %v", err)
		}
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// startTime is when the kernel started a process: with the pid it names one process for ever. Empty: no such process, or a zombie.
func startTime(pid int) string {
	state, start := stat(pid)
	if state == "Z" {
		return ""
	}
	return start
}

// stat gives fields 3 and 22 of /proc/pid/stat; empty: no such process.
func stat(pid int) (state, start string) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 20 {
		return "", ""
	}
	return fields[0], fields[19]
}

// StartedAt is when the kernel started a process, to 10 ms.
func StartedAt(pid int) (time.Time, error) {
	ticks, err := strconv.ParseInt(startTime(pid), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("no process %d", pid)
	}
	raw, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Time{}, err
	}
	up, err := strconv.ParseFloat(strings.Fields(string(raw))[0], 64)
	if err != nil {
		return time.Time{}, err
	}
	boot := time.Now().Add(-time.Duration(up * float64(time.Second)))
	return boot.Add(time.Duration(ticks) * 10 * time.Millisecond), nil
}

// CheckAlive fails the test when one of these processes does not run.
func (c *Cluster) CheckAlive(names ...string) {
	c.t.Helper()
	for _, name := range names {
		if c.PID(name) == 0 {
			c.t.Errorf("%s does not run", name)
		}
	}
}

// Log of a process so far.
func (c *Cluster) Log(name string) string {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.State, "logs", name+".log"))
	if err != nil {
		c.t.Fatalf("reading the log of %s: %v", name, err)
	}
	return string(raw)
}
