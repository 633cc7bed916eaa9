package proc

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Logs rotate at this size, and this many are kept in all: name.log, name.log.1, name.log.2.
const (
	logBytes = 10 << 20
	logFiles = 3
)

// keepOutput copies what a process prints into its log until the pipe ends, or a little after the process did.
func (h *Host) keepOutput(p *Process, read *os.File) {
	defer read.Close()
	log := h.openLog(p.Name)
	defer h.closeLog(log)
	log.note("started, pid %d", p.PID)
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-p.done:
			_ = read.SetReadDeadline(time.Now().Add(drainLog))
		case <-stop:
		}
	})
	_, _ = io.Copy(log, read) // ends with the pipe or the deadline; a full disk must not stop a process
	close(stop)
	watch.Wait()
	<-p.done
	log.note("%s", p.Ended())
}

// logFile is the log of one name; successive processes of that name share it.
type logFile struct {
	path  string
	users int // guarded by Host.mu

	mu   sync.Mutex
	file *os.File
	size int64
}

func (h *Host) openLog(name string) *logFile {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.logs[name]
	if l == nil {
		l = &logFile{path: filepath.Join(h.opts.LogDir, name+".log")}
		h.logs[name] = l
	}
	l.users++
	return l
}

func (h *Host) closeLog(l *logFile) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.users--; l.users > 0 {
		return
	}
	for name, have := range h.logs {
		if have == l {
			delete(h.logs, name)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

// Write never fails: output that cannot be kept is dropped, the process goes on.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil && l.size+int64(len(b)) > logBytes {
		l.rotate()
	}
	if l.file == nil {
		l.open()
	}
	if l.file != nil {
		n, _ := l.file.Write(b)
		l.size += int64(n)
	}
	return len(b), nil
}

func (l *logFile) note(format string, args ...any) {
	line := fmt.Sprintf("--- %s %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), fmt.Sprintf(format, args...))
	_, _ = l.Write([]byte(line))
}

func (l *logFile) open() {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return
	}
	l.file, l.size = f, info.Size()
}

func (l *logFile) rotate() {
	l.file.Close()
	l.file = nil
	for i := logFiles - 1; i > 0; i-- {
		from := l.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.path, i-1)
		}
		_ = os.Rename(from, fmt.Sprintf("%s.%d", l.path, i)) // one that is not there yet is no error
	}
}
