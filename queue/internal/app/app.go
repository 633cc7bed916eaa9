// Package app wires one queue node: bus, Raft node, function table, dispatcher, API, and the order in which they start and stop.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/api"
	"github.com/slimfaas/slimfaas/queue/internal/bus"
	"github.com/slimfaas/slimfaas/queue/internal/dispatch"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/queue/internal/metrics"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/nc"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/table"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

const (
	// transferWithin bounds the hand-over of the leadership at a stop; then the others elect.
	transferWithin = 2 * time.Second
	// apiDrain is how long open requests may go on at a stop.
	apiDrain = 3 * time.Second
	// raftStop bounds the last step.
	raftStop = 5 * time.Second
	// staleAfter is how long a follower may not hear its leader before it says that it is not ready.
	staleAfter = 3 * time.Second
	// maxStreams is how many requests and streams one client may have open on its one connection.
	maxStreams = 1024
)

// Member is one node as the others reach it; addresses are host:port.
type Member struct {
	Name, RaftAddress, APIAddress, RoutesAddress string
}

func (m Member) raft() raftnode.Member {
	return raftnode.Member{Name: m.Name, RaftAddress: m.RaftAddress, APIAddress: m.APIAddress, RoutesAddress: m.RoutesAddress}
}

// Config of a node. Addresses without an explanation are listen addresses, host:port, where port 0 takes a free one.
type Config struct {
	Name       string
	DataDir    string
	Members    []Member // of a first start, the same on every node; empty: this node alone
	Join       bool     // begin no cluster: wait to be added to one
	SecretsDir string
	// Insecure allows internal links without TLS on addresses that other machines reach.
	Insecure bool

	RaftAddress, APIAddress, BusAddress, RoutesAddress, AdminAddress string

	Guard   Guard
	Profile bool
	// LogStore is where the Raft log's entries are kept; empty: segments.
	LogStore      raftnode.LogKind
	Limits        dispatch.Limits
	MaxUnfinished uint64 // calls in the queue; 0: no limit
	MaxKeys       uint64 // idempotency keys remembered; 0: no limit
	// MaxUploadBytes of bodies whose calls are not accepted yet; 0: no limit.
	MaxUploadBytes uint64
	Log            *slog.Logger
}

// Guard of a node against its disk; zero values are raftnode's defaults.
type Guard struct {
	WriteTimeout time.Duration
	Disk         guard.Limits
	Rejoin       string // installation id of the cluster that fills an empty directory
}

// App is one node, constructed and listening.
type App struct {
	config  Config
	log     *slog.Logger
	secrets secrets
	tls     *tlsconf.Files // nil: internal links are not encrypted

	bus        *bus.Server
	node       *raftnode.Node
	client     *nc.Bus
	table      *table.Table
	follower   *table.Follower
	puller     *api.Puller
	dispatcher *dispatch.Dispatcher
	api        *serve.Server
	admin      *serve.Server

	members  atomic.Pointer[raftnode.Node] // node, once it is open, for connections that are made before
	draining atomic.Bool
}

type secrets struct {
	keys     map[bus.Role]string
	tokens   map[string]string
	password string
}

