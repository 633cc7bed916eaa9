package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const (
	// changeWithin bounds a change of the membership, and a hand-over.
	changeWithin = 10 * time.Second
	// A non-voter has caught up when it was closeLag entries or less behind in each of closeLooks looks, closePause apart.
	closeLag   = 256
	closeLooks = 10
	closePause = 100 * time.Millisecond
	// askWithin bounds one question to another node.
	askWithin = time.Second
	// maxMembers of one cluster, non-voters too.
	maxMembers = 9
	// backupPart is how many bytes of a backup go into one message.
	backupPart = 256 << 10
)

// ErrChanged says that the membership is not the one a change was decided on; nothing was changed.
var ErrChanged = errors.New("the membership has changed meanwhile")

// Membership of the cluster as a node knows it.
type Membership struct {
	Members     []*wire.Member
	Version     uint64 // differs for every membership; 0: none is known
	Pending     bool   // not known to be committed
	InOffice    bool   // this node leads
	LastContact time.Duration
}

// ChangeKind says what a Change does.
type ChangeKind uint8

// Values of ChangeKind.
const (
	Add     ChangeKind = 1 + iota // as a non-voter
	Promote                       // to a voter
	Remove
)

// Change of the membership, decided on the one of Version. Promote and Remove need the name only.
type Change struct {
	Kind    ChangeKind
	Member  *wire.Member
	Version uint64
}

// Copy of the state.
type Copy struct {
	Index, Term uint64
	Size        int64
	io.ReadCloser
}

// Cluster is what operators change and copy. Its errors are those of Node, and ErrChanged.
type Cluster interface {
	Membership() Membership
	Change(ctx context.Context, c Change) error
	// TransferTo a voter; empty: to whoever has most of the log.
	TransferTo(ctx context.Context, name string) error
	// Backup has everything that was committed when it was called.
	Backup(ctx context.Context) (*Copy, error)
}

// Peers asks other nodes.
type Peers interface {
	Cluster(ctx context.Context, address string) (*wire.ClusterResponse, error)
}

// AdminConfig of the Admin.
type AdminConfig struct {
	Name    string // of this node
	Node    Node
	Cluster Cluster
	Peers   Peers
	// NotLeader makes the error that tells where to go.
	NotLeader func() error
	Version   string // of the program
	Log       *slog.Logger
}

// Admin answers the sub-commands of operators.
type Admin struct{ config AdminConfig }

var _ wireconnect.AdminServiceHandler = (*Admin)(nil)

// NewAdmin makes one.
func NewAdmin(c AdminConfig) *Admin { return &Admin{c} }

// Node describes this node.
func (a *Admin) Node(context.Context, *connect.Request[wire.NodeRequest]) (*connect.Response[wire.NodeResponse], error) {
	m := a.config.Cluster.Membership()
	answer := &wire.NodeResponse{
		Cluster: a.config.Node.Cluster(), ConfigurationVersion: m.Version, ConfigurationPending: m.Pending, InOffice: m.InOffice,
		LastContactMs: m.LastContact.Milliseconds(), Version: a.config.Version,
	}
	if m.LastContact < 0 {
		answer.LastContactMs = -1
	}
	a.config.Node.View(func(m *fsm.Machine) {
		answer.Cluster.Installation = m.Installation()
		unfinished, _, dead := m.Sizes()
		answer.Unfinished, answer.Dead = uint64(unfinished), uint64(dead)
	})
	return connect.NewResponse(answer), nil
}

// AddMember adds a non-voter.
func (a *Admin) AddMember(ctx context.Context, r *connect.Request[wire.AddMemberRequest]) (*connect.Response[wire.ChangeResponse], error) {
	asked, m := r.Msg.GetMember(), a.config.Cluster.Membership()
	if !m.InOffice {
		return nil, a.config.NotLeader()
	}
	if err := checkMember(asked); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	for _, x := range m.Members {
		switch {
		case x.GetName() == asked.GetName() && x.GetRaftAddress() == asked.GetRaftAddress():
			return unchanged(m)
		case x.GetName() == asked.GetName():
			return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s is a member at %s: a node in another place needs another name", x.GetName(), x.GetRaftAddress()))
		case x.GetRaftAddress() == asked.GetRaftAddress():
			return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s is the address of %s", x.GetRaftAddress(), x.GetName()))
		}
	}
	if len(m.Members) >= maxMembers {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("there are %d members; no more than %d are of use", len(m.Members), maxMembers))
	}
	return a.change(ctx, Change{Kind: Add, Member: asked, Version: r.Msg.GetConfigurationVersion()})
}

