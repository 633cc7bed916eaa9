package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one part of the cluster. Its pid and its start time are kept in a file, so that a later run can tell what an earlier
// one has left behind, and signals nobody else.
type process struct {
	name  string
	pid   int
	began uint64 // clock ticks since boot, as the kernel has it
}

func (c *Cluster) pidFile(name string) string { return filepath.Join(c.dir, "pid", name) }

// start runs a part with its output in a log, in a session of its own.
func (c *Cluster) start(name, binary string, args ...string) error {
	log, err := os.OpenFile(c.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close() //nolint:errcheck // the child has its own
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.join(cmd.Process.Pid, groupOf(name))
	p := process{name: name, pid: cmd.Process.Pid, began: startTime(cmd.Process.Pid)}
	c.reap.Go(func() { _ = cmd.Wait() })
	c.mu.Lock()
	c.running = append(c.running, p)
	c.mu.Unlock()
	return os.WriteFile(c.pidFile(name), fmt.Appendf(nil, "%d %d\n", p.pid, p.began), 0o600)
}

// startTime of a process; 0: there is none, or it has ended and nobody has asked how.
func startTime(pid int) uint64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return 0
	}
	n, _ := strconv.ParseUint(fields[19], 10, 64) //nolint:errcheck // 0 is none
	return n
}

func (p process) alive() bool { return p.began != 0 && startTime(p.pid) == p.began }

// PID of a part; 0: it does not run.
func (c *Cluster) PID(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range slices.Backward(c.running) {
		if p.name == name && p.alive() {
			return p.pid
		}
	}
	return 0
}

// end stops a part: a signal, and SIGKILL when it has not ended in time.
func (p process) end(patience time.Duration) {
	if !p.alive() {
		return
	}
	_ = syscall.Kill(p.pid, syscall.SIGCONT) // it may be stopped
	_ = syscall.Kill(p.pid, syscall.SIGTERM)
	if !until(patience, func() bool { return !p.alive() }) {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		until(patience, func() bool { return !p.alive() })
	}
}

// recorded lists what the files of pids say, this run's or an earlier one's.
func (c *Cluster) recorded() map[string]process {
	all := map[string]process{}
	entries, _ := os.ReadDir(filepath.Join(c.dir, "pid")) //nolint:errcheck // none
	for _, entry := range entries {
		raw, err := os.ReadFile(c.pidFile(entry.Name()))
		if err != nil {
			continue
		}
		p := process{name: entry.Name()}
		if n, _ := fmt.Sscan(string(raw), &p.pid, &p.began); n == 2 { //nolint:errcheck // n says it
			all[entry.Name()] = p
		}
	}
	return all
}

// until asks every 20 ms whether something holds.
func until(patience time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if holds() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// await asks until something succeeds, and says why it did not.
func (c *Cluster) await(ctx context.Context, patience time.Duration, what string, try func(ctx context.Context) error) error {
	began := time.Now()
	var last error
	ok := until(patience, func() bool {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		last = try(one)
		return last == nil || ctx.Err() != nil
	})
	if !ok || ctx.Err() != nil {
		return fmt.Errorf("wait %v for %s: %w", patience, what, errors.Join(last, ctx.Err()))
	}
	c.say("%s after %v", what, time.Since(began).Round(10*time.Millisecond))
	return nil
}

// command runs a program to its end.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func output(ctx context.Context, name string, args ...string) string {
	out, _ := exec.CommandContext(ctx, name, args...).Output() //nolint:errcheck // nothing then
	return string(out)
}
