package backup

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func written(t *testing.T, h Header, state []byte) []byte {
	t.Helper()
	var file bytes.Buffer
	w, err := NewWriter(&file, h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, bytes.NewReader(state)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestABackupReadsAsItWasWritten(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 100_000} {
		state := bytes.Repeat([]byte{7}, size)
		h := Header{Installation: "i", Node: "queue-0", Index: 12, Term: 3, Size: uint64(size), CreatedUnixMs: 5}
		r, err := NewReader(bytes.NewReader(written(t, h, state)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, state) || r.Header != h {
			t.Errorf("%d bytes: %d bytes, %+v, %v", size, len(got), r.Header, err)
		}
	}
}

func TestEveryFlippedBitAndEveryCutIsNoticed(t *testing.T) {
	t.Parallel()
	file := written(t, Header{Installation: "i", Size: 5}, []byte("state"))
	read := func(b []byte) error {
		r, err := NewReader(bytes.NewReader(b))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		return err
	}
	for i := range file {
		damaged := bytes.Clone(file)
		damaged[i] ^= 1
		if err := read(damaged); !errors.Is(err, ErrBackup) {
			t.Errorf("byte %d: %v", i, err)
		}
		if err := read(file[:i]); !errors.Is(err, ErrBackup) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

func TestAWriterWantsExactlyWhatItAnnounced(t *testing.T) {
	t.Parallel()
	w, err := NewWriter(io.Discard, Header{Size: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, ErrBackup) {
		t.Errorf("ended early: %v", err)
	}
	if _, err := w.Write([]byte("abc")); !errors.Is(err, ErrBackup) {
		t.Errorf("one byte more: %v", err)
	}
}
