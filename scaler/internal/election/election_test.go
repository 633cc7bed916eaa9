package election_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/election"
	"github.com/slimfaas/slimfaas/shared/wire"
)

var errDown = errors.New("the queue is down")

// queue keeps sessions and one lock as the real one does: the real one runs in the integration module.
type queue struct {
	mu       sync.Mutex
	down     bool
	index    uint64
	sessions map[uint64]*session
	holder   uint64
	token    uint64
}

type session struct {
	name, incarnation string
	heard             time.Time
}

func newQueue() *queue { return &queue{sessions: map[uint64]*session{}} }

func (q *queue) setDown(down bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.down = down
}

// expire ends sessions that were silent for their time; the caller holds mu.
func (q *queue) expire() {
	for id, s := range q.sessions {
		if time.Since(s.heard) >= wire.ScalerSessionTTL {
			q.end(id)
		}
	}
}

func (q *queue) end(id uint64) {
	delete(q.sessions, id)
	if q.holder == id {
		q.holder = 0
	}
}

func (q *queue) Do(_ context.Context, op *wire.Op) (*wire.OpResult, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		return nil, errDown
	}
	q.expire()
	q.index++
	switch op := op.GetOp().(type) {
	case *wire.Op_OpenSession:
		for id, s := range q.sessions {
			if s.name == op.OpenSession.GetName() {
				if s.incarnation == op.OpenSession.GetIncarnation() {
					return &wire.OpResult{Code: wire.Code_CODE_OK, Index: id}, nil
				}
				q.end(id)
			}
		}
		q.sessions[q.index] = &session{op.OpenSession.GetName(), op.OpenSession.GetIncarnation(), time.Now()}
		return &wire.OpResult{Code: wire.Code_CODE_OK, Index: q.index}, nil
	case *wire.Op_CloseSession:
		q.end(op.CloseSession.GetSession())
	case *wire.Op_ReleaseLock:
		if q.holder == op.ReleaseLock.GetSession() {
			q.holder = 0
		}
	case *wire.Op_AcquireLock:
		id := op.AcquireLock.GetSession()
		if q.sessions[id] == nil {
			return &wire.OpResult{Code: wire.Code_CODE_STALE}, nil
		}
		if q.holder == 0 {
			q.holder, q.token = id, q.index
		}
		if q.holder != id {
			return &wire.OpResult{Code: wire.Code_CODE_CONFLICT}, nil
		}
		return &wire.OpResult{Code: wire.Code_CODE_OK, Index: q.token}, nil
	}
	return &wire.OpResult{Code: wire.Code_CODE_OK, Index: q.index}, nil
}

func (q *queue) Heartbeat(_ context.Context, r *wire.HeartbeatRequest) (*wire.HeartbeatResponse, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		return nil, errDown
	}
	q.expire()
	s := q.sessions[r.GetSession()]
	if s == nil || s.incarnation != r.GetIncarnation() {
		return &wire.HeartbeatResponse{Code: wire.Code_CODE_STALE}, nil
	}
	s.heard = time.Now()
	return &wire.HeartbeatResponse{Code: wire.Code_CODE_OK}, nil
}

// scaler is one candidate; leads counts who leads now.
type scaler struct {
	name   string
	stop   context.CancelFunc
	ended  chan struct{}
	mu     sync.Mutex
	leads  bool
	terms  []uint64
	resign chan error
}

func (s *scaler) leading() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leads
}

