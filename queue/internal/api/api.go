// Package api serves the queue's RPC: QueueService and the node's copy of the function table. It turns operations into
// commands and results into codes; it decides nothing that is replicated.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/dispatch"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/table"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const (
	// answerWithin bounds every request but long polls and streams.
	answerWithin = 5 * time.Second
	// maxWait of a long poll.
	maxWait = 60 * time.Second
	// maxWaiters are long polls under way at one time.
	maxWaiters = 10_000
	// maxOps of one Submit: a batch, and the frames of its one larger accept.
	maxOps = 2 * wire.MaxBatchOps
	// maxMessage one request may have, in bytes: a batch or one accept with the largest payload, and names.
	maxMessage = wire.MaxPayload + wire.MaxBatchBytes
	// maxUploads under way, all edges together: records of them are in memory.
	maxUploads = 4096
	// maxName of a function, session or lock, in bytes.
	maxName = 253
)

// Roles that callers have by their token.
const (
	RoleEdge   = "edge"
	RoleQueue  = "queue"
	RoleScaler = "scaler"
)

// How a proposal or a read can fail. Every other error means as well that nothing was handed over.
var (
	// ErrNotLeader: this node does not lead; nothing was handed over.
	ErrNotLeader = errors.New("node does not lead")
	// ErrUnknown: handed over, outcome unknown.
	ErrUnknown = errors.New("outcome unknown")
)

// Node is the Raft node.
type Node interface {
	Propose(ctx context.Context, commands []command.Command) ([]fsm.Result, uint64, error)
	// ReadBarrier returns when View shows all that was committed before.
	ReadBarrier(ctx context.Context) error
	View(read func(*fsm.Machine))
	// Payload reads what is stored at this place: of a call, or its kept answer.
	Payload(seq uint64) ([]byte, error)
	// Refusal is why no calls are accepted now (the disk is nearly full), for people; empty: they are.
	Refusal() string
	// Part reads one part of the body at this place.
	Part(place uint64, number uint32) ([]byte, error)
	// Cluster describes members and leader as this node sees them, without the installation.
	Cluster() *wire.ClusterResponse
}

// Dispatcher is what the leader does beside the log. Its errors mean that this node does not lead.
type Dispatcher interface {
	Deliver(ctx context.Context, receive func() (*wire.DeliverUp, error), send func(*wire.DeliverDown) error, cut func()) error
	Heartbeat(session uint64, incarnation string) (live bool, err error)
	Callback(id command.ID, function string, success bool) (f command.Finish, found bool, err error)
	Demand() (*wire.DemandReport, error)
	// Reserve keeps a run slot for a call that is being accepted, to be settled with the result of its grant; nil: it takes its turn.
	Reserve(id command.ID, function string, session uint64) *dispatch.Reservation
	Settle(r *dispatch.Reservation, granted *fsm.Result) *wire.Grant
}

// Config of the API.
type Config struct {
	Name       string // of this node
	Node       Node
	Dispatcher Dispatcher
	Table      *table.Table
	Tokens     map[string]string // role → token
	// MaxUnfinished calls in the queue, all functions together; over it accepts are refused. 0: no limit.
	MaxUnfinished uint64
	// MaxKeys is how many idempotency keys are remembered; over it accepts with a new one are refused. 0: no limit.
	MaxKeys uint64
	// MaxUploadBytes of bodies whose calls are not accepted yet, all edges together; over it parts are refused. 0: no limit.
	MaxUploadBytes uint64
	Log            *slog.Logger
}

// Server answers the RPC of one node.
type Server struct {
	config  Config
	waiters waiters
}

var (
	_ wireconnect.QueueServiceHandler = (*Server)(nil)
	_ wireconnect.TableServiceHandler = (*Server)(nil)
)

// New makes the API. The node must be told of Changed.
func New(c Config) *Server {
	return &Server{config: c, waiters: waiters{by: map[command.ID][]chan struct{}{}}}
}

