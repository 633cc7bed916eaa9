// Package priority has the priority queue of the state machine and of the dispatcher.
package priority

// Heap is a binary heap of values. Make it with New.
type Heap[T any] struct {
	items  []T
	before func(a, b T) bool
}

// New returns an empty heap; before says which of two comes first.
func New[T any](before func(a, b T) bool) Heap[T] { return Heap[T]{before: before} }

// Items in no order that means anything; they are the heap's and must not be changed.
func (h *Heap[T]) Items() []T { return h.items }

// Take empties the heap and returns what was in it, in no order that means anything.
func (h *Heap[T]) Take() []T {
	items := h.items
	h.items = nil
	return items
}

// Len is how many are in it.
func (h *Heap[T]) Len() int { return len(h.items) }

// Top is what comes first; only for a heap that is not empty.
func (h *Heap[T]) Top() T { return h.items[0] }

// Push puts x into it.
func (h *Heap[T]) Push(x T) {
	h.items = append(h.items, x)
	for i := len(h.items) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.before(h.items[i], h.items[parent]) {
			return
		}
		h.items[i], h.items[parent] = h.items[parent], h.items[i]
		i = parent
	}
}

// Pop takes what comes first; only for a heap that is not empty.
func (h *Heap[T]) Pop() T {
	first := h.items[0]
	last := len(h.items) - 1
	h.items[0] = h.items[last]
	var zero T
	h.items[last] = zero
	h.items = h.items[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if right := child + 1; right < last && h.before(h.items[right], h.items[child]) {
			child = right
		}
		if !h.before(h.items[child], h.items[i]) {
			break
		}
		h.items[i], h.items[child] = h.items[child], h.items[i]
		i = child
	}
	if cap(h.items) > 1024 && len(h.items) < cap(h.items)/4 {
		h.items = append(make([]T, 0, cap(h.items)/2), h.items...)
	}
	return first
}
