package store

import (
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestNumberedIsAMapInOrder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		var n numbered
		want := map[uint64][]byte{}
		span := []uint64{10, 1000, 1 << 40}[random.IntN(3)]
		for range random.IntN(500) {
			number := random.Uint64N(span)
			value := []byte{byte(random.Uint32())}
			if random.IntN(4) == 0 {
				value = nil
			}
			n.put(number, value, fsm.Source{})
			want[number] = value
			asked := random.Uint64N(span)
			got, known := n.get(asked)
			if value, there := want[asked]; known != there || string(got) != string(value) || (got == nil) != (value == nil) {
				t.Fatalf("%d is %v (%t), want %v (%t)", asked, got, known, value, there)
			}
		}
		all := n.sorted()
		if len(all) != len(want) {
			t.Fatalf("%d numbers, want %d", len(all), len(want))
		}
		for i, number := range slices.Sorted(maps.Keys(want)) {
			if all[i].place != number || string(all[i].value) != string(want[number]) || (all[i].value == nil) != (want[number] == nil) {
				t.Fatalf("the %dth is %d, want %d", i, all[i].place, number)
			}
		}
	}
}
