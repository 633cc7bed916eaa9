package raftnode

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// batchesInFlight: while two entries are under way the next gathers, without a timer.
	batchesInFlight = wire.MaxBatchesInFlight
	// proposeTimeout: every proposal is answered within it.
	proposeTimeout = 5 * time.Second
	// enqueueTimeout: raft has taken the entry by then, or has not and never will.
	enqueueTimeout = 2 * time.Second
	// maxWaitingBytes and maxWaiting bound what waits for its turn.
	maxWaitingBytes = 64 << 20
	maxWaiting      = 64 << 10
)

// proposal is a caller's commands on their way into one entry.
type proposal struct {
	commands [][]byte
	size     int
	answer   chan answer // buffered: one
	state    proposalState
}

type answer struct {
	results []fsm.Result
	index   uint64
	err     error
}

type proposalState uint8

const (
	waiting proposalState = iota
	handed                // on its way into the log: only raft knows what becomes of it
	abandoned
)

// batcher puts commands of all callers into entries. Callers wait in Propose, two workers each carry one entry at a time.
type batcher struct {
	node *Node
	more chan struct{} // of one: something waits

	mu       sync.Mutex // guards the rest, and proposal.state
	queue    []*proposal
	bytes    int
	closed   bool
	inFlight int
	idle     chan struct{} // non-nil while close waits; closed when nothing is in flight

	abandoned chan struct{} // closed when raft has shut down: a future not answered by then never will be
}

func newBatcher(n *Node) *batcher {
	return &batcher{node: n, more: make(chan struct{}, 1), abandoned: make(chan struct{})}
}

// Propose carries the commands into the log, in order, and gives their results and the index of the (last) entry, once a
// majority has them on disk and this node has applied them. Commands of one call share an entry unless they exceed one.
//
// Errors: ErrNotLeader, ErrBusy, ErrFull, ErrStopped, or the context's: nothing was handed over. command.ErrTooLarge and the like: the
// command can never be. ErrUnknown: some of it may have happened, or happen yet.
func (n *Node) Propose(ctx context.Context, commands []command.Command) ([]fsm.Result, uint64, error) {
	if !n.IsLeader() {
		return nil, 0, n.notLeader()
	}
	if n.disk.Level() >= guard.Halted {
		return nil, 0, ErrFull
	}
	if len(commands) == 0 {
		return nil, 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	encoded, err := command.EncodeCommands(commands)
	if err != nil {
		return nil, 0, fmt.Errorf("encoding the commands: %w", err)
	}
	results := make([]fsm.Result, 0, len(commands))
	for first := true; ; first = false {
		var part [][]byte
		part, encoded = cut(encoded)
		a := n.batcher.propose(ctx, part)
		if a.err != nil {
			if !first {
				a.err = fmt.Errorf("proposing the first %d of %d commands went well, then: %w (%w)", len(results), len(commands),
					ErrUnknown, a.err)
			}
			return nil, 0, a.err
		}
		results = append(results, a.results...)
		if len(encoded) == 0 {
			return results, a.index, nil
		}
	}
}

// cut takes as many commands as one entry holds, one at least.
func cut(encoded [][]byte) (part, rest [][]byte) {
	size := 0
	for i, c := range encoded {
		size += len(c)
		if i > 0 && (i == wire.MaxBatchOps || size > wire.MaxBatchBytes) {
			return encoded[:i], encoded[i:]
		}
	}
	return encoded, nil
}

func (b *batcher) propose(ctx context.Context, commands [][]byte) answer {
	p := &proposal{commands: commands, answer: make(chan answer, 1)}
	for _, c := range commands {
		p.size += len(c)
	}
	if err := b.add(p); err != nil {
		return answer{err: err}
	}
	select {
	case a := <-p.answer:
		return a
	case <-ctx.Done():
	}
	if b.withdraw(p) {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return answer{err: ErrBusy}
		}
		return answer{err: ctx.Err()}
	}
	select {
	case a := <-p.answer: // came in the same moment
		return a
	default:
		return answer{err: ErrUnknown}
	}
}

