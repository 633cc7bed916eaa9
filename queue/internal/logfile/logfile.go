// Package logfile keeps numbered records in append-only segment files: the Raft log on disk. One append is one write and one
// fdatasync; every record carries a checksum that is verified whenever it is read; what cannot be told from a torn write is cut
// at the next start, and what can be is an error that names the place (docs/adr/0013-raft-log-in-segments.md).
//
// A segment is a header and records, padded with zeros:
//
//	header  "SFLOG\x00\x00\x01", index of its first record (8 bytes), salt (8 bytes), CRC-32C of these, 4 zeros
//	record  CRC-32C of all that follows, length of the data (4 bytes), index (8), place in the file where its append began (4),
//	        salt of the segment (4 of its 8 bytes), data, zeros up to a multiple of 8
//
// Numbers are little endian. The salt tells records from those of a file that had these blocks before: files whose records have
// all gone are used again (see spare.go), and behind the last record of the newest segment there may be what it held before.
package logfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const (
	// SegmentSize is how large a segment is made, in bytes; one append that is larger has one of its own size.
	SegmentSize = 16 << 20
	// MaxRecord bounds one record's data, in bytes.
	MaxRecord = 1 << 30

	segmentHeader = 32
	recordHeader  = 24
	fileMode      = 0o600
)

var (
	// ErrNotFound is the answer when the log has no record of this index.
	ErrNotFound = errors.New("record not found")
	// ErrDamaged is a record or file that is not as it was written, and that no torn write explains.
	ErrDamaged = errors.New("log is damaged")
	// ErrMissing is a segment that was there, or the note that says so.
	ErrMissing = errors.New("a part of the log is missing")
	// errFailed ends a log whose write failed: what the disk has is not known any more.
	errFailed = errors.New("an earlier write to the log failed")

	magic      = [8]byte{'S', 'F', 'L', 'O', 'G', 0, 0, 1}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Newest remembers the first index of the newest segment, durably and elsewhere than in the log's directory: a file that is lost
// there would look like one that never was.
type Newest interface {
	// Load gives what was stored last; 0 when nothing was.
	Load() (uint64, error)
	// Store has the value on the disk when it returns.
	Store(first uint64) error
}

// Log is safe for concurrent use. Make it with Open, end it with Close.
type Log struct {
	dir    string
	newest Newest
	size   int64 // of a new segment; SegmentSize but in tests

	writing sync.Mutex // held by what changes files; taken before mu
	buffer  []byte     // guarded by writing
	failed  error      // guarded by writing
	spares  []spare    // guarded by writing

	mu       sync.RWMutex // guards the rest; not held while the disk is written
	segments []*segment   // the oldest first; none: the log is empty
	first    uint64       // index, that of the first record not cut
}

// segment is one open file.
type segment struct {
	file    *os.File
	path    string
	first   uint64
	salt    [8]byte
	offsets []uint32 // of the records, in order; guarded by Log.mu
	end     int64    // behind the last record; guarded by Log.mu
	size    int64    // of the file
	// reused: there may be anything behind the last record.
	reused bool
	// reading is held for reading while the file is read, which Log.mu is not: a disk that takes its time must not keep an append from
	// ending. Whoever has taken the segment out of the log waits for it.
	reading sync.RWMutex
}

// awaitReaders waits until nobody reads the file any more. The segment is out of the log, so that nobody begins to.
func (s *segment) awaitReaders() {
	s.reading.Lock()
	defer s.reading.Unlock()
}

func (s *segment) last() uint64 { return s.first + uint64(len(s.offsets)) - 1 }

// Open reads the log in dir, made if absent. An incomplete last append is cut off; anything else that does not fit is ErrDamaged
// or ErrMissing.
func Open(dir string, newest Newest) (*Log, error) { return open(dir, newest, SegmentSize) }

func open(dir string, newest Newest, size int64) (_ *Log, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the log directory: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	l := &Log{dir: dir, newest: newest, size: size}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.recover(); err != nil {
		return nil, err
	}
	if len(l.segments) > 0 {
		l.first = l.segments[0].first
	}
	return l, nil
}

// Close closes the files.
func (l *Log) Close() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, s := range l.segments {
		s.awaitReaders() // mu keeps new readers away
		errs = append(errs, s.file.Close())
	}
	for _, s := range l.spares {
		errs = append(errs, s.file.Close())
	}
	l.spares = nil
	l.segments, l.failed = nil, errors.New("the log is closed")
	return errors.Join(errs...)
}

// Bounds are the indices of the first and the last record; 0, 0 when there is none.
func (l *Log) Bounds() (first, last uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.segments) == 0 {
		return 0, 0
	}
	return l.first, l.segments[len(l.segments)-1].last()
}

