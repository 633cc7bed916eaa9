package app

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/api"
	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/dispatch"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/table"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// node is the Raft node in the API's words: its errors, and the members' API addresses.
type node struct{ *raftnode.Node }

// Propose tells the API's kinds of errors apart.
func (n node) Propose(ctx context.Context, commands []command.Command) ([]fsm.Result, uint64, error) {
	results, index, err := n.Node.Propose(ctx, commands)
	return results, index, translate(err)
}

// ReadBarrier likewise.
func (n node) ReadBarrier(ctx context.Context) error { return translate(n.Node.ReadBarrier(ctx)) }

func translate(err error) error {
	var elsewhere raftnode.ErrNotLeader
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raftnode.ErrUnknown): // first: it may wrap why the rest was not handed over
		return fmt.Errorf("%w: %w", api.ErrUnknown, err)
	case errors.As(err, &elsewhere):
		return fmt.Errorf("%w: %w", api.ErrNotLeader, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("not handed over: %w", err)
	default:
		return err
	}
}

func (n node) api(name string) string {
	for _, m := range n.Members() {
		if m.Name == name {
			return m.APIAddress
		}
	}
	return ""
}

// leader is the one this node knows of; itself only in office.
func (n node) leader() string {
	leader := n.Leader()
	if leader == n.Name() && !n.IsLeader() {
		return ""
	}
	return leader
}

func (n node) notLeader() *wire.NotLeader {
	leader := n.leader()
	if leader == n.Name() {
		return &wire.NotLeader{} // it is not in office: nobody is
	}
	return &wire.NotLeader{LeaderName: leader, LeaderApi: n.api(leader)}
}

// Cluster as this node sees it.
func (n node) Cluster() *wire.ClusterResponse {
	c := &wire.ClusterResponse{
		Node: n.Name(), Leader: n.leader(), Term: n.Term(), AppliedIndex: n.Applied(), CommitIndex: n.Commit(),
	}
	c.LeaderApi = n.api(c.GetLeader())
	for _, m := range n.Members() {
		c.Members = append(c.Members, describeMember(m))
	}
	return c
}

// maxReplicaName: a longer one is no name of ours, and would not fit a command.
const maxReplicaName = 512

// functions is the table in the dispatcher's words.
type functions struct{ table *table.Table }

func (f functions) Synced() bool { return f.table.Synced() }

func (f functions) Function(name string) (dispatch.Function, bool) {
	e, ok := f.table.Get(name)
	if !ok {
		return dispatch.Function{Name: name}, false
	}
	return describe(e)
}

func describe(e *table.Entry) (dispatch.Function, bool) {
	f := dispatch.Function{Name: e.Record.GetName()}
	if e.Record.GetDeleted() {
		return f, false
	}
	f.Spec = e.Spec
	for _, r := range e.Record.GetReplicas() {
		if r.GetState() == wire.ReplicaState_REPLICA_STATE_READY && r.GetName() != "" && len(r.GetName()) <= maxReplicaName {
			f.Ready = append(f.Ready, r.GetName())
		}
	}
	return f, true
}

// follow prepares the copy of the table: from the leading scaler, else from another node.
func (a *App) follow(secure *tls.Config) {
	a.puller = api.NewPuller(a.secrets.tokens[api.RoleQueue], secure, func() string {
		if leader := a.follower.Leader(); leader != nil {
			return leader.GetLeaderApi()
		}
		return a.leadingScaler()
	}, a.peers)
	a.follower = &table.Follower{Table: a.table, Bus: a.client, Name: a.config.Name, Pull: a.puller.Pull, Log: a.log}
}

// leadingScaler is host:port of the API of who has the scalers' lock, as far as this node has applied; empty: nobody. Without the bus
// it is the only way to the leader's table.
func (a *App) leadingScaler() (address string) {
	a.node.View(func(m *fsm.Machine) {
		var holder uint64
		for _, l := range m.Locks() {
			if l.Name == wire.ScalerLock {
				holder = l.Session
			}
		}
		for _, s := range m.Sessions() {
			if s.ID == holder && !s.Vanished {
				address = s.Address
			}
		}
	})
	return address
}

func (a *App) announceSynced(ctx context.Context) error {
	if a.table.WaitSynced(ctx) == nil {
		a.dispatcher.TableSynced()
	}
	return nil
}

// install gives the installation its id, once for ever: the first leader does.
func (a *App) install(ctx context.Context) {
	for {
		var known string
		a.node.View(func(m *fsm.Machine) { known = m.Installation() })
		if known != "" {
			return
		}
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		if _, _, err := a.node.Propose(ctx, []command.Command{command.SetInstallation{ID: hex.EncodeToString(id[:])}}); err != nil {
			a.log.Debug("the installation has no id yet", "err", err)
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// healthy: the process does its work, or wants to be started again.
func (a *App) healthy() error {
	select {
	case <-a.client.Closed():
		if !a.draining.Load() {
			return errors.New("the node's own bus connection is gone for good")
		}
	default:
	}
	if hanging := a.node.Hanging(); hanging > 0 {
		return fmt.Errorf("a write to the data directory has been hanging for %s", hanging.Round(time.Second))
	}
	return nil
}

// ready: the node serves, and is part of a cluster that has a leader.
func (a *App) ready() error {
	if a.draining.Load() {
		return errors.New("stopping")
	}
	var errs []error
	if err := a.bus.Ready(); err != nil {
		errs = append(errs, err)
	}
	member, _ := a.node.Member()
	trusted, waitsFor := a.node.Trusted()
	switch contact := a.node.LastContact(); {
	case !trusted:
		errs = append(errs, fmt.Errorf("raft: this node has no vote yet: %s", waitsFor))
	case !member && len(a.node.Members()) > 0:
		errs = append(errs, errors.New("raft: no member any more: this node was removed and can be stopped"))
	case a.node.Leader() == "":
		errs = append(errs, errors.New("raft: no leader is known"))
	case a.node.IsLeader() && !a.node.InOffice():
		errs = append(errs, errors.New("raft: elected, not in office yet"))
	case !a.node.IsLeader() && (contact < 0 || contact > staleAfter):
		errs = append(errs, fmt.Errorf("raft: the leader has not been heard for %s", contact.Round(time.Millisecond)))
	}
	return errors.Join(slices.Clip(errs)...)
}
