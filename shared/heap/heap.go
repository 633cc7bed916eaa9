// Package heap sets how much a program allocates before the garbage collector runs.
package heap

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

const (
	// floor is what may be allocated between two collections at least, in bytes.
	floor = 32 << 20
	// roomy is up to where twice as much may be allocated as is alive: 10,000 functions are 26 MiB at an edge, and a call some 5 KiB.
	roomy = 2 * floor

	// usual is Go's own percentage: as much may be allocated between two collections as is alive.
	usual = 100
	// most: Go collects nothing below 4 MiB at its usual percentage, and below as many times more at a higher one.
	most = usual * floor / (4 << 20)
)

// HoldFloor lets the program allocate 32 MiB before each collection where it lives on less, which is a few megabytes: a fifth of the
// processor time of a busy queue node went into collecting. Where it lives on more than 16 MiB it may allocate twice that, up to 64 MiB.
// Larger heaps are collected as Go does, and so is what GOMEMLIMIT demands.
// Where GOGC is set it alone counts. The floor is kept until release is called.
func HoldFloor() (release func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	f := &follower{percent: usual}
	f.follow()
	return f.release
}

// A follower sets the percentage again after each collection, by what that left alive.
type follower struct {
	mu       sync.Mutex
	percent  int
	released bool
}

func (f *follower) follow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return
	}
	f.set(percentFor(alive()))
	// The runtime tells nobody of a collection, but it cleans up after what one has collected.
	runtime.AddCleanup(new([16]byte), (*follower).follow, f)
}

func (f *follower) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = true
	f.set(usual)
}

// set changes the percentage, which stops the program for some microseconds, so not for a difference of less than a tenth.
func (f *follower) set(percent int) {
	if difference := percent - f.percent; percent == usual && difference != 0 || difference > f.percent/10 || -difference > f.percent/10 {
		debug.SetGCPercent(percent)
		f.percent = percent
	}
}

// percentFor a program with so many bytes alive, which is zero before its first collection.
func percentFor(live uint64) int {
	live = max(live, 1)
	allowed := max(live, floor, min(2*live, roomy))
	return int(min(allowed*usual/live, most))
}

// alive is what the last collection left, in bytes.
func alive() uint64 {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	return live[0].Value.Uint64()
}