func (b *batcher) add(p *proposal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return ErrStopped
	case len(b.queue) >= maxWaiting || b.bytes+p.size > maxWaitingBytes:
		return ErrBusy
	}
	b.queue = append(b.queue, p)
	b.bytes += p.size
	b.signal()
	return nil
}

func (b *batcher) signal() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// withdraw takes back a proposal that no worker has taken yet. It stays in the queue, empty, until its turn.
func (b *batcher) withdraw(p *proposal) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.state != waiting {
		return false
	}
	p.state = abandoned
	p.commands = nil
	return true
}

// take gives the proposals of the next entry; none if nothing waits.
func (b *batcher) take() []*proposal {
	b.mu.Lock()
	defer b.mu.Unlock()
	var batch []*proposal
	size, commands, taken := 0, 0, 0
	for _, p := range b.queue {
		if p.state == waiting {
			if len(batch) > 0 && (size+p.size > wire.MaxBatchBytes || commands+len(p.commands) > wire.MaxBatchOps) {
				break
			}
			p.state = handed
			batch = append(batch, p)
			size += p.size
			commands += len(p.commands)
		}
		b.bytes -= p.size
		taken++
	}
	clear(b.queue[:taken])
	b.queue = b.queue[taken:]
	if len(b.queue) == 0 {
		b.queue = nil // lets the array go
	} else {
		b.signal()
	}
	if len(batch) > 0 {
		b.inFlight++
	} else {
		b.settle()
	}
	return batch
}

func (b *batcher) landed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inFlight--
	b.settle()
}

// settle wakes close when nothing waits or flies any more. Called with mu held.
func (b *batcher) settle() {
	if b.idle != nil && b.inFlight == 0 && len(b.queue) == 0 {
		close(b.idle)
		b.idle = nil
	}
}

// work carries entries, one at a time, until the node's life ends.
func (b *batcher) work() {
	for {
		select {
		case <-b.node.life.Done():
			b.refuse()
			return
		case <-b.more:
		}
		for batch := b.take(); len(batch) > 0; batch = b.take() {
			b.carry(batch)
			b.landed()
		}
	}
}

// refuse answers what waited when the node stopped.
func (b *batcher) refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.queue {
		if p.state == waiting {
			p.state = abandoned
			p.answer <- answer{err: ErrStopped}
		}
	}
	b.queue, b.bytes = nil, 0
	b.settle()
}

func (b *batcher) carry(batch []*proposal) {
	var commands [][]byte
	for _, p := range batch {
		commands = append(commands, p.commands...)
	}
	entry := command.Assemble(b.node.config.Clock().UnixMilli(), commands)
	future := b.node.raft.Apply(entry, enqueueTimeout)
	failed := make(chan error, 1)
	// Left behind only when raft shuts down with the entry in it: its future is never answered then.
	go func() { failed <- future.Error() }()
	var err error
	select {
	case err = <-failed:
	case <-b.abandoned:
		err = raft.ErrRaftShutdown
	}
	if err != nil {
		b.answerAll(batch, answer{err: b.node.proposeError(err)})
		return
	}
	results, ok := future.Response().([]fsm.Result)
	if !ok || len(results) != len(commands) {
		b.answerAll(batch, answer{err: fmt.Errorf("entry %d was committed and not applied here: %w", future.Index(), ErrUnknown)})
		return
	}
	for _, p := range batch {
		own := len(p.commands)
		p.answer <- answer{results: results[:own:own], index: future.Index()}
		results = results[own:]
	}
}

func (b *batcher) answerAll(batch []*proposal, a answer) {
	for _, p := range batch {
		p.answer <- a
	}
}

// proposeError says what raft's error means for the commands. What is not known to have been refused is unknown.
func (n *Node) proposeError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return n.notLeader()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader{}
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrBusy
	default:
		return fmt.Errorf("%w (%w)", ErrUnknown, err)
	}
}

// close refuses new proposals and waits until those known are answered, or ctx ends.
func (b *batcher) close(ctx context.Context) {
	idle := make(chan struct{})
	b.mu.Lock()
	b.closed = true
	b.idle = idle
	b.settle()
	b.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// abandon answers what is still in flight after raft has shut down: unknown.
func (b *batcher) abandon() { close(b.abandoned) }
