package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// A snapshot is: magic with the version, applied index, length of the file (8 bytes each, big endian), the file, CRC-32C of
// all before it (4 bytes, big endian).
const (
	snapshotMagic  = "SLIMQ\x00\x00\x01"
	snapshotHeader = 24
)

// ErrSnapshot is a snapshot that is damaged, cut, or of a version this program does not know.
var ErrSnapshot = errors.New("snapshot cannot be used")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Snapshot is the state at one index, whatever is applied after. Its owner ends it with Release.
type Snapshot struct {
	tx    *bbolt.Tx
	index uint64
}

// Snapshot begins one. Cheap: nothing is copied until WriteTo.
func (s *Store) Snapshot() (*Snapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("beginning a snapshot: %w", err)
	}
	return &Snapshot{tx: tx, index: applied(tx)}, nil
}

// Index of the state.
func (s *Snapshot) Index() uint64 { return s.index }

// Size of the state, in bytes.
func (s *Snapshot) Size() int64 { return s.tx.Size() }

// WriteTo writes the snapshot.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	sum := crc32.New(castagnoli)
	out := &counting{w: io.MultiWriter(w, sum)}
	header := make([]byte, 0, snapshotHeader)
	header = append(header, snapshotMagic...)
	header = binary.BigEndian.AppendUint64(header, s.index)
	header = binary.BigEndian.AppendUint64(header, uint64(s.tx.Size()))
	if _, err := out.Write(header); err != nil {
		return out.n, fmt.Errorf("writing the snapshot's header: %w", err)
	}
	if _, err := s.tx.WriteTo(out); err != nil {
		return out.n, fmt.Errorf("writing the snapshot: %w", err)
	}
	n, err := w.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
	if err != nil {
		return out.n + int64(n), fmt.Errorf("writing the snapshot's checksum: %w", err)
	}
	return out.n + int64(n), nil
}

// Release ends the snapshot. Once.
func (s *Snapshot) Release() {
	_ = s.tx.Rollback() // of a read transaction: cannot fail the first time
}

type counting struct {
	w io.Writer
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// Restore replaces the whole state by a snapshot, or leaves it as it was when the snapshot cannot be used. It waits for
// a snapshot that is being written.
func (s *Store) Restore(r io.Reader) error {
	generation := s.generation + 1
	path := s.path(generation)
	if err := receive(path, r); err != nil {
		return errors.Join(err, discard(path))
	}
	db, err := openFile(path)
	if err != nil {
		return errors.Join(fmt.Errorf("opening the snapshot: %w", err), discard(path))
	}
	s.mu.Lock()
	old, oldPath := s.db, s.path(s.generation)
	s.db, s.generation = db, generation
	s.mu.Unlock()
	return errors.Join(old.Close(), discard(oldPath))
}

func discard(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing state: %w", err)
	}
	return nil
}

// receive writes the file of a snapshot and checks all of it.
func receive(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode)
	if err != nil {
		return fmt.Errorf("making the state's file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := crc32.New(castagnoli)
	in := bufio.NewReaderSize(r, 256<<10)
	size, err := readHeader(in, sum)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.MultiWriter(f, sum), in, size); err != nil {
		return fmt.Errorf("receiving the snapshot: %w", errors.Join(ErrSnapshot, err))
	}
	var trailer [4]byte
	if _, err := io.ReadFull(in, trailer[:]); err != nil {
		return fmt.Errorf("receiving the snapshot's checksum: %w", errors.Join(ErrSnapshot, err))
	}
	if binary.BigEndian.Uint32(trailer[:]) != sum.Sum32() {
		return fmt.Errorf("checking the snapshot's checksum: %w", ErrSnapshot)
	}
	return nil
}

func readHeader(r io.Reader, sum hash.Hash32) (size int64, err error) {
	var header [snapshotHeader]byte
	if _, err := io.ReadFull(io.TeeReader(r, sum), header[:]); err != nil {
		return 0, fmt.Errorf("receiving the snapshot's header: %w", errors.Join(ErrSnapshot, err))
	}
	if string(header[:8]) != snapshotMagic {
		return 0, fmt.Errorf("snapshot begins with %q, want %q: %w", header[:8], snapshotMagic, ErrSnapshot)
	}
	size = int64(binary.BigEndian.Uint64(header[16:]))
	if size <= 0 {
		return 0, fmt.Errorf("snapshot says it has %d bytes: %w", size, ErrSnapshot)
	}
	return size, nil
}
