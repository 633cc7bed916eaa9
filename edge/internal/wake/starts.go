package wake

import "time"

// starts is what the starts of a function's first replica took. Of values; the lot locks.
type starts struct {
	began   time.Time     // of the one under way; zero: none is
	typical time.Duration // weighted towards the last; 0: none was seen
}

// begin where none is under way: who comes again later waits for the same one.
func (s *starts) begin(now time.Time) {
	if s.began.IsZero() || s.typical > 0 && now.Sub(s.began) > 10*s.typical {
		s.began = now
	}
}

func (s *starts) end(now time.Time) {
	if s.began.IsZero() {
		return
	}
	took := now.Sub(s.began)
	if s.began = (time.Time{}); s.typical == 0 {
		s.typical = took
		return
	}
	s.typical = (2*s.typical + took) / 3
}

// left of the one under way, or of one that would begin now; not negative.
func (s *starts) left(now time.Time) (left time.Duration, known bool) {
	if s.typical == 0 {
		return 0, false
	}
	if s.began.IsZero() {
		return s.typical, true
	}
	return max(0, s.typical-now.Sub(s.began)), true
}
