package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"

	"go.etcd.io/bbolt"
)

// A snapshot as bytes is: magic with the version, purpose, applied index, length of the file (8 bytes each, big endian), the
// file, CRC-32C of all before it (4 bytes, big endian).
const (
	snapshotMagic  = "SLIMQ\x00\x00\x04"
	snapshotHeader = 32
)

// olderMagics of files without blocks, of records or at all, which are taken, too.
var olderMagics = []string{"SLIMQ\x00\x00\x03", "SLIMQ\x00\x00\x02"}

// ErrSnapshot is a snapshot that is damaged, cut, or of a version this program does not know.
var ErrSnapshot = errors.New("snapshot cannot be used")

// Purpose of a snapshot that is written out.
type Purpose uint64

// Values of Purpose.
const (
	// Replica of the same log: who adopts it is at the snapshot's index or the log's, whichever is higher.
	Replica Purpose = 1 + iota
	// Backup, for whatever log: who adopts it is at the index its own log gives it.
	Backup
)

// Snapshot is the state at one index, whatever is applied after. Its owner ends it with Release, soon: while it lives the
// file reuses no page.
type Snapshot struct {
	tx      *bbolt.Tx
	index   uint64
	purpose Purpose
}

// Snapshot begins one of all that is committed. It flushes, and brings the payloads that are in the log into the file; nothing is copied
// until WriteTo.
func (s *Store) Snapshot(purpose Purpose) (*Snapshot, error) {
	s.want(1)
	defer s.want(-1)
	if err := s.Flush(s.Applied()); err != nil { // behind it are the layers that were begun before
		return nil, fmt.Errorf("flushing for a snapshot: %w", err)
	}
	if err := s.moveAll(none); err != nil {
		return nil, fmt.Errorf("completing the file for a snapshot: %w", err)
	}
	s.files.RLock()
	defer s.files.RUnlock()
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("beginning a snapshot: %w", err)
	}
	index, err := numberIn(tx, keyApplied)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("beginning a snapshot: %w", err), tx.Rollback())
	}
	return &Snapshot{tx: tx, index: index, purpose: purpose}, nil
}

// want one more, or one less, that needs a file without references.
func (s *Store) want(whole int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole += whole
}

// Index of the state.
func (s *Snapshot) Index() uint64 { return s.index }

// Size of what WriteTo writes, in bytes.
func (s *Snapshot) Size() int64 { return snapshotHeader + s.tx.Size() + sumSize }

// WriteTo writes the snapshot.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	sum := crc32.New(castagnoli)
	out := &counting{w: io.MultiWriter(w, sum)}
	header := make([]byte, 0, snapshotHeader)
	header = append(header, snapshotMagic...)
	header = binary.BigEndian.AppendUint64(header, uint64(s.purpose))
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

// Incoming is a snapshot that is being received, beside the state. It becomes the state by Finish, then Store.Adopt (or the
// next Open).
type Incoming struct {
	store   *Store
	file    *os.File
	sum     uint32
	head    []byte
	purpose Purpose
	left    int64 // of the file, in bytes
	trailer []byte
	ended   bool
}

