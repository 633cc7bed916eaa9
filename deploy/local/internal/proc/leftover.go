package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// endWithin is how long killed processes may take to disappear.
const endWithin = 5 * time.Second

// stat is what we need of /proc/<pid>/stat.
type stat struct {
	state  byte
	parent int
	group  int
	start  uint64 // clock ticks since boot
}

func readStat(pid int) (stat, error) {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, err
	}
	// The second field is the command in parentheses and may hold anything, also parentheses.
	at := bytes.LastIndexByte(content, ')')
	fields := strings.Fields(string(content[at+1:]))
	if at < 0 || len(fields) < 20 {
		return stat{}, fmt.Errorf("reading stat of process %d: unknown format", pid)
	}
	s := stat{state: fields[0][0]}
	s.parent, _ = strconv.Atoi(fields[1])
	s.group, _ = strconv.Atoi(fields[2])
	s.start, err = strconv.ParseUint(fields[19], 10, 64)
	return s, err
}

// alive: exists, is no zombie, and is the one that started then.
func alive(pid int, start uint64) bool {
	s, err := readStat(pid)
	return err == nil && s.start == start && s.state != 'Z' && s.state != 'X'
}

// markOf reads a variable from the environment a process was started with.
func markOf(pid int, name string) string {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return ""
	}
	for line := range bytes.SplitSeq(content, []byte{0}) {
		if value, ok := bytes.CutPrefix(line, []byte(name+"=")); ok {
			return string(value)
		}
	}
	return ""
}

// strays lists all processes that carry the mark of a state directory, but not this program.
func strays(state string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if s, err := readStat(pid); err != nil || s.state == 'Z' || s.state == 'X' {
			continue
		}
		if markOf(pid, markState) == state {
			found = append(found, pid)
		}
	}
	return found
}

// endStrays kills all that carries the mark until nothing is left. reap collects dead children and says whether some live.
func endStrays(state string, reap func() bool) error {
	deadline := time.Now().Add(endWithin)
	for {
		left := strays(state)
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if children := reap(); len(left) == 0 && !children {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("ending what was started: processes %v are still there after %v", left, endWithin)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// EndLeftovers kills what an earlier supervisor of the same state directory left, by pid file (pid and start time, with the
// process's group) and by mark, and empties the folder of pid files. It returns the names of the processes it found alive.
// The caller holds the lock of the state directory.
func EndLeftovers(state, pidDir string) ([]string, error) {
	entries, err := os.ReadDir(pidDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the folder of pid files: %w", err)
	}
	var found []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".pid")
		if !ok {
			continue
		}
		path := filepath.Join(pidDir, e.Name())
		if pid, start, err := readPid(path); err == nil && alive(pid, start) {
			found = append(found, name)
			_ = syscall.Kill(-pid, syscall.SIGKILL)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := os.Remove(path); err != nil {
			return found, fmt.Errorf("removing an old pid file: %w", err)
		}
	}
	for _, pid := range strays(state) {
		found = append(found, fmt.Sprintf("process %d of %s", pid, markOf(pid, markProcess)))
	}
	return found, endStrays(state, func() bool { return false })
}

// A pid file holds the pid and the kernel's start time: together they name a process for as long as the machine is up.
func writePid(dir string, p *Process) error {
	path := filepath.Join(dir, p.Name+".pid")
	if err := os.WriteFile(path+".new", fmt.Appendf(nil, "%d %d\n", p.PID, p.ticks), 0o600); err != nil {
		return fmt.Errorf("writing a pid file: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("putting a pid file in place: %w", err)
	}
	return nil
}

func readPid(path string) (pid int, start uint64, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscan(string(content), &pid, &start)
	if err == nil && pid <= 1 {
		err = fmt.Errorf("pid %d cannot be", pid)
	}
	return pid, start, err
}

// removePid removes the file unless it belongs to a successor of the same name already.
func removePid(dir string, p *Process) {
	path := filepath.Join(dir, p.Name+".pid")
	if pid, start, err := readPid(path); err == nil && pid == p.PID && start == p.ticks {
		_ = os.Remove(path)
	}
}
