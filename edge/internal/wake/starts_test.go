package wake

import (
	"testing"
	"time"
)

func TestWhatAStartWillTakeIsLearned(t *testing.T) {
	t.Parallel()
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	var s starts
	if _, known := s.left(at(0)); known {
		t.Error("something is known of the first")
	}
	s.begin(at(0))
	s.begin(at(2)) // waits for the same
	s.end(at(6))
	s.end(at(7)) // another waiter of the same
	if left, known := s.left(at(8)); !known || left != 6*time.Second {
		t.Errorf("%v, %v", left, known)
	}
	s.begin(at(10))
	if left, _ := s.left(at(12)); left != 4*time.Second {
		t.Errorf("%v are left after 2 of 6", left)
	}
	if left, _ := s.left(at(30)); left != 0 {
		t.Errorf("%v are left after more than it takes", left)
	}
	s.end(at(19))
	if left, _ := s.left(at(20)); left != 7*time.Second {
		t.Errorf("typical of 6 and 9 is %v", left)
	}
	s.begin(at(30))
	s.begin(at(130)) // the first one never came to an end
	if left, _ := s.left(at(131)); left != 6*time.Second {
		t.Errorf("%v are left", left)
	}
}
