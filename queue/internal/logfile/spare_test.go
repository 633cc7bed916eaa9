package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Files that the front of the log has left are used again, and what they held is never read.
func TestUsedFilesAreUsedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	big := func(i uint64) string { return string(bytes.Repeat([]byte{byte(i)}, smallSegment/2)) }
	spares := func() int {
		paths, err := filepath.Glob(filepath.Join(b.dir, "*"+spareSuffix))
		if err != nil {
			t.Fatal(err)
		}
		return len(paths)
	}
	last := uint64(0)
	add := func(n int) {
		for range n {
			last++
			b.append(last, big(last))
		}
	}
	want := func(first uint64) {
		t.Helper()
		var data []string
		for i := first; i <= last; i++ {
			data = append(data, big(i))
		}
		b.want(first, data...)
	}
	add(8) // a file each
	if err := b.CutFront(6); err != nil {
		t.Fatal(err)
	}
	if n := spares(); n != maxSpares {
		t.Fatalf("%d files are kept of six, want %d", n, maxSpares)
	}
	before, err := os.Stat(b.spares[maxSpares-1].path)
	if err != nil {
		t.Fatal(err)
	}
	add(1)
	after, err := os.Stat(b.newestFile())
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || spares() != maxSpares-1 {
		t.Errorf("a new file was made while %d were there", spares())
	}
	want(7)
	add(2)
	sealed, err := os.Stat(filepath.Join(b.dir, name(last-1)))
	if err != nil {
		t.Fatal(err)
	}
	if end := b.segments[len(b.segments)-2].end; sealed.Size() != end {
		t.Errorf("a full segment that was used before has %d bytes, of which %d are records", sealed.Size(), end)
	}
	b.append(last+1, "short") // into what is left of a used file
	b.want(7, big(7), big(8), big(9), big(10), big(11), "short")
	b.reopen()
	b.want(7, big(7), big(8), big(9), big(10), big(11), "short")
	if n := spares(); n != 0 {
		t.Errorf("%d spare files after a start", n)
	}
	b.append(last+2, "goes on")
	b.reopen()
	b.want(7, big(7), big(8), big(9), big(10), big(11), "short", "goes on")
}

// The power goes when a used file has its new name and nothing else.
func TestAUsedFileThatWasNeverWrittenToIsNoRecord(t *testing.T) {
	t.Parallel()
	long := string(bytes.Repeat([]byte("x"), smallSegment/2))
	for _, noted := range []uint64{3, 4} { // before and after the note
		b := setup(t)
		b.append(1, long)
		b.append(2, long)
		b.append(3, long)
		if err := b.CutFront(2); err != nil {
			t.Fatal(err)
		}
		b.writing.Lock()
		s, err := b.create(4, smallSegment)
		b.writing.Unlock()
		if err != nil || !s.reused {
			t.Fatalf("%v, of a used file: %t", err, s.reused)
		}
		_ = s.file.Close()
		b.note.first = noted
		b.reopen()
		b.want(3, long)
		b.append(4, "other")
		b.reopen()
		b.want(3, long, "other")
	}
}

// BenchmarkAppend of one record, fdatasync included, into files that are new and such that were segments before.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{32 << 10, 220 << 10} {
		for name, used := range map[string]bool{"new": false, "used": true} {
			b.Run(fmt.Sprintf("%d KiB/%s", size>>10, name), func(b *testing.B) {
				l, err := Open(filepath.Join(b.TempDir(), "log"), &note{})
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = l.Close() }()
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(rand.Uint32())
				}
				perFile := uint64(SegmentSize / size)
				index := uint64(0)
				step := func() {
					index++
					if err := l.Append(index, [][][]byte{{data}}); err != nil {
						b.Fatal(err)
					}
					if index%perFile != 0 || index < 3*perFile {
						return
					}
					b.StopTimer()
					if err := l.CutFront(index - 2*perFile); err != nil {
						b.Fatal(err)
					}
					for ; !used && len(l.spares) > 0; l.spares = l.spares[1:] {
						if err := errors.Join(l.spares[0].file.Close(), os.Remove(l.spares[0].path)); err != nil {
							b.Fatal(err)
						}
					}
					b.StartTimer()
				}
				for range 6 * perFile {
					step()
				}
				b.ResetTimer()
				for range b.N {
					step()
				}
			})
		}
	}
}
