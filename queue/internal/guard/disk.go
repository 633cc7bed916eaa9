package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

const (
	// ballastFile lies in the data directory and is given back when the disk is nearly full, so that terms and votes, which a
	// node must be able to save, still find room.
	ballastFile = "ballast"
	// ballastShare of a small disk is the most the ballast takes.
	ballastShare = 20
	// slack a level falls only this far below its threshold, in percent: it must not flutter.
	slack = 2
)

// Level of a disk. Each includes what those below it refuse.
type Level uint8

// The levels, in the order they are reached.
const (
	// Roomy: everything goes.
	Roomy Level = iota
	// Refusing: no new calls are accepted.
	Refusing
	// HandOver: another node should lead; half of the ballast is given back.
	HandOver
	// Halted: the log does not grow any more, half-way between the hand-over and a full disk.
	Halted
)

func (l Level) String() string {
	return [...]string{"roomy", "refusing", "hand-over", "halted"}[l]
}

// Limits of a disk.
type Limits struct {
	Refuse   float64 // percent in use from which no calls are accepted
	HandOver float64 // percent in use from which another node leads
	Ballast  int64   // bytes set aside, at most a twentieth of the disk; 0: none
}

// Validate says what is wrong with them.
func (l Limits) Validate() error {
	if l.Refuse <= 0 || l.HandOver < l.Refuse || l.HandOver >= 100 || l.Ballast < 0 {
		return fmt.Errorf("disk limits: refuse at %g %%, hand over at %g %%, ballast of %d bytes: expected 0 < refuse ≤ hand over < 100, ballast ≥ 0",
			l.Refuse, l.HandOver, l.Ballast)
	}
	return nil
}

// Space of a file system.
type Space struct {
	Used  float64 // percent, of what a process without privileges can use
	Free  int64   // bytes
	Total int64   // bytes
}

// Stat asks the file system of a directory.
func Stat(dir string) (Space, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return Space{}, fmt.Errorf("asking for the space of %s: %w", dir, err)
	}
	used := s.Blocks - s.Bfree
	space := Space{Free: int64(s.Bavail) * s.Bsize, Total: int64(s.Blocks) * s.Bsize}
	if all := used + s.Bavail; all > 0 {
		space.Used = 100 * float64(used) / float64(all)
	}
	return space, nil
}

// Disk watches the space under a data directory. Safe for any goroutine.
type Disk struct {
	dir    string
	limits Limits
	log    *slog.Logger
	stat   func(dir string) (Space, error)

	mu      sync.Mutex // guards all below, and the ballast's file
	space   Space
	level   Level
	ballast int64 // bytes set aside now
}

// NewDisk looks once, with stat (Stat, but in tests), and sets the ballast aside where there is room.
func NewDisk(dir string, limits Limits, stat func(dir string) (Space, error), log *slog.Logger) (*Disk, error) {
	d := &Disk{dir: dir, limits: limits, log: log, stat: stat}
	if info, err := os.Stat(d.path()); err == nil {
		d.ballast = info.Size()
	}
	return d, d.Check()
}

func (d *Disk) path() string { return filepath.Join(d.dir, ballastFile) }

// Level of the last look.
func (d *Disk) Level() Level {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.level
}

// Space of the last look.
func (d *Disk) Space() Space {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.space
}

// Ballast set aside now, in bytes.
func (d *Disk) Ballast() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ballast
}

// Check looks again.
func (d *Disk) Check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	space, err := d.stat(d.dir)
	if err != nil {
		return err
	}
	before := d.level
	d.space, d.level = space, d.limits.level(space.Used, d.level)
	if d.level >= HandOver && before < HandOver {
		d.release(d.ballast / 2)
	} else if d.level == Roomy {
		d.setAside()
	}
	if d.level != before {
		d.log.Warn("disk changed its level", "level", d.level.String(), "was", before.String(), "used_percent", int(space.Used), "free_bytes", space.Free)
	}
	return nil
}

// level for so many percent, coming from another.
func (l Limits) level(used float64, from Level) Level {
	thresholds := [...]float64{Refusing: l.Refuse, HandOver: l.HandOver, Halted: (l.HandOver + 100) / 2}
	for level := Halted; level > Roomy; level-- {
		at := thresholds[level]
		if level <= from {
			at -= slack
		}
		if used >= at {
			return level
		}
	}
	return Roomy
}

// Write runs a write without which the node cannot go on; one that finds the disk full is tried once more with all of the
// ballast given back.
func (d *Disk) Write(write func() error) error {
	err := write()
	if !errors.Is(err, syscall.ENOSPC) || !d.giveBack() {
		return err
	}
	if again := write(); again != nil {
		return fmt.Errorf("%w (the ballast was given back and did not suffice)", again)
	}
	return nil
}

func (d *Disk) giveBack() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.release(0)
}

// release the ballast but for so many bytes. Called with mu held.
func (d *Disk) release(keep int64) (released bool) {
	if d.ballast <= keep {
		return false
	}
	err := os.Truncate(d.path(), keep)
	if keep == 0 {
		err = os.Remove(d.path())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Error("the ballast cannot be given back", "err", err)
		return false
	}
	d.log.Warn("disk nearly full: ballast given back", "bytes", d.ballast-keep, "left_bytes", keep)
	d.ballast = keep
	return true
}

// setAside the ballast where it leaves enough room. Called with mu held. Without it the node works as well, until it is needed.
func (d *Disk) setAside() {
	size := min(d.limits.Ballast, d.space.Total/ballastShare)
	if d.ballast >= size || size <= 0 {
		return
	}
	if after := d.space.Used + 100*float64(size)/float64(d.space.Total); after >= d.limits.Refuse-slack {
		return
	}
	if err := allocate(d.path(), size); err != nil {
		_ = os.Remove(d.path())
		d.log.Warn("no ballast could be set aside", "bytes", size, "err", err)
		return
	}
	d.ballast = size
}