func start(t *testing.T, q election.Queue, name, incarnation string) *scaler {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &scaler{name: name, stop: cancel, ended: make(chan struct{}), resign: make(chan error)}
	elector := election.New(election.Options{Queue: q, Name: name, Incarnation: incarnation, Log: slog.New(slog.DiscardHandler)})
	go func() {
		defer close(s.ended)
		_ = elector.Run(ctx, func(ctx context.Context, term election.Term) error {
			s.mu.Lock()
			s.leads, s.terms = true, append(s.terms, term.Token)
			s.mu.Unlock()
			defer func() {
				s.mu.Lock()
				s.leads = false
				s.mu.Unlock()
			}()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case err := <-s.resign:
				return err
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-s.ended })
	return s
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestOneLeadsAndTheOtherFollowsAtOnceWhenItStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a := start(t, q, "scaler-0", "1")
		after(time.Second)
		b := start(t, q, "scaler-1", "1")
		after(time.Minute)
		if !a.leading() || b.leading() {
			t.Fatalf("a leads: %v, b leads: %v", a.leading(), b.leading())
		}
		a.stop()
		<-a.ended
		after(600 * time.Millisecond)
		if !b.leading() {
			t.Error("the lock was given back, and nobody leads 600 ms later")
		}
		if b.terms[0] <= a.terms[0] {
			t.Errorf("the tokens must grow: %v, then %v", a.terms, b.terms)
		}
	})
}

// deaf cuts one scaler off the queue without a word.
type deaf struct {
	*queue
	mu  sync.Mutex
	cut bool
}

func (d *deaf) isCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut
}

func (d *deaf) setCut(cut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = cut
}

func (d *deaf) Do(ctx context.Context, op *wire.Op) (*wire.OpResult, error) {
	if d.isCut() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return d.queue.Do(ctx, op)
}

func (d *deaf) Heartbeat(ctx context.Context, r *wire.HeartbeatRequest) (*wire.HeartbeatResponse, error) {
	if d.isCut() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return d.queue.Heartbeat(ctx, r)
}

func TestACutOffLeaderStopsBeforeAnotherStarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		line := &deaf{queue: q}
		a := start(t, line, "scaler-0", "1")
		after(time.Second)
		b := start(t, q, "scaler-1", "1")
		after(5500 * time.Millisecond)
		line.setCut(true)
		stopped := time.Duration(-1)
		for began := time.Now(); time.Since(began) < 12*time.Second; {
			after(10 * time.Millisecond)
			if a.leading() && b.leading() {
				t.Fatalf("two lead, %s after the cut", time.Since(began))
			}
			if stopped < 0 && !a.leading() {
				stopped = time.Since(began)
			}
		}
		if !b.leading() {
			t.Error("nobody took over within 12 s")
		}
		if stopped > wire.ScalerSessionTTL {
			t.Errorf("it led for %s after the cut", stopped)
		}
		line.setCut(false)
		after(10 * time.Second)
		if a.leading() || !b.leading() {
			t.Error("the one that was cut off took the lead from the other")
		}
	})
}

func TestTheQueueAwayEndsTheTermAndItsReturnBeginsOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a := start(t, q, "scaler-0", "1")
		after(time.Second)
		q.setDown(true)
		after(4 * time.Second)
		if !a.leading() {
			t.Error("a short absence ends no term")
		}
		q.setDown(false)
		after(2 * time.Second)
		q.setDown(true)
		after(8 * time.Second)
		if a.leading() {
			t.Error("it leads although the lock may be lost")
		}
		q.setDown(false)
		after(3 * time.Second)
		if !a.leading() {
			t.Error("it does not lead again")
		}
	})
}

func TestANewLifeOfTheLeaderTakesTheLockAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		line := &deaf{queue: q}
		dead := start(t, line, "scaler-0", "1")
		after(time.Second)
		line.setCut(true) // kill -9: nothing is given back
		reborn := start(t, q, "scaler-0", "2")
		after(100 * time.Millisecond)
		if !reborn.leading() {
			t.Error("the new life waits for the old one's session")
		}
		after(10 * time.Second)
		if dead.leading() {
			t.Error("the old life leads")
		}
	})
}

func TestAResignedLeaderRunsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a := start(t, q, "scaler-0", "1")
		after(time.Second)
		a.resign <- election.ErrResign
		after(time.Second)
		if !a.leading() || len(a.terms) != 2 || a.terms[1] <= a.terms[0] {
			t.Errorf("leading %v, terms %v: want a second term with a higher token", a.leading(), a.terms)
		}
	})
}
