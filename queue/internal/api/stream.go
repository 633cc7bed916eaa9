package api

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

type cutKey struct{}

// withCut gives handlers a way to end their own reads and writes: the RPC library has none.
func withCut(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		controller := http.NewResponseController(w)
		cut := func() {
			past := time.Unix(1, 0)
			_ = controller.SetReadDeadline(past)
			_ = controller.SetWriteDeadline(past)
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), cutKey{}, cut)))
	})
}

// Deliver is an edge's stream: all of it is the dispatcher's.
func (s *Server) Deliver(ctx context.Context, stream *connect.BidiStream[wire.DeliverUp, wire.DeliverDown]) error {
	cut, ok := ctx.Value(cutKey{}).(func())
	if !ok {
		cut = func() {}
	}
	if err := s.config.Dispatcher.Deliver(ctx, stream.Receive, stream.Send, cut); err != nil {
		return connect.NewError(connect.CodeAborted, err)
	}
	return nil
}

// Pull sends this node's copy of the table.
func (s *Server) Pull(_ context.Context, r *connect.Request[wire.PullRequest], stream *connect.ServerStream[wire.PullResponse]) error {
	pages, err := s.config.Table.Pages(r.Msg.GetSince())
	if err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	for page := range pages {
		if d := page.GetDigest(); d != nil {
			d.Sender = s.config.Name
		}
		if err := stream.Send(page); err != nil {
			return err
		}
	}
	return nil
}
