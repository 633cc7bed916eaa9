package logfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	// maxSpares are kept of the files that the front of the log has left: as many as are made again before the next ones go,
	// where a snapshot is due each 64 MiB of log.
	maxSpares = 4
	// spareSuffix takes the place of ".log" in the name of a file that is no segment any more.
	spareSuffix = ".spare"
	// page of the page cache, in bytes.
	page = 4 << 10
)

// spare is a file that was a segment and will be one again: its blocks are on the disk and written, so that the fdatasync of an append
// changes nothing of the file system's own (docs/adr/0030-log-segments-again.md). A start removes it.
type spare struct {
	file *os.File
	path string
}

// retire a segment whose records have gone: keep its file, or remove it. It runs with writing held.
func (l *Log) retire(s *segment) error {
	if len(l.spares) >= maxSpares || s.size > l.size {
		return remove(s)
	}
	path := strings.TrimSuffix(s.path, ".log") + spareSuffix
	if err := os.Rename(s.path, path); err != nil {
		return errors.Join(err, remove(s))
	}
	l.spares = append(l.spares, spare{s.file, path})
	return nil
}

// reuse makes a segment of a spare file. Its header is on the disk before it has its name, and its name before it is used.
func reuse(taken spare, dir string, first uint64, size int64) (_ *segment, err error) {
	s := &segment{file: taken.file, path: taken.path, first: first, size: size, end: segmentHeader, reused: true}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.file.Close(), os.Remove(s.path))
		}
	}()
	if err := reserve(s.file, size); err != nil { // what seal has cut off
		return nil, fmt.Errorf("reserving %d bytes for a segment: %w", size, err)
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name(first))
	if err := os.Rename(s.path, path); err != nil {
		return nil, fmt.Errorf("naming a segment: %w", err)
	}
	s.path = path
	return s, syncDir(dir)
}

// seal ends a segment that another one will follow: only the newest may have anything but zeros behind its last record.
func (s *segment) seal() error {
	if !s.reused || s.size == s.end {
		return nil
	}
	if err := s.file.Truncate(s.end); err != nil {
		return fmt.Errorf("cutting the rest of a segment: %w", err)
	}
	s.size = s.end
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("syncing a full segment: %w", err)
	}
	return nil
}

// pad what is written behind the last record of a file that is used again, to whole pages: of a page that is not in memory, the
// rest would have to be read first. b has room for it.
func (s *segment) pad(b []byte) []byte {
	if !s.reused {
		return b
	}
	end := s.end + int64(len(b))
	whole := min((end+page-1)/page*page, s.size)
	return append(b, make([]byte, whole-end)...)
}

// removeSpares of an earlier run.
func (l *Log) removeSpares() error {
	paths, err := filepath.Glob(filepath.Join(l.dir, "*"+spareSuffix))
	if err != nil {
		return fmt.Errorf("listing spare files: %w", err)
	}
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("removing a spare file: %w", err)
		}
	}
	return nil
}
