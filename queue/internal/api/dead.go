package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// defaultDead and maxDead calls of one page.
	defaultDead = 100
	maxDead     = 1000
	// deadPerCommand bounds what one command redrives or purges, so that apply stays short.
	deadPerCommand = 5000
)

// GetResult reads what a function answered.
func (s *Server) GetResult(
	ctx context.Context, r *connect.Request[wire.GetResultRequest],
) (*connect.Response[wire.GetResultResponse], error) {
	id, err := oneCall(r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	call, ok, err := s.call(ctx, id)
	switch {
	case err != nil:
		return nil, s.failed(err)
	case !ok:
		return connect.NewResponse(&wire.GetResultResponse{}), nil
	}
	answer := &wire.GetResultResponse{Call: s.describe(call)}
	if call.FinishedUnixMs == 0 || call.Answer == 0 || call.KeptUntilMs <= time.Now().UnixMilli() {
		return connect.NewResponse(answer), nil
	}
	if answer.Answer, err = s.config.Node.Payload(call.Answer); err != nil {
		var now fsm.Call
		s.config.Node.View(func(m *fsm.Machine) { now, _ = m.Call(id) })
		if now.Answer == call.Answer { // not forgotten in between
			s.config.Log.Error("a kept answer cannot be read", "id", id.String(), "err", err)
			return nil, connect.NewError(connect.CodeInternal, errors.New("the kept answer cannot be read"))
		}
	}
	return connect.NewResponse(answer), nil
}

func oneCall(raw []byte) (command.ID, error) {
	if len(raw) != len(command.ID{}) {
		return command.ID{}, connect.NewError(connect.CodeInvalidArgument, errors.New("id must have 16 bytes"))
	}
	return command.ID(raw), nil
}

// anyCall is a call, or with no bytes every call.
func anyCall(raw []byte) (command.ID, error) {
	if len(raw) == 0 {
		return command.ID{}, nil
	}
	return oneCall(raw)
}

// ListDead lists dead calls, newest first.
func (s *Server) ListDead(ctx context.Context, r *connect.Request[wire.ListDeadRequest]) (*connect.Response[wire.ListDeadResponse], error) {
	after, err := anyCall(r.Msg.GetAfter())
	if err != nil {
		return nil, err
	}
	limit := min(int(r.Msg.GetLimit()), maxDead)
	if limit == 0 {
		limit = defaultDead
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := s.config.Node.ReadBarrier(ctx); err != nil {
		return nil, s.failed(err)
	}
	list := &wire.ListDeadResponse{Code: wire.Code_CODE_OK}
	var page []fsm.Call
	s.config.Node.View(func(m *fsm.Machine) {
		calls, ok := m.DeadOf(r.Msg.GetFunction(), after)
		if !ok {
			list.Code = wire.Code_CODE_NOT_FOUND
			return
		}
		for c := range calls {
			if len(page) == limit {
				return
			}
			page = append(page, c)
		}
	})
	for _, c := range page {
		list.Calls = append(list.Calls, s.describe(c))
	}
	return connect.NewResponse(list), nil
}

// Redrive puts dead calls back into the queue.
func (s *Server) Redrive(ctx context.Context, r *connect.Request[wire.RedriveRequest]) (*connect.Response[wire.RedriveResponse], error) {
	count, err := s.eachDead(ctx, r.Msg.GetFunction(), r.Msg.GetId(), func(d command.DeadCalls) command.Command { return command.Redrive{DeadCalls: d} })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.RedriveResponse{Count: count}), nil
}

// Purge forgets dead calls.
func (s *Server) Purge(ctx context.Context, r *connect.Request[wire.PurgeRequest]) (*connect.Response[wire.PurgeResponse], error) {
	count, err := s.eachDead(ctx, r.Msg.GetFunction(), r.Msg.GetId(), func(d command.DeadCalls) command.Command { return command.Purge{DeadCalls: d} })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.PurgeResponse{Count: count}), nil
}

// eachDead proposes command after command until the calls that are dead now are dealt with. Its error has a NotLeader detail only
// while nothing was handed over.
func (s *Server) eachDead(
	ctx context.Context, function string, raw []byte, propose func(command.DeadCalls) command.Command,
) (count uint64, err error) {
	if function == "" || len(function) > maxName {
		return 0, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("function has %d bytes, 1 to %d are allowed", len(function), maxName))
	}
	id, err := anyCall(raw)
	if err != nil {
		return 0, err
	}
	which := command.DeadCalls{Function: function, ID: id, Limit: deadPerCommand}
	step := func() (more bool, err error) {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		if which.ID == (command.ID{}) && which.UpTo == 0 {
			if err := s.config.Node.ReadBarrier(ctx); err != nil {
				return false, err
			}
			s.config.Node.View(func(m *fsm.Machine) {
				calls, _ := m.DeadOf(function, command.ID{})
				for newest := range calls {
					which.UpTo = newest.Ended
					return
				}
			})
			if which.UpTo == 0 {
				return false, nil // none is dead
			}
		}
		results, _, err := s.config.Node.Propose(ctx, []command.Command{propose(which)})
		if err != nil {
			return false, err
		}
		count += results[0].Count
		return results[0].More, nil
	}
	for {
		more, err := step()
		switch {
		case err == nil && !more:
			return count, nil
		case err == nil:
		case count == 0 && !errors.Is(err, ErrUnknown) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled):
			return 0, s.failed(err)
		default:
			return 0, connect.NewError(connect.CodeAborted, fmt.Errorf("%d calls were dealt with, and perhaps more: %w", count, err))
		}
	}
}
