package logfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// note is a Newest in memory.
type note struct{ first uint64 }

func (n *note) Load() (uint64, error) { return n.first, nil }
func (n *note) Store(first uint64) error {
	n.first = first
	return nil
}

// bundle is a log on a directory, opened again and again.
type bundle struct {
	t    *testing.T
	dir  string
	note *note
	*Log
}

const smallSegment = 4 << 10

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{t: t, dir: filepath.Join(t.TempDir(), "log"), note: &note{}}
	b.reopen()
	t.Cleanup(func() {
		if b.Log != nil {
			_ = b.Close()
		}
	})
	return b
}

func (b *bundle) reopen() {
	b.t.Helper()
	if err := b.tryReopen(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) tryReopen() (err error) {
	b.t.Helper()
	if b.Log != nil {
		if err := b.Close(); err != nil {
			b.t.Fatal(err)
		}
	}
	b.Log, err = open(b.dir, b.note, smallSegment)
	return err
}

func (b *bundle) append(first uint64, data ...string) {
	b.t.Helper()
	var records [][][]byte
	for _, d := range data {
		records = append(records, [][]byte{[]byte(d[:len(d)/2]), []byte(d[len(d)/2:])})
	}
	if err := b.Append(first, records); err != nil {
		b.t.Fatal(err)
	}
}

// want the log to hold exactly these, the first of them at this index.
func (b *bundle) want(first uint64, data ...string) {
	b.t.Helper()
	gotFirst, gotLast := b.Bounds()
	if len(data) == 0 {
		if gotFirst != 0 || gotLast != 0 {
			b.t.Fatalf("bounds %d to %d, want an empty log", gotFirst, gotLast)
		}
		return
	}
	if gotFirst != first || gotLast != first+uint64(len(data))-1 {
		b.t.Fatalf("bounds %d to %d, want %d to %d", gotFirst, gotLast, first, first+uint64(len(data))-1)
	}
	for i, d := range data {
		got, err := b.Read(first + uint64(i))
		if err != nil || string(got) != d {
			b.t.Fatalf("record %d: %q %v, want %q", first+uint64(i), got, err, d)
		}
	}
	for _, outside := range []uint64{first - 1, gotLast + 1} {
		if _, err := b.Read(outside); !errors.Is(err, ErrNotFound) {
			b.t.Fatalf("record %d outside: %v", outside, err)
		}
	}
}

// newestFile is the newest segment's path.
func (b *bundle) newestFile() string {
	paths, _ := filepath.Glob(filepath.Join(b.dir, "*.log"))
	slices.Sort(paths)
	return paths[len(paths)-1]
}

// edit a file behind the log's back.
func (b *bundle) edit(path string, f func(content []byte)) {
	b.t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	f(content)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func TestWhatWasAppendedIsThereAfterAStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(0)
	b.append(7, "a", "", "ccc")
	b.append(10, "d")
	b.want(7, "a", "", "ccc", "d")
	b.reopen()
	b.want(7, "a", "", "ccc", "d")
	if err := b.Append(12, [][][]byte{{{1}}}); err == nil {
		t.Error("a hole was appended")
	}
	b.append(11, "e")
	b.reopen()
	b.want(7, "a", "", "ccc", "d", "e")
}

func TestATornAppendIsCutAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(1, "first")
	b.append(2, "second", "third", "fourth")
	// The power went before the whole append was on the disk: its second record is not, its third is.
	b.edit(b.newestFile(), func(c []byte) { c[bytes.Index(c, []byte("third"))] = 0 })
	b.reopen()
	b.want(1, "first", "second")
	b.append(3, "THIRD")
	b.reopen()
	b.want(1, "first", "second", "THIRD") // and not "fourth", whose index, place and append fit
}

// The power goes while an append of some forty kilobytes is written: of its sectors any are on the disk, the others as they were. What
// was there before is there afterwards, with records of the append up to one that is not whole, and the log goes on.
func TestAnAppendTornAtAnySector(t *testing.T) {
	t.Parallel()
	for name, used := range map[string]bool{"of a new file": false, "of a used file": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tornAtAnySector(t, used)
		})
	}
}

