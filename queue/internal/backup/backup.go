// Package backup is the format of a backup file: what it is of, the state as the queue streams it, and a checksum over both.
package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A file is: magic with the version (8 bytes), length of the header (4 bytes, big endian), header (JSON), state (Header.Size
// bytes), SHA-256 of all before it (32 bytes).
const (
	magic     = "SLIMQBK1"
	maxHeader = 64 << 10
)

// ErrBackup is a file that is no backup, is damaged or cut, or is of a version this program does not know.
var ErrBackup = errors.New("backup cannot be used")

// Header says what the backup is of.
type Header struct {
	Installation  string // id of the installation
	Node          string // that gave it
	Version       string // of the program that gave it
	Index         uint64 // everything up to this entry of the log is in the backup
	Term          uint64 // of that entry
	Size          uint64 // of the state, in bytes
	CreatedUnixMs int64
}

// Writer writes one backup. After Header.Size bytes, Close ends it.
type Writer struct {
	out  io.Writer // file and sum
	file io.Writer
	sum  hash.Hash
	left uint64
}

// NewWriter writes the header.
func NewWriter(file io.Writer, h Header) (*Writer, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encoding the backup's header: %w", err)
	}
	w := &Writer{file: file, sum: sha256.New(), left: h.Size}
	w.out = io.MultiWriter(file, w.sum)
	head := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(text)))
	if _, err := w.out.Write(append(head, text...)); err != nil {
		return nil, fmt.Errorf("writing the backup's header: %w", err)
	}
	return w, nil
}

// Write the next bytes of the state.
func (w *Writer) Write(p []byte) (int, error) {
	if uint64(len(p)) > w.left {
		return 0, fmt.Errorf("writing the backup: more than the %d bytes announced: %w", len(p), ErrBackup)
	}
	n, err := w.out.Write(p)
	w.left -= uint64(n)
	return n, err
}

// Close writes the checksum; it does not close the file.
func (w *Writer) Close() error {
	if w.left > 0 {
		return fmt.Errorf("ending the backup %d bytes early: %w", w.left, ErrBackup)
	}
	if _, err := w.file.Write(w.sum.Sum(nil)); err != nil {
		return fmt.Errorf("writing the backup's checksum: %w", err)
	}
	return nil
}

// Reader reads one backup. Its state ends with io.EOF only if the checksum is right.
type Reader struct {
	Header Header
	in     io.Reader
	sum    hash.Hash
	left   uint64
	err    error // once the end is reached
}

// NewReader reads the header.
func NewReader(file io.Reader) (*Reader, error) {
	r := &Reader{in: file, sum: sha256.New()}
	in := io.TeeReader(file, r.sum)
	var head [len(magic) + 4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, fmt.Errorf("reading the backup's header: %w", errors.Join(ErrBackup, err))
	}
	if string(head[:len(magic)]) != magic {
		return nil, fmt.Errorf("file begins with %q, want %q: %w", head[:len(magic)], magic, ErrBackup)
	}
	size := binary.BigEndian.Uint32(head[len(magic):])
	if size > maxHeader {
		return nil, fmt.Errorf("header of %d bytes: %w", size, ErrBackup)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(in, text); err != nil {
		return nil, fmt.Errorf("reading the backup's header: %w", errors.Join(ErrBackup, err))
	}
	if err := json.Unmarshal(text, &r.Header); err != nil {
		return nil, fmt.Errorf("decoding the backup's header: %w", errors.Join(ErrBackup, err))
	}
	r.left = r.Header.Size
	return r, nil
}

// Read the state. What it gives is not to be believed before io.EOF.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		if r.err == nil {
			r.err = r.check()
		}
		return 0, r.err
	}
	n, err := r.in.Read(p[:min(uint64(len(p)), r.left)])
	r.sum.Write(p[:n])
	r.left -= uint64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if r.left > 0 {
			err = fmt.Errorf("file ends %d bytes early: %w", r.left, ErrBackup)
		}
	}
	return n, err
}

func (r *Reader) check() error {
	var want [sha256.Size]byte
	if _, err := io.ReadFull(r.in, want[:]); err != nil {
		return fmt.Errorf("reading the backup's checksum: %w", errors.Join(ErrBackup, err))
	}
	if [sha256.Size]byte(r.sum.Sum(nil)) != want {
		return fmt.Errorf("checking the backup: its bytes are not those that were written: %w", ErrBackup)
	}
	return io.EOF
}
