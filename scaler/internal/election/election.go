// Package election makes one of the scalers the leader: a session in the queue, kept by heartbeats, that holds a lock.
package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// retryEvery paces attempts at the lock while another has it.
	retryEvery = 500 * time.Millisecond
	// heartbeatTimeout bounds one heartbeat: four fit into a session's life.
	heartbeatTimeout = 2 * time.Second
	// margin is how long before the queue could give the lock away the term ends here.
	margin = 1500 * time.Millisecond
	// closeTimeout bounds giving the lock back at the end.
	closeTimeout = 2 * time.Second
)

// Queue is what the election needs of the queue.
type Queue interface {
	// Do carries out one operation; an error means that its outcome is not known, or that nothing happened.
	Do(ctx context.Context, op *wire.Op) (*wire.OpResult, error)
	// Heartbeat keeps the session.
	Heartbeat(ctx context.Context, request *wire.HeartbeatRequest) (*wire.HeartbeatResponse, error)
}

// Options of an Elector. All are required but Hint.
type Options struct {
	Queue       Queue
	Name        string // of this scaler
	Incarnation string // of this process
	Address     string // its API, informative
	Log         *slog.Logger
	// Hint gets a token when it is worth trying at once; nil: only the slow pace.
	Hint <-chan struct{}
}

// Term is one time in office.
type Term struct {
	Session uint64
	Token   uint64 // of the lock: grows from term to term
	valid   func() bool
}

// Valid says whether the lock is certainly still held now. Ask before every effect.
func (t Term) Valid() bool { return t.valid() }

// NewTerm makes a term for tests and for a scaler that needs no election.
func NewTerm(session, token uint64, valid func() bool) Term {
	return Term{Session: session, Token: token, valid: valid}
}

// Elector runs for office.
type Elector struct {
	Options
	mu        sync.Mutex
	session   uint64    // 0: none
	confirmed time.Time // when the heartbeat that was answered last was sent
}

// New makes an elector.
func New(options Options) *Elector { return &Elector{Options: options} }

// ErrResign is what lead returns to give the lock back and run again.
var ErrResign = errors.New("the leader resigns")

// Run runs for office until ctx ends, and calls lead for each term. The context of a term ends when the lock may be lost, or with
// ctx; lead must have stopped every effect when it returns. At the end the lock and the session are given back.
func (e *Elector) Run(ctx context.Context, lead func(ctx context.Context, term Term) error) error {
	for ctx.Err() == nil {
		session, err := e.open(ctx)
		if err != nil {
			e.Log.Warn("no session in the queue yet", "err", err)
			e.pause(ctx)
			continue
		}
		if err := e.keep(ctx, session, lead); err != nil && ctx.Err() == nil {
			e.Log.Warn("the session in the queue ended", "err", err)
			e.pause(ctx)
		}
	}
	return ctx.Err()
}

// open begins the session.
func (e *Elector) open(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*heartbeatTimeout)
	defer cancel()
	sent := time.Now()
	result, err := e.Queue.Do(ctx, &wire.Op{Op: &wire.Op_OpenSession{OpenSession: &wire.OpenSession{
		Name: e.Name, Incarnation: e.Incarnation, Kind: wire.SessionKind_SESSION_KIND_SCALER, Address: e.Address,
	}}})
	if err != nil {
		return 0, fmt.Errorf("open a session: %w", err)
	}
	if result.GetCode() != wire.Code_CODE_OK {
		return 0, fmt.Errorf("open a session: %w: %s %s", errRefused, result.GetCode(), result.GetDetail())
	}
	e.confirm(result.GetIndex(), sent)
	return result.GetIndex(), nil
}

var (
	errRefused = errors.New("the queue refused")
	errStale   = errors.New("the queue ended it")
)

// keep holds one session: heartbeats beside attempts at the lock and terms. It returns when the session is over.
func (e *Elector) keep(ctx context.Context, session uint64, lead func(context.Context, Term) error) error {
	alive, end := context.WithCancelCause(ctx)
	var wait sync.WaitGroup
	wait.Go(func() { end(e.beat(alive, session)) })
	defer wait.Wait()
	defer e.giveBack(ctx, session)
	defer end(nil)

	for {
		token, held, err := e.acquire(alive, session)
		if err != nil {
			if alive.Err() != nil {
				return context.Cause(alive)
			}
			e.Log.Debug("no answer about the lock", "err", err)
		}
		if held && e.valid(session) {
			e.term(alive, session, token, lead)
		}
		if alive.Err() != nil {
			return context.Cause(alive)
		}
		e.pause(alive)
	}
}

