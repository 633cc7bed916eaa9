package priority

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestHeapSorts(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	h := New(func(a, b int) bool { return a < b })
	var want []int
	for range 5000 {
		x := r.IntN(1000)
		h.Push(x)
		want = append(want, x)
	}
	slices.Sort(want)
	for i, x := range want {
		if got := h.Pop(); got != x {
			t.Fatalf("%d: %d, want %d", i, got, x)
		}
	}
	if h.Len() != 0 {
		t.Error("not empty")
	}
}
