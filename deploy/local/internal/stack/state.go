package stack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// state is the state directory, held by this program alone.
type state struct {
	dir  string
	lock *os.File
}

func (s state) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// hold makes the directory and takes its lock. A second supervisor is refused with the name of the first.
func hold(dir string) (state, error) {
	s := state{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return s, fmt.Errorf("making the state directory: %w", err)
	}
	lock, err := os.OpenFile(s.path("local.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return s, fmt.Errorf("opening the lock of the state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return s, fmt.Errorf("locking the state directory %s: %w", dir, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(lock, 200)) // who exactly is a courtesy
		return s, fmt.Errorf("the state directory %s is held by another bin/local (%s)", dir, strings.TrimSpace(string(holder)))
	}
	if err := lock.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(lock, "pid %d since %s\n", os.Getpid(), time.Now().Format(time.RFC3339)) // a courtesy, too
	}
	s.lock = lock
	return s, nil
}

func (s state) release() { s.lock.Close() }

// folders makes what the parts expect.
func (s state) folders(nodes int) error {
	names := []string{"pids", "logs", "secrets"}
	for i := range nodes {
		names = append(names, fmt.Sprintf("queue-%d", i))
	}
	for _, name := range names {
		if err := os.MkdirAll(s.path(name), 0o700); err != nil {
			return fmt.Errorf("making a folder of the state: %w", err)
		}
	}
	return nil
}

// forget removes the queue's data; all of it also removes logs, chosen ports and secrets.
func (s state) forget(all bool) error {
	names, err := filepath.Glob(s.path("queue-[0-9]*"))
	if err != nil {
		return fmt.Errorf("listing the queue's data: %w", err)
	}
	if all {
		names = append(names, s.path("logs"), s.path("ports.json"), s.path("secrets"))
	}
	for _, name := range names {
		if err := os.RemoveAll(name); err != nil {
			return fmt.Errorf("emptying the state: %w", err)
		}
	}
	return nil
}

// matches refuses to start another number of queue nodes on data that was written by a cluster of another size: its members
// would not agree on who they are.
func (s state) matches(nodes int) error {
	names, err := filepath.Glob(s.path("queue-[0-9]*", "*"))
	if err != nil {
		return fmt.Errorf("listing the queue's data: %w", err)
	}
	had := map[string]bool{}
	for _, name := range names {
		had[filepath.Dir(name)] = true
	}
	if len(had) == 0 || len(had) == nodes {
		return nil
	}
	return fmt.Errorf("%s holds the data of %d queue nodes, the manifest asks for %d: take --clean to begin anew, or another --state", s.dir, len(had), nodes)
}