// Read gives the record of an index, in memory of its own, or ErrNotFound.
func (l *Log) Read(index uint64) ([]byte, error) {
	s, from, to, err := l.find(index)
	if err != nil {
		return nil, err
	}
	defer s.reading.RUnlock()
	raw := make([]byte, to-from)
	if _, err := s.file.ReadAt(raw, from); err != nil {
		return nil, fmt.Errorf("reading record %d of %s: %w", index, filepath.Base(s.path), err)
	}
	r, ok := parse(raw, s.salt)
	if !ok || r.index != index {
		return nil, fmt.Errorf("record %d at %d of %s: %w", index, from, filepath.Base(s.path), ErrDamaged)
	}
	return r.data, nil
}

// ReadPart fills part with what a record's data has from offset on, or gives ErrNotFound. Nothing is checked: the checksum is the whole
// record's.
func (l *Log) ReadPart(index uint64, offset int64, part []byte) error {
	s, from, to, err := l.find(index)
	if err != nil {
		return err
	}
	defer s.reading.RUnlock()
	if from += recordHeader + offset; offset < 0 || from+int64(len(part)) > to {
		return fmt.Errorf("reading %d bytes at %d of record %d, behind its end: %w", len(part), offset, index, ErrDamaged)
	}
	if _, err := s.file.ReadAt(part, from); err != nil {
		return fmt.Errorf("reading a part of record %d of %s: %w", index, filepath.Base(s.path), err)
	}
	return nil
}

// find where a record is. Its segment is being read until the caller ends that.
func (l *Log) find(index uint64) (s *segment, from, to int64, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.segments) == 0 || index < l.first || index > l.segments[len(l.segments)-1].last() {
		return nil, 0, 0, ErrNotFound
	}
	at, found := slices.BinarySearchFunc(l.segments, index, func(s *segment, i uint64) int {
		switch {
		case s.last() < i:
			return -1
		case s.first > i:
			return 1
		}
		return 0
	})
	if !found {
		return nil, 0, 0, ErrNotFound
	}
	s = l.segments[at]
	n := index - s.first
	from, to = int64(s.offsets[n]), s.end
	if n+1 < uint64(len(s.offsets)) {
		to = int64(s.offsets[n+1])
	}
	s.reading.RLock()
	return s, from, to, nil
}

// Tail is the index of the oldest of the newest records that together take at most so many bytes. One behind the last: not even that.
// 0: the log is empty.
func (l *Log) Tail(size int64) (first uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, s := range slices.Backward(l.segments) {
		i, _ := slices.BinarySearch(s.offsets, uint32(max(s.end-size, 0)))
		first = max(s.first+uint64(i), l.first)
		if size -= s.end; i > 0 {
			break
		}
	}
	return first
}