// term runs lead until it returns; its context ends when the session might.
func (e *Elector) term(ctx context.Context, session, token uint64, lead func(context.Context, Term) error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch *time.Timer
	var mu sync.Mutex // the timer's function may run before watch is set
	mu.Lock()
	watch = time.AfterFunc(time.Until(e.until()), func() {
		mu.Lock()
		defer mu.Unlock()
		if left := time.Until(e.until()); left > 0 {
			watch.Reset(left)
			return
		}
		cancel(errors.New("no heartbeat was answered for too long: the lock may be lost"))
	})
	mu.Unlock()
	defer watch.Stop()
	e.Log.Info("leading", "token", token, "session", session)
	err := lead(ctx, Term{Session: session, Token: token, valid: func() bool { return ctx.Err() == nil && e.valid(session) }})
	e.Log.Info("no longer leading", "token", token, "reason", cause(ctx, err))
	if ctx.Err() == nil {
		e.release(ctx, session)
	}
}

func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// acquire asks for the lock once.
func (e *Elector) acquire(ctx context.Context, session uint64) (token uint64, held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*heartbeatTimeout)
	defer cancel()
	result, err := e.Queue.Do(ctx, &wire.Op{Op: &wire.Op_AcquireLock{AcquireLock: &wire.AcquireLock{Lock: wire.ScalerLock, Session: session}}})
	if err != nil {
		return 0, false, fmt.Errorf("ask for the lock: %w", err)
	}
	switch result.GetCode() {
	case wire.Code_CODE_OK:
		return result.GetIndex(), true, nil
	case wire.Code_CODE_CONFLICT:
		return 0, false, nil
	}
	return 0, false, fmt.Errorf("ask for the lock: %w: %s %s", errRefused, result.GetCode(), result.GetDetail())
}

// beat sends heartbeats until the queue ends the session or ctx ends.
func (e *Elector) beat(ctx context.Context, session uint64) error {
	ticker := time.NewTicker(wire.HeartbeatEvery)
	defer ticker.Stop()
	for {
		sent := time.Now()
		one, cancel := context.WithTimeout(ctx, heartbeatTimeout)
		answer, err := e.Queue.Heartbeat(one, &wire.HeartbeatRequest{Session: session, Incarnation: e.Incarnation})
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			e.Log.Debug("heartbeat failed", "err", err)
		case answer.GetCode() == wire.Code_CODE_OK:
			e.confirm(session, sent)
		default:
			e.confirm(0, time.Time{})
			return fmt.Errorf("heartbeat: %w: %s", errStale, answer.GetCode())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

func (e *Elector) confirm(session uint64, sent time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if session != e.session || sent.After(e.confirmed) {
		e.session, e.confirmed = session, sent
	}
}

// until is when the term must have ended: before the queue's own clock, which started later, could give the lock to another.
func (e *Elector) until() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.confirmed.Add(wire.ScalerSessionTTL - margin)
}

func (e *Elector) valid(session uint64) bool {
	until := e.until()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.session == session && time.Now().Before(until)
}

// giveBack ends the session when this process stops, so that another leads at once.
func (e *Elector) giveBack(ctx context.Context, session uint64) {
	if ctx.Err() == nil {
		return // the session is over by itself
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	e.release(bounded, session)
	_, err := e.Queue.Do(bounded, &wire.Op{Op: &wire.Op_CloseSession{CloseSession: &wire.CloseSession{Session: session}}})
	if err != nil {
		e.Log.Warn("the session could not be closed, it will expire", "err", err)
	}
}

func (e *Elector) release(ctx context.Context, session uint64) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	_, err := e.Queue.Do(ctx, &wire.Op{Op: &wire.Op_ReleaseLock{ReleaseLock: &wire.ReleaseLock{Lock: wire.ScalerLock, Session: session}}})
	if err != nil {
		e.Log.Warn("the lock could not be given back, it goes with the session", "err", err)
	}
}

func (e *Elector) pause(ctx context.Context) {
	timer := time.NewTimer(retryEvery)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-e.Hint:
	}
}
