// Package heap sets how much a program allocates before the garbage collector runs.
package heap

import "runtime"

// floor in bytes. It is address space, not memory: nothing ever touches it.
const floor = 32 << 20

// HoldFloor lets the program allocate 32 MiB before each collection instead of as much as it lives on, which is a few megabytes:
// a fifth of the processor time of a busy queue node went into collecting. Large heaps are collected as before, and so is what
// GOMEMLIMIT demands. The caller keeps the floor until it calls release.
func HoldFloor() (release func()) {
	held := make([]byte, floor)
	return func() { runtime.KeepAlive(held) }
}