// Handler is what the API listener serves; every request needs the token of a role.
func (s *Server) Handler(admin *Admin) http.Handler {
	options := []connect.HandlerOption{
		connect.WithCodec(wire.Codec{}),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompression("gzip", nil, nil), // payloads are the callers' and the network is near
		connect.WithInterceptors(guard{}),
	}
	mux := http.NewServeMux()
	mux.Handle(wireconnect.NewQueueServiceHandler(s, options...))
	mux.Handle(wireconnect.NewTableServiceHandler(s, options...))
	mux.Handle(wireconnect.NewAdminServiceHandler(admin, options...))
	return serve.RequireToken(s.config.Tokens, withCut(mux))
}

// NotLeader is the error that tells a client where to go; nothing was handed over.
func (s *Server) NotLeader() error {
	cluster := s.config.Node.Cluster()
	if cluster.GetLeader() == s.config.Name {
		cluster.Leader, cluster.LeaderApi = "", "" // on its way into office, or out
	}
	text := "no leader is known"
	if cluster.GetLeader() != "" {
		text = cluster.GetLeader() + " leads"
	}
	err := connect.NewError(connect.CodeUnavailable, errors.New("node does not lead: "+text))
	detail, detailErr := connect.NewErrorDetail(&wire.NotLeader{LeaderName: cluster.GetLeader(), LeaderApi: cluster.GetLeaderApi()})
	if detailErr == nil {
		err.AddDetail(detail)
	}
	return err
}

// failed read or proposal as an error of the whole request.
func (s *Server) failed(err error) error {
	switch {
	case errors.Is(err, ErrNotLeader):
		return s.NotLeader()
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeUnavailable, errors.New("leadership could not be confirmed in time"))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	default:
		return connect.NewError(connect.CodeUnavailable, err)
	}
}

// guard lets each role call what it needs.
type guard struct{}

var allowed = map[string][]string{
	wireconnect.QueueServiceSubmitProcedure:      {RoleEdge, RoleScaler, RoleQueue},
	wireconnect.QueueServiceDeliverProcedure:     {RoleEdge},
	wireconnect.QueueServiceHeartbeatProcedure:   {RoleScaler},
	wireconnect.QueueServiceGetCallProcedure:     {RoleEdge, RoleScaler, RoleQueue},
	wireconnect.QueueServiceGetResultProcedure:   {RoleEdge},
	wireconnect.QueueServiceListDeadProcedure:    {RoleEdge},
	wireconnect.QueueServiceRedriveProcedure:     {RoleEdge},
	wireconnect.QueueServicePurgeProcedure:       {RoleEdge},
	wireconnect.QueueServiceFactsProcedure:       {RoleEdge, RoleScaler, RoleQueue},
	wireconnect.QueueServiceDemandProcedure:      {RoleEdge, RoleScaler, RoleQueue},
	wireconnect.QueueServiceClusterProcedure:     {RoleEdge, RoleScaler, RoleQueue},
	wireconnect.QueueServiceReadPayloadProcedure: {RoleEdge},
	wireconnect.TableServicePullProcedure:        {RoleEdge, RoleScaler, RoleQueue},

	wireconnect.AdminServiceNodeProcedure:          {RoleQueue},
	wireconnect.AdminServiceAddMemberProcedure:     {RoleQueue},
	wireconnect.AdminServicePromoteMemberProcedure: {RoleQueue},
	wireconnect.AdminServiceRemoveMemberProcedure:  {RoleQueue},
	wireconnect.AdminServiceTransferProcedure:      {RoleQueue},
	wireconnect.AdminServiceBackupProcedure:        {RoleQueue},
}

func (guard) check(ctx context.Context, procedure string) error {
	role := serve.Role(ctx)
	for _, r := range allowed[procedure] {
		if r == role {
			return nil
		}
	}
	return connect.NewError(connect.CodePermissionDenied, errors.New("role "+role+" may not call "+procedure))
}

func (g guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g.check(ctx, r.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, r)
	}
}

func (guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (g guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		if err := g.check(ctx, c.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, c)
	}
}