func tornAtAnySector(t *testing.T, used bool) {
	const sector, large = 512, 256 << 10
	b := setup(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.Log, err = open(b.dir, b.note, large); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(10, 10))
	first := uint64(1) // index
	if used {
		for i := range uint64(200) { // appends of their own, so that each would be damage behind a torn one
			b.append(1+i, string(bytes.Repeat([]byte{byte(i)}, 1000)))
		}
		if err := b.CutFront(200); err != nil {
			t.Fatal(err)
		}
		first = 201
	}
	long := func(n int) (all []string) {
		for range n {
			data := make([]byte, random.IntN(2000))
			for i := range data {
				data[i] = byte(random.Uint32())
			}
			all = append(all, string(data))
		}
		return all
	}
	read := func() []byte {
		content, err := os.ReadFile(b.newestFile())
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	early, late := long(5), long(40)
	b.append(first, early...)
	before := read()
	b.append(first+5, late...)
	after := read()
	end := b.segments[0].end
	if used != b.segments[0].reused {
		t.Fatalf("used: %t, want %t", b.segments[0].reused, used)
	}
	if len(before) != len(after) {
		t.Fatalf("the file grew from %d to %d bytes: it is not made in one piece any more", len(before), len(after))
	}
	from, last := 0, 0 // sectors that the append changed
	for i := range len(after) / sector {
		if !bytes.Equal(before[i*sector:(i+1)*sector], after[i*sector:(i+1)*sector]) {
			if from == 0 {
				from = i
			}
			last = i
		}
	}
	cases := 0
	try := func(what string, written func(i int) bool) {
		t.Helper()
		cases++
		torn := bytes.Clone(before)
		for i := from; i <= last; i++ {
			if written(i) {
				copy(torn[i*sector:(i+1)*sector], after[i*sector:])
			}
		}
		b.edit(b.newestFile(), func(c []byte) { copy(c, torn) })
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if b.Log, err = open(b.dir, b.note, large); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, ends := b.Bounds()
		kept := int(ends-first) + 1 - len(early)
		if kept < 0 || kept > len(late) || (kept == len(late)) != bytes.Equal(torn[:end], after[:end]) {
			t.Fatalf("%s: the log ends at %d", what, ends)
		}
		all := slices.Concat(early, late[:kept])
		b.want(first, all...)
		b.append(first+uint64(len(all)), "goes on")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if b.Log, err = open(b.dir, b.note, large); err != nil {
			t.Fatalf("%s, gone on: %v", what, err)
		}
		b.want(first, append(slices.Clone(all), "goes on")...)
	}
	for i := from; i <= last+1; i++ {
		try(fmt.Sprintf("the first %d sectors", i-from), func(j int) bool { return j < i })
		try(fmt.Sprintf("all but sector %d", i-from), func(j int) bool { return j != i })
		try(fmt.Sprintf("sector %d only", i-from), func(j int) bool { return j == i })
	}
	for n := range 50 {
		try(fmt.Sprintf("some, %d", n), func(int) bool { return random.IntN(2) == 0 })
	}
	if cases < 200 {
		t.Errorf("%d cases", cases)
	}
}

func TestDamageThatNoTornWriteExplainsIsAnError(t *testing.T) {
	t.Parallel()
	long := string(bytes.Repeat([]byte("x"), smallSegment/2))
	for name, damage := range map[string]func(b *bundle){
		"record of an append that was complete": func(b *bundle) {
			b.edit(b.newestFile(), func(c []byte) { c[bytes.Index(c, []byte("early"))] ^= 1 })
		},
		"zeros over a record": func(b *bundle) {
			b.edit(b.newestFile(), func(c []byte) { clear(c[segmentHeader : segmentHeader+recordHeader+8]) })
		},
		"older segment": func(b *bundle) {
			b.append(3, long, long)
			b.edit(filepath.Join(b.dir, name(1)), func(c []byte) { c[bytes.Index(c, []byte("late"))] ^= 1 })
		},
		"file of zeros": func(b *bundle) {
			b.edit(b.newestFile(), func(c []byte) { clear(c) })
		},
		"empty file": func(b *bundle) {
			if err := os.Truncate(b.newestFile(), 0); err != nil {
				b.t.Fatal(err)
			}
		},
		"header": func(b *bundle) {
			b.edit(b.newestFile(), func(c []byte) { c[9] ^= 1 })
		},
		"segment in the middle": func(b *bundle) {
			b.append(3, long)
			b.append(4, long)
			b.append(5, long)
			if err := os.Remove(filepath.Join(b.dir, name(4))); err != nil {
				b.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.append(1, "early")
			b.append(2, "late")
			damage(b)
			if err := b.tryReopen(); !errors.Is(err, ErrDamaged) {
				t.Errorf("opened with %v", err)
			}
		})
	}
}

func TestABitThatFlipsWhileOpenIsNotServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(1, "right")
	b.edit(b.newestFile(), func(c []byte) { c[bytes.Index(c, []byte("right"))] ^= 1 })
	if data, err := b.Read(1); !errors.Is(err, ErrDamaged) {
		t.Errorf("read %q, %v", data, err)
	}
}

func TestALostFileIsNoticed(t *testing.T) {
	t.Parallel()
	long := string(bytes.Repeat([]byte("x"), smallSegment/2))
	b := setup(t)
	b.append(1, long)
	b.append(2, long)
	if err := os.Remove(b.newestFile()); err != nil {
		t.Fatal(err)
	}
	if err := b.tryReopen(); !errors.Is(err, ErrMissing) {
		t.Errorf("opened without its newest segment: %v", err)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
	if err := b.tryReopen(); !errors.Is(err, ErrMissing) {
		t.Errorf("opened without any segment: %v", err)
	}
	c := setup(t)
	c.append(1, "a")
	c.note.first = 0
	if err := c.tryReopen(); !errors.Is(err, ErrMissing) {
		t.Errorf("opened without the note: %v", err)
	}
}

func TestASegmentThatWasNeverWrittenToIsNoRecord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(1, "a")
	for _, content := range [][]byte{nil, make([]byte, smallSegment)} {
		if err := os.WriteFile(filepath.Join(b.dir, name(2)), content, 0o600); err != nil {
			t.Fatal(err)
		}
		b.reopen()
		b.want(1, "a")
	}
	s, err := create(b.dir, 2, smallSegment) // with a header, too
	if err != nil {
		t.Fatal(err)
	}
	b.note.first = 2
	_ = s.file.Close()
	b.reopen()
	b.want(1, "a")
	b.reopen()
	b.append(2, "b")
	b.want(1, "a", "b")
}