// Receive begins one; an older one that was not finished is gone.
func (s *Store) Receive() (*Incoming, error) {
	f, err := os.OpenFile(s.path(incomingFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode)
	if err != nil {
		return nil, fmt.Errorf("making the received state's file: %w", err)
	}
	s.setIncoming(false)
	return &Incoming{store: s, file: f}, nil
}

// Write takes the next bytes of the snapshot. Errors are ErrSnapshot or the disk's.
func (i *Incoming) Write(p []byte) (int, error) {
	n := len(p)
	if len(i.head) < snapshotHeader {
		part := p[:min(len(p), snapshotHeader-len(i.head))]
		i.head, p = append(i.head, part...), p[len(part):]
		if len(i.head) < snapshotHeader {
			return n, nil
		}
		if err := i.begin(); err != nil {
			return 0, err
		}
	}
	part := p[:min(int64(len(p)), i.left)]
	if _, err := i.file.Write(part); err != nil {
		return 0, fmt.Errorf("writing the received state: %w", err)
	}
	i.sum = crc32.Update(i.sum, castagnoli, part)
	i.left -= int64(len(part))
	i.trailer = append(i.trailer, p[len(part):]...)
	if len(i.trailer) > sumSize {
		return 0, fmt.Errorf("snapshot goes on after its end: %w", ErrSnapshot)
	}
	return n, nil
}

// begin reads the header.
func (i *Incoming) begin() error {
	if magic := string(i.head[:8]); magic != snapshotMagic && !slices.Contains(olderMagics, magic) {
		return fmt.Errorf("snapshot begins with %q, want %q: %w", i.head[:8], snapshotMagic, ErrSnapshot)
	}
	i.purpose = Purpose(binary.BigEndian.Uint64(i.head[8:]))
	i.left = int64(binary.BigEndian.Uint64(i.head[24:]))
	if i.left <= 0 || i.purpose != Replica && i.purpose != Backup {
		return fmt.Errorf("snapshot says it has %d bytes for purpose %d: %w", i.left, i.purpose, ErrSnapshot)
	}
	i.sum = crc32.Checksum(i.head, castagnoli)
	return nil
}

// Finish checks all of it and makes it durable, at this index of the log. The state is as it was until Adopt.
func (i *Incoming) Finish(index uint64) error {
	if i.ended {
		return nil
	}
	if len(i.head) < snapshotHeader || i.left > 0 || len(i.trailer) < sumSize || binary.BigEndian.Uint32(i.trailer) != i.sum {
		return errors.Join(fmt.Errorf("checking the snapshot's checksum: %w", ErrSnapshot), i.Cancel())
	}
	i.ended = true
	if err := errors.Join(i.file.Sync(), i.file.Close()); err != nil {
		return errors.Join(fmt.Errorf("finishing the received state: %w", err), discard(i.path()))
	}
	if err := i.settle(index); err != nil {
		return errors.Join(fmt.Errorf("finishing the received state: %w", err), discard(i.path()))
	}
	if err := syncDir(i.store.dir); err != nil {
		return err
	}
	i.store.setIncoming(true)
	return nil
}

func (i *Incoming) path() string { return i.store.path(incomingFile) }

// settle the index the received state is at.
func (i *Incoming) settle(index uint64) error {
	db, applied, err := openState(i.path())
	if err != nil {
		return err
	}
	if i.purpose == Replica {
		index = max(index, applied)
	}
	if index != applied {
		err = db.Update(func(tx *bbolt.Tx) error { return putNumber(tx, keyApplied, index) })
	}
	return errors.Join(err, db.Close())
}

// Incoming says whether a received snapshot is finished and waits for Adopt.
func (s *Store) Incoming() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.incoming
}

func (s *Store) setIncoming(finished bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.incoming = finished
}

// Cancel throws away what was received. After Finish it does nothing.
func (i *Incoming) Cancel() error {
	if i.ended {
		return nil
	}
	i.ended = true
	return errors.Join(i.file.Close(), discard(i.path()))
}

// Adopt replaces the whole state by the received snapshot. It waits for snapshots that are being written out. After an error
// the store is of no use.
func (s *Store) Adopt() error {
	s.mu.Lock()
	s.adopting = true
	for s.sealed != nil && s.err == nil {
		s.moved.Wait()
	}
	err := s.err
	s.mu.Unlock()
	var applied uint64
	if err == nil {
		applied, err = s.replace()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopting, s.incoming = false, false
	s.moved.Broadcast()
	if err != nil {
		s.err = fmt.Errorf("adopting the received state: %w", err)
		return s.err
	}
	s.active, s.applied, s.durable, s.wanted = newLayer(), applied, applied, applied
	return nil
}

func (s *Store) replace() (applied uint64, err error) {
	s.files.Lock()
	defer s.files.Unlock()
	if err := s.db.Close(); err != nil {
		return 0, err
	}
	if err := s.install(); err != nil {
		return 0, err
	}
	db, applied, err := openState(s.path(stateFile))
	if err != nil {
		return 0, err
	}
	s.db = db
	return applied, s.checkReferences()
}

func discard(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing state: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("syncing a directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing a directory: %w", err)
	}
	return nil
}
