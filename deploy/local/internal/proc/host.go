// Package proc starts processes so that none outlives the supervisor: each has its own group and a parent-death signal,
// orphans come to the supervisor (child subreaper), and pid files and a mark in the environment let the next start find
// what a killed supervisor left. Linux only.
package proc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Variables every child carries. Their descendants inherit them: that is how a stray is recognised.
const (
	markState   = "SLIMFAAS_LOCAL_STATE"
	markProcess = "SLIMFAAS_LOCAL_PROCESS"
)

// drainLog is how long the output of a dead process is still read, for descendants that hold the pipe.
const drainLog = time.Second

// Options of a Host. All are required.
type Options struct {
	State  string // the state directory, absolute: the mark of everything started here
	PidDir string
	LogDir string
	Log    *slog.Logger
}

// Host starts and reaps the children of this program. There is one per program, and nothing else may start children
// while it lives: it reaps them all.
type Host struct {
	opts    Options
	null    *os.File
	starts  chan startRequest // to the one thread that forks
	sweeps  chan struct{}     // a child died: look for strays
	child   chan os.Signal
	quit    chan struct{}
	workers sync.WaitGroup
	copies  sync.WaitGroup // of output into logs

	mu      sync.Mutex // guards what follows; held while forking and reaping
	running map[int]*Process
	marks   map[string]bool // of the processes that run
	started int
	logs    map[string]*logFile
	closed  bool
}

// Spec says what to start. Argv[0] with a slash is relative to Dir, without one it is looked up in Env's PATH.
type Spec struct {
	Name string // of the pid and log files
	Argv []string
	Dir  string
	Env  []string
}

// Process is one started child.
type Process struct {
	Name    string
	PID     int
	Started time.Time

	host   *Host
	mark   string
	ticks  uint64 // kernel start time
	done   chan struct{}
	status syscall.WaitStatus // valid once done is closed
}

type startRequest struct {
	path string
	attr *syscall.ProcAttr
	spec Spec
	mark string
	out  chan<- startResult
}

type startResult struct {
	process *Process
	err     error
}

// NewHost makes this program the reaper of all its descendants. Close ends them.
func NewHost(o Options) (*Host, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("becoming child subreaper: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("opening the null device: %w", err)
	}
	h := &Host{
		opts: o, null: null,
		starts: make(chan startRequest), sweeps: make(chan struct{}, 1), child: make(chan os.Signal, 1), quit: make(chan struct{}),
		running: map[int]*Process{}, marks: map[string]bool{}, logs: map[string]*logFile{},
	}
	signal.Notify(h.child, unix.SIGCHLD)
	h.workers.Go(h.fork)
	h.workers.Go(h.reapLoop)
	h.workers.Go(h.sweepLoop)
	return h, nil
}

// Start runs a process. It returns once exec has succeeded or failed.
func (h *Host) Start(spec Spec) (*Process, error) {
	path, err := lookup(spec)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: making a pipe: %w", spec.Name, err)
	}
	defer write.Close()
	h.mu.Lock()
	h.started++
	mark := fmt.Sprintf("%s#%d", spec.Name, h.started)
	h.mu.Unlock()
	env := make([]string, 0, len(spec.Env)+2)
	for _, line := range spec.Env {
		// The marks of a supervisor this one runs under would be found first.
		if !strings.HasPrefix(line, markState+"=") && !strings.HasPrefix(line, markProcess+"=") {
			env = append(env, line)
		}
	}
	env = append(env, markState+"="+h.opts.State, markProcess+"="+mark)
	out := make(chan startResult, 1)
	request := startRequest{path: path, spec: spec, mark: mark, out: out, attr: &syscall.ProcAttr{
		Dir: spec.Dir, Env: env, Files: []uintptr{h.null.Fd(), write.Fd(), write.Fd()},
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
	}}
	select {
	case h.starts <- request:
	case <-h.quit:
		read.Close()
		return nil, fmt.Errorf("starting %s: %w", spec.Name, ErrClosed)
	}
	result := <-out
	if result.err != nil {
		read.Close()
		return nil, fmt.Errorf("starting %s: %w", spec.Name, result.err)
	}
	h.copies.Go(func() { h.keepOutput(result.process, read) })
	return result.process, nil
}

// ErrClosed is the answer to Start when the host ends.
var ErrClosed = errors.New("the supervisor is stopping")

// fork starts processes on one OS thread for all its life: the parent-death signal is sent when the *thread* that
// forked ends, not the program (golang/go#27505).
func (h *Host) fork() {
	runtime.LockOSThread()
	for {
		select {
		case <-h.quit:
			return
		case r := <-h.starts:
			p, err := h.forkOne(r)
			r.out <- startResult{process: p, err: err}
		}
	}
}

