package logfile

import (
	"errors"
	"fmt"
	"os"
)

// CutFront forgets the records up to last. Files go when all of their records have gone; a record whose file stays may be there
// again after the next Open.
func (l *Log) CutFront(last uint64) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.failed != nil {
		return fmt.Errorf("cutting the log: %w", l.failed)
	}
	l.mu.Lock()
	var gone []*segment
	for len(l.segments) > 0 && l.segments[0].last() <= last {
		gone = append(gone, l.segments[0])
		l.segments = l.segments[1:]
	}
	if len(l.segments) > 0 {
		l.first = max(l.first, last+1)
	}
	l.mu.Unlock()
	return l.drop(gone, l.retire)
}

// CutBack forgets the records from first on, for good.
func (l *Log) CutBack(first uint64) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.failed != nil {
		return fmt.Errorf("cutting the log: %w", l.failed)
	}
	l.mu.Lock()
	var gone []*segment // the newest first, so that no hole is left by a crash in between
	for n := len(l.segments); n > 0 && (l.segments[n-1].first >= first || first <= l.first); n = len(l.segments) {
		gone = append(gone, l.segments[n-1])
		l.segments = l.segments[:n-1]
	}
	var cut *segment
	if n := len(l.segments); n > 0 && l.segments[n-1].last() >= first {
		cut = l.segments[n-1]
		kept := first - cut.first
		cut.end = int64(cut.offsets[kept])
		cut.offsets = cut.offsets[:kept]
	}
	l.mu.Unlock()
	err := l.drop(gone, remove)
	if err == nil && cut != nil {
		cut.awaitReaders() // what is about to be zeros
		err = cut.clear()
	}
	if err != nil {
		l.failed = errFailed
	}
	return err
}

// remove a segment's file.
func remove(s *segment) error { return errors.Join(s.file.Close(), os.Remove(s.path)) }

// drop takes files that nobody reads any more out of the log, one by one. It runs with writing held.
func (l *Log) drop(gone []*segment, away func(*segment) error) error {
	if len(gone) == 0 {
		return nil
	}
	var errs []error
	if err := l.newest.Store(l.newestFirst()); err != nil { // first: a note of a file that is gone would refuse the next start
		errs = append(errs, fmt.Errorf("noting the newest segment: %w", err))
	}
	for _, s := range gone {
		s.awaitReaders()
		errs = append(errs, away(s))
		if err := syncDir(l.dir); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing segments: %w", err)
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