func checkMember(m *wire.Member) error {
	if m.GetName() == "" || len(m.GetName()) > maxName || strings.ContainsAny(m.GetName(), ",= ") {
		return fmt.Errorf("%q is no name of a member", m.GetName())
	}
	for _, address := range []string{m.GetRaftAddress(), m.GetApiAddress(), m.GetRoutesAddress()} {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" || port == "" || port == "0" || strings.Contains(address, ",") {
			return fmt.Errorf("%q of %s is no host:port", address, m.GetName())
		}
	}
	return nil
}

// PromoteMember gives a non-voter its vote once it has caught up.
func (a *Admin) PromoteMember(ctx context.Context, r *connect.Request[wire.PromoteMemberRequest]) (*connect.Response[wire.ChangeResponse], error) {
	m := a.config.Cluster.Membership()
	if !m.InOffice {
		return nil, a.config.NotLeader()
	}
	member := find(m.Members, r.Msg.GetName())
	switch {
	case member == nil:
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s is no member", r.Msg.GetName()))
	case member.GetVoter():
		return unchanged(m)
	}
	if err := a.caughtUp(ctx, member); err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	return a.change(ctx, Change{Kind: Promote, Member: member, Version: r.Msg.GetConfigurationVersion()})
}

// caughtUp asks the member itself, several times: the library does not tell how far a follower is.
func (a *Admin) caughtUp(ctx context.Context, member *wire.Member) error {
	pause := time.NewTicker(closePause)
	defer pause.Stop()
	for range closeLooks {
		want := a.config.Node.Cluster()
		is, err := a.ask(ctx, member)
		if err != nil {
			return err
		}
		// The node of its own cluster, or of another one, has another term or another leader.
		if is.GetLeader() != a.config.Name {
			return fmt.Errorf("%s follows %q, not %s", member.GetName(), is.GetLeader(), a.config.Name)
		}
		if lag := int64(want.GetCommitIndex()) - int64(is.GetCommitIndex()); lag > closeLag {
			return fmt.Errorf("%s is %d entries behind", member.GetName(), lag)
		}
		if lag := int64(want.GetCommitIndex()) - int64(is.GetAppliedIndex()); lag > closeLag {
			return fmt.Errorf("%s has %d entries still to apply", member.GetName(), lag)
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (a *Admin) ask(ctx context.Context, member *wire.Member) (*wire.ClusterResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	is, err := a.config.Peers.Cluster(ctx, member.GetApiAddress())
	if err != nil {
		return nil, err
	}
	if is.GetNode() != member.GetName() {
		return nil, fmt.Errorf("%s is answered by %s", member.GetName(), is.GetNode())
	}
	return is, nil
}

// RemoveMember takes a member out.
func (a *Admin) RemoveMember(ctx context.Context, r *connect.Request[wire.RemoveMemberRequest]) (*connect.Response[wire.ChangeResponse], error) {
	m := a.config.Cluster.Membership()
	if !m.InOffice {
		return nil, a.config.NotLeader()
	}
	member := find(m.Members, r.Msg.GetName())
	switch {
	case member == nil:
		return unchanged(m)
	case member.GetName() == a.config.Name:
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s leads: hand the leadership over first (queue transfer)", a.config.Name))
	}
	if member.GetVoter() && !r.Msg.GetForce() {
		if err := a.survives(ctx, m.Members, member.GetName()); err != nil {
			return nil, connect.NewError(connect.CodeFailedPrecondition, err)
		}
	}
	return a.change(ctx, Change{Kind: Remove, Member: member, Version: r.Msg.GetConfigurationVersion()})
}

// survives says why the cluster would have no majority without this voter.
func (a *Admin) survives(ctx context.Context, members []*wire.Member, without string) error {
	voters, alive := 0, 0
	var silent []error
	for _, m := range members {
		if !m.GetVoter() || m.GetName() == without {
			continue
		}
		voters++
		if m.GetName() == a.config.Name {
			alive++
		} else if _, err := a.ask(ctx, m); err == nil {
			alive++
		} else {
			silent = append(silent, err)
		}
	}
	if alive > voters/2 {
		return nil
	}
	return fmt.Errorf("without %s only %d of %d voters would be alive: %w", without, alive, voters, errors.Join(silent...))
}

// Transfer hands the leadership over.
func (a *Admin) Transfer(ctx context.Context, r *connect.Request[wire.TransferRequest]) (*connect.Response[wire.TransferResponse], error) {
	m, to := a.config.Cluster.Membership(), r.Msg.GetTo()
	if !m.InOffice {
		return nil, a.config.NotLeader()
	}
	if to == a.config.Name {
		return connect.NewResponse(&wire.TransferResponse{}), nil
	}
	if member := find(m.Members, to); to != "" && (member == nil || !member.GetVoter()) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s is no voter", to))
	}
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	if err := a.config.Cluster.TransferTo(ctx, to); err != nil {
		return nil, a.failed(err)
	}
	a.config.Log.Info("leadership handed over", "to", to)
	return connect.NewResponse(&wire.TransferResponse{}), nil
}

// Backup sends the state.
func (a *Admin) Backup(ctx context.Context, _ *connect.Request[wire.BackupRequest], out *connect.ServerStream[wire.BackupResponse]) error {
	state, err := a.config.Cluster.Backup(ctx)
	if err != nil {
		return a.failed(err)
	}
	defer func() { _ = state.Close() }() // only read from
	head := &wire.BackupHeader{
		Node: a.config.Name, Version: a.config.Version, Index: state.Index, Term: state.Term, Size: uint64(state.Size),
		CreatedUnixMs: time.Now().UnixMilli(),
	}
	a.config.Node.View(func(m *fsm.Machine) { head.Installation = m.Installation() })
	if err := out.Send(&wire.BackupResponse{Part: &wire.BackupResponse_Header{Header: head}}); err != nil {
		return err
	}
	sum, buffer := sha256.New(), make([]byte, backupPart)
	for {
		n, err := io.ReadFull(state, buffer)
		if n > 0 {
			sum.Write(buffer[:n])
			if err := out.Send(&wire.BackupResponse{Part: &wire.BackupResponse_Data{Data: buffer[:n]}}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return connect.NewError(connect.CodeInternal, fmt.Errorf("reading the snapshot: %w", err))
		}
	}
	a.config.Log.Info("backup sent", "idx", state.Index, "bytes", state.Size)
	return out.Send(&wire.BackupResponse{Part: &wire.BackupResponse_End{End: &wire.BackupEnd{Sha256: sum.Sum(nil)}}})
}

func (a *Admin) change(ctx context.Context, c Change) (*connect.Response[wire.ChangeResponse], error) {
	if c.Version == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("configuration_version is needed: a change says what it was decided on"))
	}
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	if err := a.config.Cluster.Change(ctx, c); err != nil {
		return nil, a.failed(err)
	}
	after := a.config.Cluster.Membership()
	a.config.Log.Info("membership changed", "kind", c.Kind, "member", c.Member.GetName(), "version", after.Version)
	return connect.NewResponse(&wire.ChangeResponse{ConfigurationVersion: after.Version}), nil
}

func unchanged(m Membership) (*connect.Response[wire.ChangeResponse], error) {
	return connect.NewResponse(&wire.ChangeResponse{ConfigurationVersion: m.Version, Unchanged: true}), nil
}

func find(members []*wire.Member, name string) *wire.Member {
	for _, m := range members {
		if m.GetName() == name {
			return m
		}
	}
	return nil
}

func (a *Admin) failed(err error) error {
	switch {
	case errors.Is(err, ErrNotLeader):
		return a.config.NotLeader()
	case errors.Is(err, ErrChanged):
		return connect.NewError(connect.CodeAborted, err)
	case errors.Is(err, ErrUnknown):
		return connect.NewError(connect.CodeUnknown, err)
	default:
		return connect.NewError(connect.CodeUnavailable, err)
	}
}

// String names the kind for the log.
func (k ChangeKind) String() string {
	return [...]string{"", "add", "promote", "remove"}[k]
}