// Append writes records, each given in parts, with consecutive indices from first, which follows the last one of a log that is
// not empty. They are on the disk when it returns. After an error none of them is in the log; after a failed fsync, nothing is
// appended any more until the log is opened again.
func (l *Log) Append(first uint64, records [][][]byte) error {
	if len(records) == 0 {
		return nil
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.failed != nil {
		return fmt.Errorf("appending record %d: %w", first, l.failed)
	}
	if _, last := l.Bounds(); last != 0 && first != last+1 {
		return fmt.Errorf("appending record %d behind %d", first, last)
	}
	return l.write(first, records)
}

// write runs with writing held.
func (l *Log) write(first uint64, records [][][]byte) error {
	need := int64(0)
	for _, r := range records {
		length := 0
		for _, part := range r {
			length += len(part)
		}
		if length > MaxRecord {
			return fmt.Errorf("appending a record of %d bytes, more than %d", length, MaxRecord)
		}
		need += padded(int64(recordHeader + length))
	}
	var s *segment
	if len(l.segments) > 0 {
		s = l.segments[len(l.segments)-1]
	}
	created := false
	if s == nil || s.end+need > s.size {
		if s != nil {
			if err := s.seal(); err != nil {
				l.failed = errFailed
				return err
			}
		}
		var err error
		if s, err = l.create(first, max(l.size, segmentHeader+need)); err != nil {
			return err
		}
		created = true
		if err := l.newest.Store(first); err != nil {
			return errors.Join(fmt.Errorf("noting a new segment: %w", err), s.file.Close())
		}
	}
	l.buffer = slices.Grow(l.buffer[:0], int(need)+page) // and what pad adds
	offsets := make([]uint32, 0, len(records))
	for i, r := range records {
		offsets = append(offsets, uint32(s.end+int64(len(l.buffer))))
		l.buffer = appendRecord(l.buffer, first+uint64(i), uint32(s.end), s.salt, r)
	}
	if err := l.put(s, created); err != nil {
		return err
	}
	if cap(l.buffer) > 4<<20 {
		l.buffer = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.offsets = append(s.offsets, offsets...)
	s.end += need
	if created {
		if len(l.segments) == 0 {
			l.first = first
		}
		l.segments = append(l.segments, s)
	}
	return nil
}

// put brings the buffer to the disk. A write that failed half-way (the disk is full) must leave nothing behind that a later start
// could take for a record; after a failed fsync nobody knows what the disk has.
func (l *Log) put(s *segment, created bool) error {
	_, err := s.file.WriteAt(s.pad(l.buffer), s.end)
	switch {
	case err != nil && created: // made anew next time
		return errors.Join(fmt.Errorf("writing to %s: %w", filepath.Base(s.path), err), s.file.Close())
	case err != nil:
		if clearErr := s.clear(); clearErr != nil {
			l.failed = errFailed
			err = errors.Join(err, clearErr)
		}
		return fmt.Errorf("writing to %s: %w", filepath.Base(s.path), err)
	}
	if err := datasync(s.file); err != nil {
		l.failed = errFailed
		return fmt.Errorf("syncing %s: %w", filepath.Base(s.path), err)
	}
	return nil
}

// create makes a segment, of a spare file where there is one. It runs with writing held.
func (l *Log) create(first uint64, size int64) (*segment, error) {
	if n := len(l.spares); n > 0 && size == l.size {
		taken := l.spares[n-1]
		l.spares = l.spares[:n-1]
		return reuse(taken, l.dir, first, size)
	}
	return create(l.dir, first, size)
}

// create makes a segment whose blocks are reserved and whose name is on the disk.
func create(dir string, first uint64, size int64) (_ *segment, err error) {
	s := &segment{path: filepath.Join(dir, name(first)), first: first, size: size, end: segmentHeader}
	// A file of this name is one that a start did not count: created, and never written to.
	if s.file, err = os.OpenFile(s.path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, fileMode); err != nil {
		return nil, fmt.Errorf("making a segment: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.file.Close(), os.Remove(s.path))
		}
	}()
	if err := reserve(s.file, size); err != nil {
		return nil, fmt.Errorf("reserving %d bytes for a segment: %w", size, err)
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	return s, syncDir(dir)
}

// begin writes the header, synced.
func (s *segment) begin() (err error) {
	if s.salt, err = newSalt(); err != nil {
		return err
	}
	header := make([]byte, segmentHeader)
	copy(header, magic[:])
	binary.LittleEndian.PutUint64(header[8:], s.first)
	copy(header[16:], s.salt[:])
	binary.LittleEndian.PutUint32(header[24:], crc32.Checksum(header[:24], castagnoli))
	if _, err := s.file.WriteAt(header, 0); err != nil {
		return fmt.Errorf("writing a segment's header: %w", err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("syncing a new segment: %w", err)
	}
	return nil
}

func padded(n int64) int64 { return (n + 7) &^ 7 }

func appendRecord(b []byte, index uint64, began uint32, salt [8]byte, parts [][]byte) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	length := 0
	for _, part := range parts {
		length += len(part)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(length))
	b = binary.LittleEndian.AppendUint64(b, index)
	b = binary.LittleEndian.AppendUint32(b, began)
	b = append(b, salt[:4]...)
	for _, part := range parts {
		b = append(b, part...)
	}
	binary.LittleEndian.PutUint32(b[at:], crc32.Checksum(b[at+4:], castagnoli))
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

// record as it was found.
type record struct {
	index uint64
	began uint32
	size  int64 // with header and padding
	data  []byte
}

// parse the record that b begins with; the data is a part of b.
func parse(b []byte, salt [8]byte) (record, bool) {
	if len(b) < recordHeader || [4]byte(b[20:24]) != [4]byte(salt[:4]) {
		return record{}, false
	}
	length := int64(binary.LittleEndian.Uint32(b[4:]))
	if length > MaxRecord || int64(len(b)) < recordHeader+length {
		return record{}, false
	}
	if crc32.Checksum(b[4:recordHeader+length], castagnoli) != binary.LittleEndian.Uint32(b) {
		return record{}, false
	}
	return record{
		index: binary.LittleEndian.Uint64(b[8:]), began: binary.LittleEndian.Uint32(b[16:]),
		size: padded(recordHeader + length), data: b[recordHeader : recordHeader+length : recordHeader+length],
	}, true
}
