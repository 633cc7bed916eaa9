package logfile

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestAPartOfARecordIsRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(5, "the first record", "the second")
	part := make([]byte, 5)
	if err := b.ReadPart(5, 4, part); err != nil || string(part) != "first" {
		t.Errorf("%q: %v", part, err)
	}
	if err := b.ReadPart(7, 0, part); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a record that is not there: %v", err)
	}
	for _, offset := range []int64{-1, 12, 1 << 40} {
		if err := b.ReadPart(6, offset, part); !errors.Is(err, ErrDamaged) {
			t.Errorf("at %d, outside of the record: %v", offset, err)
		}
	}
	if err := b.CutFront(5); err != nil {
		t.Fatal(err)
	}
	if err := b.ReadPart(5, 4, part); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a record that was cut off: %v", err)
	}
}

func TestTheTailIsAsLongAsAsked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if first := b.Tail(1 << 20); first != 0 {
		t.Errorf("of an empty log: %d", first)
	}
	const records, each = 20, recordHeader + 1000
	for i := range uint64(records) { // some to a segment
		b.append(1+i, strings.Repeat("x", 1000))
	}
	for _, c := range []struct {
		size int64
		want uint64
	}{{0, records + 1}, {each - 1, records + 1}, {each, records}, {1 << 20, 1}} {
		if first := b.Tail(c.size); first != c.want {
			t.Errorf("of %d bytes: from %d, want %d", c.size, first, c.want)
		}
	}
	for last, size := uint64(records+1), int64(0); size < 30_000; size += 500 {
		first := b.Tail(size)
		if first > last || int64(records+1-first)*each > size {
			t.Errorf("of %d bytes: from %d, after %d", size, first, last)
		}
		last = first
	}
	if err := b.CutFront(10); err != nil {
		t.Fatal(err)
	}
	if first := b.Tail(1 << 20); first != 11 {
		t.Errorf("of a log that was cut: from %d", first)
	}
}

// What is read while the log is cut at both ends, and goes on, is the record, or that there is none.
func TestRecordsAreReadWhileTheLogIsCut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	record := func(index uint64) string { return strings.Repeat(strconv.FormatUint(index, 10)+" ", 100) }
	var newest, found atomic.Uint64
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			part := make([]byte, 20)
			for ctx.Err() == nil {
				for index := max(newest.Load(), 30) - 30; index <= newest.Load()+1; index++ {
					data, err := b.Read(index)
					if err != nil && !errors.Is(err, ErrNotFound) || err == nil && string(data) != record(index) {
						t.Errorf("record %d: %.20q, %v", index, data, err)
						return
					}
					if err == nil {
						found.Add(1)
					}
					err = b.ReadPart(index, 0, part)
					if err != nil && !errors.Is(err, ErrNotFound) || err == nil && string(part) != record(index)[:20] {
						t.Errorf("part of record %d: %q, %v", index, part, err)
						return
					}
				}
			}
		})
	}
	for next := uint64(1); next < 600; {
		b.append(next, record(next), record(next+1), record(next+2))
		next += 3
		newest.Store(next - 1)
		if next%7 == 0 {
			if err := b.CutBack(next - 2); err != nil {
				t.Fatal(err)
			}
			next -= 2
		}
		if next > 20 && next%5 == 0 {
			if err := b.CutFront(next - 20); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	reading.Wait()
	if found.Load() < 100 {
		t.Errorf("%d records were found: this tests nothing", found.Load())
	}
}

// Whatever takes bytes away waits for whoever reads them.
func TestAReaderIsWaitedFor(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(*Log) error{
		"the front is cut":                      func(l *Log) error { return l.CutFront(l.segments[0].last()) },
		"the end is cut, and a file with it":    func(l *Log) error { return l.CutBack(1) },
		"the end is cut, and its file is wiped": func(l *Log) error { return l.CutBack(2) },
		"the log is closed":                     (*Log).Close,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.append(1, "a", "b", "c") // in one file
			for next := uint64(4); len(b.segments) == 1; next++ {
				b.append(next, strings.Repeat("x", 1000))
			}
			read, _, _, err := b.find(3)
			if err != nil {
				t.Fatal(err)
			}
			taken := make(chan error, 1)
			go func() { taken <- take(b.Log) }()
			for read.reading.TryRLock() { // until somebody waits for the lock
				read.reading.RUnlock()
				select {
				case err := <-taken:
					read.reading.RUnlock()
					t.Fatalf("it did not wait, and gave %v", err)
				default:
					runtime.Gosched()
				}
			}
			read.reading.RUnlock()
			if err := <-taken; err != nil {
				t.Error(err)
			}
		})
	}
}
