package heap

import (
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

// goal is the size at which the next collection begins, in bytes.
func goal() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// eventually fails the test where the goal is not as wanted within ten seconds: cleanups run some time after a collection.
func eventually(t *testing.T, want string, ok func(goal, live uint64) bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok(goal(), alive()) {
		if time.Now().After(deadline) {
			t.Fatalf("the next collection is at %d bytes with %d alive, want %s", goal(), alive(), want)
		}
		runtime.Gosched()
	}
}

func TestASmallHeapGrowsByTheFloorALargeOneByItself(t *testing.T) {
	t.Setenv("GOGC", "")
	release := HoldFloor()
	about := func(goal, live uint64) bool { return goal-live >= floor*9/10 && goal-live <= floor*11/10 }
	runtime.GC()
	eventually(t, "about the floor more", about)

	large := make([]byte, 4*floor)
	runtime.GC()
	eventually(t, "about twice as much", func(goal, live uint64) bool { return live > 4*floor && goal < live*9/4 })
	runtime.KeepAlive(large)

	runtime.GC()
	eventually(t, "the floor again", func(goal, live uint64) bool { return live < floor && about(goal, live) })

	release()
	runtime.GC()
	eventually(t, "what Go does", func(goal, _ uint64) bool { return goal < floor })
}

func TestAPercentageOfSomebodysOwnIsLeftAlone(t *testing.T) {
	t.Setenv("GOGC", "50")
	before := goal()
	HoldFloor()()
	if goal() != before {
		t.Errorf("the next collection is at %d bytes, was at %d", goal(), before)
	}
}

func TestPercentFor(t *testing.T) {
	for live, want := range map[uint64]int{0: 800, 1 << 20: 800, 4 << 20: 800, 8 << 20: 400, 16 << 20: 200, 26 << 20: 200, 32 << 20: 200, 48 << 20: 133, 64 << 20: 100, 1 << 30: 100} {
		if got := percentFor(live); got != want {
			t.Errorf("percentFor(%d) = %d, want %d", live, got, want)
		}
	}
}
