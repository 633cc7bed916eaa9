package api

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// putPart stores one part of a body whose call is accepted later.
func (b *submission) putPart(p *wire.PutPart, i int) {
	id, ok := b.id(p.GetId(), i, 1)
	if !ok {
		return
	}
	if n := len(p.GetData()); n == 0 || n > wire.PartSize {
		b.refuse(i, 1, wire.Code_CODE_INVALID, fmt.Sprintf("part has %d bytes, 1 to %d are allowed", n, wire.PartSize))
		return
	}
	b.propose(command.PutPart{
		ID: id, Session: p.GetSession(), Number: p.GetNumber(), Data: p.GetData(),
		MaxBytes: b.server.config.MaxUploadBytes, MaxUploads: maxUploads,
	}, owner{first: i, count: 1})
}

var errMovedOn = connect.NewError(connect.CodeNotFound, errors.New("no try of this call with this fence is under way, or it has no body of its own"))

// ReadPayload sends a body part by part; the next is read when the one before is on its way, so that one is in memory however slow
// the function is. That the fence is the running try's is what makes the bytes the right ones: this node has applied its grant, and
// a body never changes. It ends when the try does.
func (s *Server) ReadPayload(
	ctx context.Context, r *connect.Request[wire.ReadPayloadRequest], stream *connect.ServerStream[wire.ReadPayloadResponse],
) error {
	id, err := oneCall(r.Msg.GetId())
	if err != nil {
		return err
	}
	if s.config.Node.Cluster().GetLeader() != s.config.Name {
		return s.NotLeader()
	}
	body := s.body(id, r.Msg.GetFence())
	if body == nil {
		return errMovedOn
	}
	offset := r.Msg.GetOffset()
	if offset >= body.Size {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("offset %d is behind the body's %d bytes", offset, body.Size))
	}
	skip := offset % uint64(body.Part)
	for n := uint32(offset / uint64(body.Part)); n < body.Parts; n++ {
		if ctx.Err() != nil {
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
		data, err := s.config.Node.Part(body.Place, n)
		if err != nil {
			if s.body(id, r.Msg.GetFence()) == nil {
				return errMovedOn
			}
			s.config.Log.Error("a part of a body cannot be read", "id", id.String(), "part", n, "err", err)
			return connect.NewError(connect.CodeInternal, errors.New("a part of the body cannot be read; the reason is in the log of this node"))
		}
		if skip >= uint64(len(data)) {
			return connect.NewError(connect.CodeInternal, fmt.Errorf("part %d has %d bytes, too few", n, len(data)))
		}
		if err := stream.Send(&wire.ReadPayloadResponse{Data: data[skip:]}); err != nil {
			return err
		}
		skip = 0
	}
	return nil
}

// body that the try with this fence reads; nil: there is no such try any more.
func (s *Server) body(id command.ID, fence uint64) (body *fsm.Body) {
	s.config.Node.View(func(m *fsm.Machine) {
		if c, ok := m.Call(id); ok && c.State == fsm.Running && c.Fence == fence {
			body = c.Body
		}
	})
	return body
}
