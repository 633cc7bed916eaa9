package logfile

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
)

// recover opens the segments of the directory.
func (l *Log) recover() error {
	if err := l.removeSpares(); err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(l.dir, "*.log"))
	if err != nil {
		return fmt.Errorf("listing segments: %w", err)
	}
	slices.Sort(paths)
	noted, err := l.newest.Load()
	if err != nil {
		return fmt.Errorf("looking up the newest segment: %w", err)
	}
	if noted != 0 && (len(paths) == 0 || filepath.Base(paths[len(paths)-1]) < name(noted)) {
		return fmt.Errorf("segment %s of %s: %w", name(noted), l.dir, ErrMissing)
	}
	for i, path := range paths {
		newest := i == len(paths)-1
		s, content, err := load(path, newest)
		if err != nil {
			return err
		}
		if s == nil { // being made when the power went
			if noted != 0 && filepath.Base(path) == name(noted) { // which is done with the header on the disk
				return fmt.Errorf("header of %s: %w", filepath.Base(path), ErrDamaged)
			}
			if err := l.removeNewest(path); err != nil {
				return err
			}
			continue
		}
		l.segments = append(l.segments, s) // Close closes it
		if i > 0 && s.first != l.segments[i-1].last()+1 {
			return fmt.Errorf("%s begins at record %d, the one before it ends at %d: %w",
				filepath.Base(path), s.first, l.segments[i-1].last(), ErrDamaged)
		}
		if err := l.scan(s, content, newest); err != nil {
			return fmt.Errorf("reading %s: %w", filepath.Base(path), err)
		}
		if len(s.offsets) > 0 {
			continue
		}
		// The newest, with nothing complete in it.
		l.segments = l.segments[:len(l.segments)-1]
		if err := s.file.Close(); err != nil {
			return fmt.Errorf("closing an empty segment: %w", err)
		}
		if err := l.removeNewest(path); err != nil {
			return err
		}
	}
	if len(l.segments) > 0 && noted == 0 {
		return fmt.Errorf("note of the newest segment, while there is %s: %w", l.segments[len(l.segments)-1].path, ErrMissing)
	}
	return nil
}

// removeNewest removes a newest segment that has no record.
func (l *Log) removeNewest(path string) error {
	if err := l.newest.Store(l.newestFirst()); err != nil {
		return fmt.Errorf("noting the newest segment: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing an empty segment: %w", err)
	}
	return syncDir(l.dir)
}

// newestFirst is the first index of the newest segment, 0 when there is none. It runs with writing held, or in Open.
func (l *Log) newestFirst() uint64 {
	if len(l.segments) == 0 {
		return 0
	}
	return l.segments[len(l.segments)-1].first
}

// name of the segment that begins with this index.
func name(first uint64) string { return fmt.Sprintf("%020d.log", first) }

// load opens a segment and reads it whole. None when it is the newest and has no header yet.
func load(path string, newest bool) (_ *segment, _ []byte, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("reading a segment: %w", err)
	}
	if len(content) < segmentHeader || [8]byte(content[:8]) != magic ||
		crc32.Checksum(content[:24], castagnoli) != binary.LittleEndian.Uint32(content[24:]) ||
		filepath.Base(path) != name(binary.LittleEndian.Uint64(content[8:])) {
		if newest && zeros(content) {
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("header of %s: %w", filepath.Base(path), ErrDamaged)
	}
	s := &segment{
		path: path, first: binary.LittleEndian.Uint64(content[8:]), salt: [8]byte(content[16:24]),
		end: segmentHeader, size: int64(len(content)),
	}
	if s.file, err = os.OpenFile(path, os.O_RDWR, fileMode); err != nil {
		return nil, nil, fmt.Errorf("opening a segment: %w", err)
	}
	return s, content, nil
}

// scan finds the records. The newest segment may end in an append that was torn: then everything behind is of that same append,
// because the next one began only when it was on the disk.
func (l *Log) scan(s *segment, content []byte, newest bool) error {
	for s.end < int64(len(content)) {
		r, ok := parse(content[s.end:], s.salt)
		if !ok || r.index != s.first+uint64(len(s.offsets)) {
			break
		}
		s.offsets = append(s.offsets, uint32(s.end))
		s.end = min(s.end+r.size, int64(len(content)))
	}
	rest := content[s.end:]
	if zeros(rest) {
		return nil
	}
	if !newest {
		return fmt.Errorf("at %d: %w", s.end, ErrDamaged)
	}
	for at := int64(0); at < int64(len(rest)); at += 8 {
		if r, ok := parse(rest[at:], s.salt); ok && int64(r.began) > s.end {
			return fmt.Errorf("at %d, with record %d of a later append behind it: %w", s.end, r.index, ErrDamaged)
		}
	}
	return s.clear()
}

// clear makes everything behind the last record zeros, on the disk: a record left there could be taken for a new one.
func (s *segment) clear() error {
	if err := s.file.Truncate(s.end); err != nil {
		return fmt.Errorf("cutting a segment: %w", err)
	}
	if err := reserve(s.file, s.size); err != nil {
		return fmt.Errorf("reserving the rest of a segment: %w", err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("syncing a segment: %w", err)
	}
	return nil
}

func zeros(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
