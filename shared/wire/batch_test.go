package wire

import "testing"

func TestBatchShare(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ waiting, underWay, want int }{
		{1, 0, minBatchShare},
		{minBatchShare, minBatchShare, minBatchShare},
		{490, 22, 256},
		{511, 0, 256},
		{3000, 0, MaxBatchOps},
	} {
		if got := BatchShare(c.waiting, c.underWay); got != c.want {
			t.Errorf("with %d waiting and %d under way the share is %d, want %d", c.waiting, c.underWay, got, c.want)
		}
	}
}
