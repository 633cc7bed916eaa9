package api

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// GetCall reads one call; with a wait it answers when the call has ended, or the time is up.
func (s *Server) GetCall(
	ctx context.Context, r *connect.Request[wire.GetCallRequest],
) (*connect.Response[wire.GetCallResponse], error) {
	if len(r.Msg.GetId()) != len(command.ID{}) {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("id must have 16 bytes"))
	}
	id := command.ID(r.Msg.GetId())
	wait := time.Duration(min(r.Msg.GetWaitMs(), uint64(maxWait/time.Millisecond))) * time.Millisecond
	var ended <-chan struct{}
	if wait > 0 {
		// Before the first read, so that no end is missed.
		wakes, stop, ok := s.waiters.add(id)
		if !ok {
			return nil, connect.NewError(connect.CodeResourceExhausted, errors.New("too many wait for calls to end; ask without a wait"))
		}
		defer stop()
		ended = wakes
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for over := wait == 0; ; {
		call, ok, err := s.call(ctx, id)
		if err != nil {
			return nil, s.failed(err)
		}
		if !ok {
			return connect.NewResponse(&wire.GetCallResponse{}), nil
		}
		if over || call.FinishedUnixMs != 0 {
			return connect.NewResponse(&wire.GetCallResponse{Call: s.describe(call)}), nil
		}
		select {
		case <-ended:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			return nil, s.failed(ctx.Err())
		}
	}
}

func (s *Server) call(ctx context.Context, id command.ID) (c fsm.Call, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := s.config.Node.ReadBarrier(ctx); err != nil {
		return c, false, err
	}
	s.config.Node.View(func(m *fsm.Machine) { c, ok = m.Call(id) })
	return c, ok, nil
}

func (s *Server) describe(c fsm.Call) *wire.Call {
	tries := c.MaxTries
	if tries == 0 {
		if e, ok := s.config.Table.Get(c.Function); ok { // no try yet: as the function asks today
			tries = uint32(1 + len(e.Spec.Configuration.DefaultAsync.TimeoutRetries))
		}
	}
	return &wire.Call{
		Id: c.ID[:], Function: c.Function, State: wire.CallState(c.State), Tries: c.Tries, MaxTries: tries,
		EnqueuedUnixMs: c.EnqueuedUnixMs, StartedUnixMs: c.StartedUnixMs, NextTryUnixMs: c.NextTryUnixMs,
		FinishedUnixMs: c.FinishedUnixMs, LastStatus: c.LastStatus, LastError: c.LastError,
	}
}

// Facts reads sessions, locks, history and overrides from one applied index.
func (s *Server) Facts(ctx context.Context, _ *connect.Request[wire.FactsRequest]) (*connect.Response[wire.FactsResponse], error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := s.config.Node.ReadBarrier(ctx); err != nil {
		return nil, s.failed(err)
	}
	facts := &wire.FactsResponse{NowUnixMs: time.Now().UnixMilli()}
	s.config.Node.View(func(m *fsm.Machine) {
		facts.AppliedIndex = m.Applied()
		names := map[uint64]string{}
		for _, x := range m.Sessions() {
			names[x.ID] = x.Name
			facts.Sessions = append(facts.Sessions, &wire.Session{
				Id: x.ID, Name: x.Name, Incarnation: x.Incarnation, Kind: wire.SessionKind(x.Kind), Address: x.Address,
				Vanished: x.Vanished, EndedUnixMs: x.EndedUnixMs,
			})
		}
		for _, x := range m.Locks() {
			facts.Locks = append(facts.Locks, &wire.Lock{Name: x.Name, Session: x.Session, Token: x.Token, Holder: names[x.Session]})
		}
		for _, x := range m.Activities() {
			facts.History = append(facts.History, &wire.LastActivity{Function: x.Function, AtUnixMs: x.AtUnixMs})
		}
		for _, x := range m.Overrides() {
			if x.UntilUnixMs > facts.GetNowUnixMs() {
				facts.Overrides = append(facts.Overrides, &wire.Override{Function: x.Function, Replicas: x.Replicas, UntilUnixMs: x.UntilUnixMs})
			}
		}
	})
	return connect.NewResponse(facts), nil
}

// Demand of every function that has calls.
func (s *Server) Demand(context.Context, *connect.Request[wire.DemandRequest]) (*connect.Response[wire.DemandReport], error) {
	report, err := s.config.Dispatcher.Demand()
	if err != nil {
		return nil, s.NotLeader()
	}
	return connect.NewResponse(report), nil
}

// Heartbeat keeps a scaler's session.
func (s *Server) Heartbeat(
	_ context.Context, r *connect.Request[wire.HeartbeatRequest],
) (*connect.Response[wire.HeartbeatResponse], error) {
	live, err := s.config.Dispatcher.Heartbeat(r.Msg.GetSession(), r.Msg.GetIncarnation())
	if err != nil {
		return nil, s.NotLeader()
	}
	answer := wire.Code_CODE_OK
	if !live {
		answer = wire.Code_CODE_STALE
	}
	return connect.NewResponse(&wire.HeartbeatResponse{Code: answer}), nil
}

// Cluster as this node sees it; no leader is needed.
func (s *Server) Cluster(context.Context, *connect.Request[wire.ClusterRequest]) (*connect.Response[wire.ClusterResponse], error) {
	cluster := s.config.Node.Cluster()
	s.config.Node.View(func(m *fsm.Machine) { cluster.Installation = m.Installation() })
	return connect.NewResponse(cluster), nil
}

// Changed ends the waiting for calls that have ended. It does not block.
func (s *Server) Changed(_ uint64, changes []fsm.Change) {
	if changes == nil { // a snapshot: everything may have ended
		s.waiters.wakeAll()
		return
	}
	for _, c := range changes {
		if c.Topic == fsm.TopicCall && c.Call.FinishedUnixMs != 0 {
			s.waiters.wake(c.Call.ID)
		}
	}
}

// waiters are long polls, by the call they wait for.
type waiters struct {
	mu    sync.Mutex // guards both
	by    map[command.ID][]chan struct{}
	count int
}

func (w *waiters) add(id command.ID) (wakes <-chan struct{}, stop func(), ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count >= maxWaiters {
		return nil, nil, false
	}
	c := make(chan struct{}, 1)
	w.by[id] = append(w.by[id], c)
	w.count++
	return c, func() { w.remove(id, c) }, true
}

func (w *waiters) remove(id command.ID, c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := slices.DeleteFunc(w.by[id], func(x chan struct{}) bool { return x == c })
	if len(left) == 0 {
		delete(w.by, id)
	} else {
		w.by[id] = left
	}
	w.count--
}

func (w *waiters) wake(id command.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.by[id] {
		ring(c)
	}
}

func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, list := range w.by {
		for _, c := range list {
			ring(c)
		}
	}
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
