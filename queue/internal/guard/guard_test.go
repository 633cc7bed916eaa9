package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestLevelsRiseAtTheirThresholdsAndFallBelowThem(t *testing.T) {
	t.Parallel()
	limits := Limits{Refuse: 85, HandOver: 90}
	for _, c := range []struct {
		used float64
		from Level
		want Level
	}{
		{84.9, Roomy, Roomy}, {85, Roomy, Refusing}, {83.1, Refusing, Refusing}, {82.9, Refusing, Roomy},
		{90, Roomy, HandOver}, {88.5, HandOver, HandOver}, {87.5, HandOver, Refusing}, {95, Refusing, Halted}, {93.5, Halted, Halted},
		{92, Halted, HandOver}, {20, Halted, Roomy}, {100, Roomy, Halted},
	} {
		if got := limits.level(c.used, c.from); got != c.want {
			t.Errorf("%g %% from %v: %v, want %v", c.used, c.from, got, c.want)
		}
	}
}

func TestBallastIsGivenBackWhenTheDiskFillsAndSetAsideAgain(t *testing.T) {
	t.Parallel()
	space := Space{Used: 20, Total: 100 << 20}
	d := &Disk{dir: t.TempDir(), limits: Limits{Refuse: 85, HandOver: 90, Ballast: 1 << 20}, log: slog.New(slog.DiscardHandler),
		stat: func(string) (Space, error) { return space, nil }}
	size := func() int64 {
		info, err := os.Stat(filepath.Join(d.dir, ballastFile))
		if errors.Is(err, os.ErrNotExist) {
			return 0
		}
		return info.Size()
	}
	for _, step := range []struct {
		used float64
		want int64
	}{{20, 1 << 20}, {86, 1 << 20}, {91, 1 << 19}, {92, 1 << 19}, {86, 1 << 19}, {82.5, 1 << 19}, {50, 1 << 20}} {
		space.Used = step.used
		if err := d.Check(); err != nil {
			t.Fatal(err)
		}
		if got := size(); got != step.want || got != d.Ballast() {
			t.Fatalf("at %g %%: a ballast of %d bytes on disk, %d known, want %d", step.used, got, d.Ballast(), step.want)
		}
	}
}

func TestAWriteOnAFullDiskIsTriedAgainOnceTheBallastIsGone(t *testing.T) {
	t.Parallel()
	d, err := NewDisk(t.TempDir(), Limits{Refuse: 98, HandOver: 99, Ballast: 4096}, Stat, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if d.Ballast() == 0 {
		t.Skip("this machine's disk is too full for a ballast")
	}
	tries := 0
	full := fmt.Errorf("writing: %w", syscall.ENOSPC)
	write := func() error {
		if tries++; d.Ballast() > 0 {
			return full
		}
		return nil
	}
	if err := d.Write(write); err != nil || tries != 2 {
		t.Fatalf("%d tries, %v", tries, err)
	}
	if err := d.Write(func() error { return full }); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("without a ballast: %v", err)
	}
}

func TestWatchTellsOfTheLongestWriteUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := NewWatch(2)
		release := make(chan struct{})
		go func() { _ = w.Slot(0).Write(func() error { <-release; return nil }) }()
		time.Sleep(2 * time.Second) // of the bubble
		go func() { _ = w.Slot(1).Write(func() error { <-release; return nil }) }()
		time.Sleep(time.Second)
		if got := w.Longest(); got != 3*time.Second {
			t.Errorf("longest %v", got)
		}
		close(release)
		synctest.Wait()
		if got := w.Longest(); got != 0 {
			t.Errorf("after the end %v", got)
		}
	})
}

func TestAMarkerComesBackAndADamagedOneIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, found, err := ReadMarker(dir); found || err != nil {
		t.Fatalf("in an empty directory: %v, %v", found, err)
	}
	want := Marker{Version: markerVersion, Node: "queue-0", Directory: "d", Cluster: "c", Epoch: 7, Joining: true}
	if err := WriteMarker(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, found, err := ReadMarker(dir); got != want || !found || err != nil {
		t.Fatalf("%+v, %v, %v", got, found, err)
	}
	path := filepath.Join(dir, MarkerFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range len(good) - 1 { // the last byte is a line's end
		bad := append([]byte{}, good...)
		bad[at] ^= 4
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := ReadMarker(dir); !errors.Is(err, ErrMarker) && got != want {
			t.Fatalf("byte %d flipped: %+v, %v", at, got, err)
		}
	}
}
