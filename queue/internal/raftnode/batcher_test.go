package raftnode

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func proposalOf(commands, size int) *proposal {
	return &proposal{commands: make([][]byte, commands), size: size, answer: make(chan answer, 1)}
}

func TestAnEntryClosesAtItsLimitsOrHoldsOneLarger(t *testing.T) {
	t.Parallel()
	const most = wire.MaxBatchBytes
	tests := []struct {
		name    string
		waiting []*proposal
		want    []int // proposals per entry
	}{
		{"nothing", nil, nil},
		{"all that gathered", []*proposal{proposalOf(1, 10), proposalOf(5, 10), proposalOf(1, 10)}, []int{3}},
		{"by bytes", []*proposal{proposalOf(1, most/2), proposalOf(1, most/2), proposalOf(1, 1)}, []int{2, 1}},
		{"by commands", []*proposal{proposalOf(1000, 10), proposalOf(24, 10), proposalOf(1, 10)}, []int{2, 1}},
		{"one larger alone", []*proposal{proposalOf(1, 10), proposalOf(1, 2*most), proposalOf(1, 10)}, []int{1, 1, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBatcher(nil)
			for _, p := range test.waiting {
				if err := b.add(p); err != nil {
					t.Fatal(err)
				}
			}
			var got []int
			for batch := b.take(); len(batch) > 0; batch = b.take() {
				got = append(got, len(batch))
			}
			if !slices.Equal(got, test.want) || b.bytes != 0 {
				t.Fatalf("entries of %v, want %v; %d bytes left", got, test.want, b.bytes)
			}
		})
	}
}

func TestAWithdrawnProposalIsNotCarriedAndATakenOneCannotBeWithdrawn(t *testing.T) {
	t.Parallel()
	b := newBatcher(nil)
	first, second := proposalOf(1, 10), proposalOf(1, 10)
	for _, p := range []*proposal{first, second} {
		if err := b.add(p); err != nil {
			t.Fatal(err)
		}
	}
	if !b.withdraw(first) {
		t.Fatal("a waiting proposal could not be withdrawn")
	}
	if batch := b.take(); len(batch) != 1 || batch[0] != second {
		t.Fatalf("took %v", batch)
	}
	if b.withdraw(second) {
		t.Fatal("a proposal on its way was withdrawn: its outcome would be told as none")
	}
}

func TestWhatWaitsIsBounded(t *testing.T) {
	t.Parallel()
	b := newBatcher(nil)
	if err := b.add(proposalOf(1, maxWaitingBytes)); err != nil {
		t.Fatal(err)
	}
	if err := b.add(proposalOf(1, 1)); !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	b.close(ended) // does not wait for the one nobody carries
	if err := b.add(proposalOf(1, 1)); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
}

func TestTheLogIsCountedInBytes(t *testing.T) {
	t.Parallel()
	s := &logSizes{due: make(chan struct{}, 1)}
	s.limit(1000, 100)
	entry := func(size int) []*raft.Log { return []*raft.Log{{Data: make([]byte, size)}} }
	due := func() bool {
		select {
		case <-s.due:
			return true
		default:
			return false
		}
	}
	s.add(entry(999))
	if due() {
		t.Fatal("due below the limit")
	}
	s.add(entry(1))
	if !due() {
		t.Fatal("not due at the limit")
	}
	for range 40 {
		s.add(entry(10))
	}
	if got := s.begin(250); got != 25 {
		t.Fatalf("250 trailing bytes of 10-byte entries are %d entries", got)
	}
	for range 100 {
		s.add(entry(1))
	}
	if !due() {
		t.Fatal("not due at the limit of entries")
	}
	if got := s.begin(1); got != maxAppendEntries {
		t.Fatalf("at least one message of entries is kept, got %d", got)
	}
}