func TestAWriteThatFailsLeavesNothingAndMayBeTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(1, "a")
	s := b.segments[0]
	writable := s.file
	readOnly, err := os.Open(s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.file = readOnly
	if err := b.Append(2, [][][]byte{{[]byte("b")}}); err == nil {
		t.Fatal("appended to a file that takes no writes")
	}
	s.file = writable
	_ = readOnly.Close()
	if b.failed == nil { // a file that cannot be cleared either ends the log
		t.Error("the rest of the segment is unknown, and the log goes on")
	}
	b.failed = nil // as if it could have been cleared
	b.append(2, "B")
	b.reopen()
	b.want(1, "a", "B")
	if err := os.Chmod(b.dir, 0o500); err != nil {
		t.Fatal(err)
	}
	big := [][][]byte{{make([]byte, smallSegment)}}
	if err := os.Mkdir(filepath.Join(b.dir, name(3)), 0o700); err == nil { // root writes anywhere: stand in the way
		defer func() { _ = os.Remove(filepath.Join(b.dir, name(3))) }()
	}
	if err := b.Append(3, big); err == nil {
		t.Fatal("a segment was made where there is a directory")
	}
	if err := errors.Join(os.Chmod(b.dir, 0o700), os.RemoveAll(filepath.Join(b.dir, name(3)))); err != nil {
		t.Fatal(err)
	}
	if err := b.Append(3, big); err != nil {
		t.Errorf("a segment that could not be made is not made later: %v", err)
	}
}

func TestAFailedWriteEndsTheLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(1, "a")
	_ = b.segments[0].file.Close() // every write to it fails
	if err := b.Append(2, [][][]byte{{[]byte("b")}}); err == nil {
		t.Fatal("appended to a closed file")
	}
	if err := b.Append(2, [][][]byte{{[]byte("b")}}); !errors.Is(err, errFailed) {
		t.Errorf("appended after a failure: %v", err)
	}
	b.Log = nil
	b.reopen()
	b.want(1, "a")
}

// TestLikeAModel: random appends, cuts and starts leave what a slice would hold.
func TestLikeAModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 0))
			b := setup(t)
			model, first := []string{}, uint64(1)
			for range 150 {
				switch what := r.IntN(10); {
				case what < 6:
					if len(model) == 0 {
						first += r.Uint64N(5)
					}
					var add []string
					for range 1 + r.IntN(5) {
						add = append(add, string(bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(1500))))
					}
					b.append(first+uint64(len(model)), add...)
					model = append(model, add...)
				case what == 6 && len(model) > 0:
					n := r.IntN(len(model) + 1)
					if err := b.CutBack(first + uint64(len(model)-n)); err != nil {
						t.Fatal(err)
					}
					model = model[:len(model)-n]
				case what == 7 && len(model) > 0:
					n := r.IntN(len(model) + 1)
					if err := b.CutFront(first + uint64(n) - 1); err != nil {
						t.Fatal(err)
					}
					model, first = model[n:], first+uint64(n)
				case what == 8:
					before, _ := b.Bounds()
					b.reopen()
					after, _ := b.Bounds()
					if after > before { // fewer than before: never at the front
						t.Fatalf("begins at %d, was %d", after, before)
					}
					if len(model) > 0 { // what was cut in the middle of a file may be there again
						if err := b.CutFront(first - 1); err != nil {
							t.Fatal(err)
						}
					} else if after != 0 {
						if err := b.CutFront(first); err != nil {
							t.Fatal(err)
						}
					}
				}
				b.want(first, model...)
			}
		})
	}
}

// FuzzOpen: whatever is in a segment, Open gives an error or a log that can be read as a whole.
func FuzzOpen(f *testing.F) {
	salt := [8]byte{1}
	header := make([]byte, segmentHeader)
	copy(header, magic[:])
	binary.LittleEndian.PutUint64(header[8:], 1)
	f.Add(header)
	f.Add(appendRecord(slices.Clone(header), 1, segmentHeader, salt, [][]byte{[]byte("abc")}))
	f.Fuzz(func(t *testing.T, content []byte) {
		b := &bundle{t: t, dir: filepath.Join(t.TempDir(), "log"), note: &note{first: 1}}
		if err := os.Mkdir(b.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.dir, name(1)), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if b.tryReopen() != nil {
			return
		}
		defer b.Close()
		first, last := b.Bounds()
		for i := first; i != 0 && i <= last; i++ {
			if _, err := b.Read(i); err != nil {
				t.Fatal(err)
			}
		}
	})
}