// New opens the files and the listeners. An error leaves nothing open.
func New(ctx context.Context, c Config) (_ *App, err error) {
	if c, err = c.complete(); err != nil {
		return nil, err
	}
	a := &App{config: c, log: c.Log, table: table.New()}
	if err := a.readSecrets(); err != nil {
		return nil, err
	}
	if err := a.openTLS(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()

	links := a.links()
	a.bus, err = bus.Start(ctx, bus.Config{
		Node: c.Name, ClientAddress: c.BusAddress, RoutesAddress: c.RoutesAddress, Peers: c.others(func(m Member) string { return m.RoutesAddress }),
		RoutesPassword: a.secrets.password, Keys: a.secrets.keys, ClientTLS: links.bus, RoutesTLS: links.routes, Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	a.client, err = nc.Connect(ctx, nc.Options{
		Name: c.Name, Role: string(bus.RoleQueue), SeedFile: filepath.Join(c.SecretsDir, "bus-queue.seed"), InProcess: a.bus, Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	a.node, err = raftnode.Open(raftnode.Config{
		Name: c.Name, Members: c.raftMembers(), Join: c.Join, ListenAddress: c.RaftAddress, TLS: a.tls, Dir: c.DataDir, LogKind: c.LogStore, Log: a.log,
		WriteTimeout: c.Guard.WriteTimeout, Disk: c.Guard.Disk, Rejoin: c.Guard.Rejoin,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the raft node: %w", err)
	}
	a.members.Store(a.node)
	cluster := node{a.node}
	a.dispatcher = dispatch.New(dispatch.Config{
		Node: c.Name, Log: a.node, Table: functions{a.table}, Bus: a.client, Limits: c.Limits, NotLeader: cluster.notLeader, Logger: a.log,
	})
	service := api.New(api.Config{
		Name: c.Name, Node: cluster, Dispatcher: a.dispatcher, Table: a.table, Tokens: a.secrets.tokens, MaxUnfinished: c.MaxUnfinished, MaxKeys: c.MaxKeys, MaxUploadBytes: c.MaxUploadBytes, Log: a.log,
	})
	a.follow(links.pull)
	admin := api.NewAdmin(api.AdminConfig{
		Name: c.Name, Node: cluster, Cluster: cluster, Peers: a.puller, NotLeader: service.NotLeader, Version: obs.Version, Log: a.log,
	})
	a.table.Changed(func(e *table.Entry) { a.dispatcher.FunctionChanged(describe(e)) })
	a.node.OnChange(a.dispatcher.Changed)
	a.node.OnChange(service.Changed)
	a.node.OnLeading(a.dispatcher.Lead)
	a.node.OnLeading(a.install)

	a.api = serve.New(serve.Options{Name: "api", Handler: service.Handler(admin), Log: a.log, MaxStreams: maxStreams, TLS: links.api})
	if err := a.api.Listen(ctx, c.APIAddress); err != nil {
		return nil, err
	}
	registry := obs.Registry("queue")
	registry.MustRegister(metrics.New(metrics.Sources{Node: a.node, Dispatcher: a.dispatcher, Log: a.node, Bus: a.bus, Client: a.client, Table: a.table}))
	a.admin = serve.New(serve.Options{
		Name: "admin", Log: a.log,
		Handler: serve.Admin{Health: a.healthy, Ready: a.ready, Metrics: obs.Handler(registry, a.log), Profile: c.Profile}.Handler(),
	})
	if err := a.admin.Listen(ctx, c.AdminAddress); err != nil {
		return nil, err
	}
	return a, nil
}

func (c Config) complete() (Config, error) {
	if len(c.Members) == 0 {
		c.Members = []Member{{Name: c.Name, RaftAddress: c.RaftAddress, APIAddress: c.APIAddress, RoutesAddress: c.RoutesAddress}}
	}
	for _, m := range c.Members {
		if m.Name == c.Name {
			return c, nil
		}
	}
	return c, fmt.Errorf("node %q (QUEUE_NAME) is not among QUEUE_MEMBERS", c.Name)
}

func (c Config) others(address func(Member) string) []string {
	var list []string
	for _, m := range c.Members {
		if m.Name != c.Name {
			list = append(list, address(m))
		}
	}
	return list
}

func (c Config) raftMembers() []raftnode.Member {
	list := make([]raftnode.Member, 0, len(c.Members))
	for _, m := range c.Members {
		list = append(list, m.raft())
	}
	return list
}

// readSecrets reads what a queue node needs, and says at once all that is missing.
func (a *App) readSecrets() error {
	a.secrets = secrets{keys: map[bus.Role]string{}, tokens: map[string]string{}}
	var errs []error
	read := func(name string) string {
		value, err := secret.Read(a.config.SecretsDir, name)
		if err != nil {
			errs = append(errs, err)
		}
		return value
	}
	for _, r := range bus.Roles {
		a.secrets.keys[r] = read("bus-" + string(r) + ".pub")
	}
	for _, r := range []string{api.RoleEdge, api.RoleQueue, api.RoleScaler} {
		a.secrets.tokens[r] = read("token-" + r)
	}
	// A node alone needs it, too, from the moment on that a second one is added; without it, it opens no routes.
	if value, err := secret.Read(a.config.SecretsDir, "routes.password"); err == nil {
		a.secrets.password = value
	} else if len(a.config.Members) > 1 {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Addr says where the API and the admin listener are.
func (a *App) Addr() (apiAddress, adminAddress net.Addr) { return a.api.Addr(), a.admin.Addr() }

// Run serves until ctx ends, then drains: not ready, leadership to another, streams and requests end, bus clients move, Raft
// stops. It returns early when something fails for good.
func (a *App) Run(ctx context.Context) error {
	var plumbing, traffic group
	plumbing.start(func(ctx context.Context) error {
		err := a.follower.Run(ctx)
		if a.draining.Load() {
			return nil // a node that stops as it starts closes the connection under it
		}
		return err
	})
	plumbing.start(func(ctx context.Context) error { return a.announceSynced(ctx) })
	if a.tls != nil {
		plumbing.start(a.tls.Run)
	}
	plumbing.start(func(ctx context.Context) error { return a.admin.Run(ctx, time.Second) })
	traffic.start(func(ctx context.Context) error { return a.api.Run(ctx, apiDrain) })

	var failure error
	select {
	case <-ctx.Done():
		a.log.Info("stopping")
	case failure = <-a.node.Done():
	case failure = <-plumbing.failed():
	case failure = <-traffic.failed():
	}
	a.draining.Store(true)
	// The drain has its own time: what ends the program must not cut it short.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), transferWithin)
	if err := a.node.Transfer(drain); err != nil {
		a.log.Warn("the leadership was not handed over", "err", err)
	}
	cancel()
	a.dispatcher.Drain()
	trafficErr := traffic.stop()
	if trafficErr != nil {
		a.log.Warn("the API did not drain", "err", trafficErr)
	}
	a.client.Close()
	a.bus.LameDuck()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), raftStop)
	defer cancel()
	nodeErr := a.node.Stop(stop)
	plumbingErr := plumbing.stop()
	a.puller.Close()
	a.log.Info("stopped")
	return errors.Join(failure, nodeErr, plumbingErr)
}

// close undoes New.
func (a *App) close() {
	if a.api != nil {
		a.api.Close()
	}
	if a.admin != nil {
		a.admin.Close()
	}
	if a.node != nil {
		ctx, cancel := context.WithTimeout(context.Background(), raftStop) // nothing else bounds a start that failed
		defer cancel()
		_ = a.node.Stop(ctx)
	}
	if a.client != nil {
		a.client.Close()
	}
	if a.bus != nil {
		a.bus.Stop()
	}
}

// group runs functions until it is stopped or one of them returns early.
type group struct {
	ctx    context.Context //nolint:containedctx // the group is the owner of these goroutines' lives
	cancel context.CancelFunc
	wait   sync.WaitGroup
	first  chan error
	errs   []error
	mu     sync.Mutex // guards errs
}

func (g *group) start(f func(context.Context) error) {
	if g.ctx == nil {
		g.ctx, g.cancel = context.WithCancel(context.Background()) // ended by stop
		g.first = make(chan error, 1)
	}
	g.wait.Go(func() {
		err := f(g.ctx)
		g.mu.Lock()
		g.errs = append(g.errs, err)
		g.mu.Unlock()
		if err != nil {
			select {
			case g.first <- err:
			default:
			}
		}
	})
}

func (g *group) failed() <-chan error { return g.first }

// stop ends all of them and waits.
func (g *group) stop() error {
	g.cancel()
	g.wait.Wait()
	return errors.Join(g.errs...)
}