// forkOne holds the lock from fork to registration, so that the reaper cannot meet a child it does not know.
func (h *Host) forkOne(r startRequest) (*Process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	pid, err := syscall.ForkExec(r.path, r.spec.Argv, r.attr)
	if err != nil {
		return nil, fmt.Errorf("running %s in %s: %w", r.spec.Argv[0], r.spec.Dir, err)
	}
	p := &Process{Name: r.spec.Name, PID: pid, Started: time.Now(), host: h, mark: r.mark, done: make(chan struct{})}
	if s, err := readStat(pid); err == nil {
		p.ticks = s.start
	}
	h.running[pid] = p
	h.marks[p.mark] = true
	if err := writePid(h.opts.PidDir, p); err != nil {
		h.opts.Log.Error("a pid file could not be written", "process", p.Name, "err", err)
	}
	return p, nil
}

// reapLoop collects every dead child, ours and the orphans that came to us.
func (h *Host) reapLoop() {
	for {
		select {
		case <-h.quit:
			return
		case <-h.child:
			h.reap()
		}
	}
}

// reap takes all that is dead now. It says whether any child is left.
func (h *Host) reap() bool {
	for {
		h.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			h.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			h.mu.Unlock()
			return err == nil
		}
		p := h.running[pid]
		if p != nil {
			// The group's number stays taken while members live, so this hits only descendants.
			_ = syscall.Kill(-pid, syscall.SIGKILL)
			delete(h.running, pid)
			delete(h.marks, p.mark)
			p.status = status
			removePid(h.opts.PidDir, p)
		}
		h.mu.Unlock()
		if p != nil {
			close(p.done)
			select {
			case h.sweeps <- struct{}{}:
			default:
			}
		}
	}
}

// sweepLoop ends orphans that left the group of a process which is gone.
func (h *Host) sweepLoop() {
	for {
		select {
		case <-h.quit:
			return
		case <-h.sweeps:
			for _, pid := range strays(h.opts.State) {
				mark := markOf(pid, markProcess)
				h.mu.Lock()
				if _, ours := h.running[pid]; !ours && !h.marks[mark] && mark != "" {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
				h.mu.Unlock()
			}
		}
	}
}

// Close kills all that still runs, waits until nothing is left, and stops the host. It takes at most about 5 s.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	for pid := range h.running {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	h.mu.Unlock()
	err := endStrays(h.opts.State, func() bool { return h.reap() })
	signal.Stop(h.child)
	close(h.quit)
	h.workers.Wait()
	h.copies.Wait()
	h.null.Close()
	return err
}

// Done is closed when the process has ended and its group was killed.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ticks is the kernel's start time of the process, in clock ticks since boot.
func (p *Process) Ticks() uint64 { return p.ticks }

// Signal goes to the whole group; nothing happens when the process has ended.
func (p *Process) Signal(s syscall.Signal) {
	p.host.mu.Lock()
	defer p.host.mu.Unlock()
	if p.host.running[p.PID] == p {
		_ = syscall.Kill(-p.PID, s)
	}
}

// Stop asks the group to end and kills it after grace, or when now is closed. It returns when the process is gone.
func (p *Process) Stop(grace time.Duration, now <-chan struct{}) {
	p.Signal(syscall.SIGTERM)
	p.Signal(syscall.SIGCONT) // a stopped process would never see the former
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return
	case <-timer.C:
	case <-now:
	}
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Failed says whether the process ended otherwise than with status 0. Only after Done.
func (p *Process) Failed() bool { return !p.status.Exited() || p.status.ExitStatus() != 0 }

// Ended says how the process ended. Only after Done.
func (p *Process) Ended() string {
	switch {
	case p.status.Exited():
		return "exit status " + strconv.Itoa(p.status.ExitStatus())
	case p.status.Signaled():
		return "killed by signal: " + p.status.Signal().String()
	}
	return "ended"
}

// lookup finds the program and gives errors a person can act on: execve says ENOENT for half a dozen mistakes.
func lookup(spec Spec) (string, error) {
	if len(spec.Argv) == 0 {
		return "", errors.New("no command")
	}
	if info, err := os.Stat(spec.Dir); err != nil || !info.IsDir() {
		return "", fmt.Errorf("working directory %s is not there", spec.Dir)
	}
	program := spec.Argv[0]
	if strings.Contains(program, "/") {
		full := program
		if !filepath.IsAbs(full) {
			full = filepath.Join(spec.Dir, full)
		}
		return full, executable(full)
	}
	for _, dir := range filepath.SplitList(variable(spec.Env, "PATH")) {
		if dir == "" || !filepath.IsAbs(dir) {
			continue
		}
		if full := filepath.Join(dir, program); executable(full) == nil {
			return full, nil
		}
	}
	return "", fmt.Errorf("%s is not in PATH", program)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%s is not there", path)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s cannot be executed", path)
	}
	return nil
}

// variable is the last value of a name in an environment.
func variable(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(env[i], name+"="); ok {
			return value
		}
	}
	return ""
}
