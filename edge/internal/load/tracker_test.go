package load

import "testing"

// A call that must not keep its function awake is nothing but open on its replica, whose drain waits for it.
func TestAQuietCallIsNoActivity(t *testing.T) {
	t.Parallel()
	tracker := NewTracker()
	f := tracker.Function("f")
	var r Replica
	call, open := f.Begin(&r, Quiet)
	call.Stream()
	if open != 1 || r.Open() != 1 || f.Figures() != (Figures{}) || tracker.Open() != 0 {
		t.Errorf("open %d, %+v", open, f.Figures())
	}
	call.End()
	call.End()
	if r.Open() != 0 || f.lastEnd.Load() != 0 || f.Figures() != (Figures{}) {
		t.Errorf("after its end: open %d, last end %d", r.Open(), f.lastEnd.Load())
	}
}
