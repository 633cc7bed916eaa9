// Package api serves what queue nodes ask of the leading scaler: its table.
package api

import (
	"context"
	"errors"
	"iter"
	"net/http"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

// Table is what is copied.
type Table interface {
	// Pages answers a pull of what is newer than a version (nil: everything), or says why it cannot.
	Pages(since *wire.Version) (iter.Seq[*wire.PullResponse], error)
}

const roleQueue = "queue"

// maxRequest is the largest request, in bytes.
const maxRequest = 64 << 10

// Handler serves TableService to callers that present the queue's token.
func Handler(table Table, queueToken string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(wireconnect.NewTableServiceHandler(&service{table: table}, connect.WithReadMaxBytes(maxRequest)))
	return serve.RequireToken(map[string]string{roleQueue: queueToken}, mux)
}

type service struct{ table Table }

var _ wireconnect.TableServiceHandler = (*service)(nil)

// Pull implements wireconnect.TableServiceHandler.
func (s *service) Pull(ctx context.Context, request *connect.Request[wire.PullRequest], stream *connect.ServerStream[wire.PullResponse]) error {
	if serve.Role(ctx) != roleQueue {
		return connect.NewError(connect.CodePermissionDenied, errors.New("only queue nodes pull the table from a scaler"))
	}
	pages, err := s.table.Pages(request.Msg.GetSince())
	if err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	for page := range pages {
		if err := stream.Send(page); err != nil {
			return err
		}
	}
	return nil
}
