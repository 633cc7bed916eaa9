package forward

import (
	"testing"
	"time"
)

func TestABodyIsDueByItsLastPieceAndItsRate(t *testing.T) {
	t.Parallel()
	const idle = 30 * time.Second
	began := time.Unix(1000, 0)
	for _, c := range []struct {
		after time.Duration // since it began
		read  int64
		due   time.Duration // since it began
	}{
		{0, 0, 30 * time.Second},
		{20 * time.Second, 1 << 20, 50 * time.Second},          // fast: by its last piece
		{20 * time.Second, 20, 30 * time.Second},               // a byte a second: the grace is all it gets
		{29 * time.Second, 1000 * slowest, 59 * time.Second},   // far ahead of the rate
		{100 * time.Second, 80 * slowest, 110 * time.Second},   // 80 seconds' worth and the grace
		{200 * time.Second, 160 * slowest, 190 * time.Second},  // too slow already
		{24 * time.Hour, 86400 * slowest, 24*time.Hour + idle}, // exactly the rate, for a day
		{24 * time.Hour, 10_000 * 86400, 24*time.Hour + idle},  // 10 KB a second
	} {
		if got := due(began, began.Add(c.after), c.read, idle).Sub(began); got != c.due {
			t.Errorf("%d bytes in %v: due after %v, want %v", c.read, c.after, got, c.due)
		}
	}
}
