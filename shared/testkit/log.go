package testkit

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

// keptLog is how many bytes of a test's log are kept, the newest.
const keptLog = 64 << 10

// Log is a logger whose newest lines are shown if the test fails, so that a failure that comes once in fifty runs says why.
func Log(t testing.TB) *slog.Logger {
	lines := &tail{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log:\n%s", lines)
		}
	})
	return slog.New(slog.NewTextHandler(lines, nil))
}

// tail keeps the newest lines of what is written.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (w *tail) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.kept)+len(line) > 2*keptLog {
		cut := max(0, len(w.kept)-keptLog)
		cut += bytes.IndexByte(w.kept[cut:], '\n') + 1
		w.kept = append(w.kept[:0], w.kept[cut:]...)
	}
	w.kept = append(w.kept, line...)
	return len(line), nil
}

func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.kept)
}
