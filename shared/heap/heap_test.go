package heap

import (
	"runtime"
	"runtime/metrics"
	"testing"
)

func TestTheNextCollectionIsAtLeastAFloorAway(t *testing.T) {
	release := HoldFloor()
	defer release()
	runtime.GC()
	goal := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	metrics.Read(goal)
	if got := goal[0].Value.Uint64(); got < 2*floor {
		t.Errorf("the next collection is at %d bytes, want %d at least (the floor counts as live)", got, 2*floor)
	}
}
