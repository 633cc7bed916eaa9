// Package app is the edge's wiring: what is made in which order, what runs, and in which order it stops.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/access"
	"github.com/slimfaas/slimfaas/edge/internal/accesslog"
	"github.com/slimfaas/slimfaas/edge/internal/apikey"
	"github.com/slimfaas/slimfaas/edge/internal/async"
	"github.com/slimfaas/slimfaas/edge/internal/events"
	"github.com/slimfaas/slimfaas/edge/internal/forward"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/metrics"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/edge/internal/shed"
	"github.com/slimfaas/slimfaas/edge/internal/tracing"
	"github.com/slimfaas/slimfaas/edge/internal/wake"
	"github.com/slimfaas/slimfaas/shared/nc"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/table"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Options of an edge; config.go documents each.
type Options struct {
	Name                                         string
	PublicAddress, InternalAddress, AdminAddress string
	CertFile, KeyFile                            string // of the public listener; empty: no TLS
	KeysFile                                     string // of callers; empty: no keys are asked for
	Profile                                      bool
	AccessLog                                    int        // lines a second; 0: none
	Shed                                         *shed.Rule // nil: nothing is refused for want of processors
	MaxConns                                     int        // of the public listener; 0: any number
	InternalOnPublic, PublicMetrics              bool
	QueueAPI, BusURLs                            []string
	SecretsDir                                   string
	Insecure                                     bool
	Access                                       access.Rules
	Cors                                         gate.Cors
	MaxBody                                      int64
	ParkedPer, ParkedTotal                       int
	MaxHeld                                      uint32
	MaxHeldBytes, AsyncMaxBody, EventMaxBody     int64
	Taking, TakingBytes, Uploads                 int64
	EventConcurrency, MaxReplicas                int
	DrainDelay, Drain                            time.Duration
}

// App is one edge: New, Listen, Run, once each and in this order.
type App struct {
	options Options
	log     *slog.Logger

	loads     *load.Tracker
	functions *replica.Set
	table     *table.Table
	follower  *table.Follower
	client    *queueclient.Client
	bus       *nc.Bus
	tls       *tlsconf.Files  // nil: links to the queue are not encrypted
	site      *tlsconf.Site   // nil: the public listener is not
	keys      *apikey.Keys    // nil: callers need none
	tracer    *tracing.Tracer // nil: no spans are made
	shed      *shed.Shedder   // nil: nothing is refused for want of processors
	wakes     *metrics.Wakes
	waker     *wake.Waker
	reporter  *load.Reporter
	forwarder *forward.Forwarder
	deliverer *async.Deliverer
	publisher *events.Publisher
	roster    *events.Roster

	public, internal, admin *serve.Server
	stopping                atomic.Bool
}

// Run makes an edge, runs it until ctx ends and drains it.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	a, err := New(ctx, o, log)
	if err != nil {
		return err
	}
	defer a.Close()
	if err := a.Listen(ctx); err != nil {
		return err
	}
	return a.Run(ctx)
}

// New makes an edge from what it can see: it connects to nobody yet but the bus, which it never waits for.
func New(ctx context.Context, o Options, log *slog.Logger) (*App, error) {
	a := &App{options: o, log: log.With("edge", o.Name), loads: load.NewTracker(), table: table.New()}
	var err error
	if a.tls, err = tlsconf.Open(o.SecretsDir, a.log, "edge"); err != nil {
		return nil, err
	}
	if a.site, err = tlsconf.OpenSite(o.CertFile, o.KeyFile, a.log); err != nil {
		return nil, err
	}
	if a.keys, err = apikey.Open(o.KeysFile, a.log); err != nil {
		return nil, err
	}
	if err := a.checkLinks(); err != nil {
		return nil, err
	}
	if a.tracer, err = tracing.New(ctx, o.Name, obs.Version, os.Getenv, a.log); err != nil {
		return nil, err
	}
	var queue *tls.Config
	if a.tls != nil {
		queue = a.tls.Client(tlsconf.Names("queue"))
	}
	var token, seed string
	if o.SecretsDir != "" {
		if token, err = secret.Read(o.SecretsDir, "token-edge"); err != nil {
			return nil, err
		}
		seed = filepath.Join(o.SecretsDir, "bus-edge.seed")
	}
	bus, err := nc.Connect(ctx, nc.Options{URLs: o.BusURLs, Name: o.Name, Role: "edge", SeedFile: seed, TLS: queue, Log: a.log})
	if err != nil {
		return nil, err
	}
	a.bus = bus
	a.client = queueclient.New(queueclient.Options{Endpoints: o.QueueAPI, Token: token, Name: o.Name, TLS: queue, Log: a.log})
	a.functions = replica.NewSet(a.loads)
	a.forwarder = forward.New(a.log)
	a.wakes = metrics.NewWakes()
	a.waker = wake.New(wake.Options{
		Name: o.Name, Epoch: a.functions.Epoch, MaxPerFunction: o.ParkedPer, MaxTotal: o.ParkedTotal,
		Publish: func(m *wire.Wake) error { return a.bus.Publish(wire.SubjectWake, m) }, Waited: a.wakes.Observe,
	})
	a.functions.Woken = a.waker.Look
	a.deliverer = async.New(async.Options{
		Name: o.Name, Address: o.InternalAddress, MaxHeld: o.MaxHeld, MaxBytes: o.MaxHeldBytes, Drain: o.Drain,
		Open: a.open, Do: a.do, ReadBody: a.readBody, Replicas: a.functions, Log: a.log, Tracer: a.tracer,
	})
	a.functions.Said = a.deliverer.SlotsChanged
	a.roster = &events.Roster{
		Edge: o.Name, Incarnation: a.deliverer.Incarnation(),
		Publish: func(m *wire.EdgeHello) error { return a.bus.Publish(wire.SubjectEdgeHello, m) },
	}
	a.publisher = events.NewPublisher(events.Options{
		Functions: a.functions, Awake: a.awake, Concurrency: o.EventConcurrency, Bus: a.bus, Roster: a.roster, Drain: o.Drain, Log: a.log,
	})
	a.reporter = &load.Reporter{
		Tracker: a.loads, Edge: o.Name, Incarnation: a.deliverer.Incarnation(), Epoch: a.functions.Epoch,
		Draining: func(name string) []*wire.DrainReport {
			if f, ok := a.functions.Get(name); ok {
				return f.Draining()
			}
			return nil
		},
		Publish: func(m *wire.LoadReport) error { return a.bus.Publish(wire.SubjectLoad, m) },
	}
	a.table.Changed(a.changed)
	a.follower = &table.Follower{Table: a.table, Bus: a.bus, Name: o.Name, Pull: a.client.PullTable, Log: a.log}
	a.listeners()
	return a, nil
}

// awake wakes a function and waits until a replica of it may be called.
func (a *App) awake(ctx context.Context, f *replica.Function, patience time.Duration) error {
	lease, _, err := a.waker.Acquire(ctx, f, patience)
	if err != nil {
		return err
	}
	lease.End()
	return nil
}

// changed takes over a record, in the order the table applied them.
func (a *App) changed(e *table.Entry) {
	before := a.functions.Epoch()
	a.functions.Apply(e.Record, e.Spec)
	a.deliverer.Changed(e.Record.GetName())
	if e.Err != nil {
		a.log.Warn("a function's specification cannot be read; defaults are used", "fn", e.Record.GetName(), "err", e.Err)
	}
	if a.functions.Epoch() != before {
		a.loads.Now() // the new leader waits for every edge's word
	}
}

// listeners builds the surface.
func (a *App) listeners() {
	o := a.options
	uploads := message.NewBudget(o.Uploads, 0)
	registry := obs.Registry("edge")
	registry.MustRegister(&metrics.Collector{
		Functions: a.functions, BusConnected: a.bus.Connected, BusOverruns: a.bus.Overruns,
		Delivery: func() (uint64, int) { s := a.deliverer.State(); return s.Session, s.Held },
		Uploads:  uploads.Calls,
		Conns:    func() (int, uint64) { return a.public.Conns() },
		Shed:     func() uint64 { return a.shed.Refused() },
		Shares:   a.publisher.Shares,
	})
	registry.MustRegister(a.wakes)
	exposition := obs.Handler(registry, a.log)

	if o.Shed != nil {
		a.shed = shed.New(*o.Shed, func(refusing bool, percent float64) {
			a.log.Warn("load of the processors", "refusing", refusing, "percent", math.Round(percent))
		})
	}
	var requests *accesslog.Log
	if o.AccessLog > 0 {
		requests = accesslog.New(a.log, o.AccessLog)
	}
	api := httpapi.New(httpapi.Options{
		Functions: a.functions, Access: o.Access, Cors: o.Cors, Keys: a.keys, MaxBody: o.MaxBody, InternalOnPublic: o.InternalOnPublic,
		Synced: a.table.Synced, AwaitSynced: a.table.WaitSynced, Log: requests, Shed: a.shed, Tracer: a.tracer,
	})
	api.Handle(route.Function, (&caller{waker: a.waker, forwarder: a.forwarder, enqueue: api.Handler(route.AsyncFunction)}).call)
	api.HandleWake(a.waker.Wake)
	api.HandleHome(obs.Describe("edge"))
	budget := message.NewBudget(o.Taking, o.TakingBytes)
	accepter := async.Accepter{Do: a.do, Runs: a.deliverer}
	uploader := async.NewUploader(a.do, func(ctx context.Context) (uint64, error) { return a.deliverer.Session(ctx) })
	api.HandleAsync(httpapi.Async{
		Accept: accepter.Accept,
		AcceptLarge: func(ctx context.Context, function string, request *wire.StoredRequest, body *message.Rest, o message.CallOptions) (string, error) {
			return uploader.Accept(ctx, function, request, body, o)
		},
		Do: a.do, GetCall: a.client.GetCall, GetResult: a.client.GetResult, Budget: budget, Uploads: uploads, MaxBody: o.AsyncMaxBody, Log: a.log,
	})
	api.HandleEvents(httpapi.Events{Publish: a.publisher.Publish, Budget: message.NewBudget(o.Taking, o.TakingBytes), MaxBody: o.EventMaxBody})
	api.HandleOperator(httpapi.Operator{
		Ask: a.ask, Do: a.do, Cluster: a.client.Cluster, Facts: a.client.Facts, Digest: a.digest,
		MaxReplicas: o.MaxReplicas, Log: a.log,
		Dead: httpapi.DeadLetters{List: a.client.ListDead, Redrive: a.client.Redrive, Purge: a.client.Purge},
	})
	if o.PublicMetrics {
		api.HandleHealth(a.ready, exposition)
	} else {
		api.HandleHealth(a.ready, nil)
	}
	public := serve.Options{Name: "public", Handler: api.Public(), Log: a.log, MaxConns: o.MaxConns}
	if a.site != nil {
		public.TLS = a.site.Config()
	}
	a.public = serve.New(public)
	a.internal = serve.New(serve.Options{Name: "internal", Handler: api.Internal(), Log: a.log})
	a.admin = serve.New(serve.Options{
		Name: "admin", Handler: serve.Admin{Ready: a.ready, Metrics: exposition, Profile: o.Profile}.Handler(), Log: a.log, HTTP1Only: true,
	})
}

// Listen opens the three listeners.
func (a *App) Listen(ctx context.Context) error {
	return errors.Join(
		a.public.Listen(ctx, a.options.PublicAddress),
		a.internal.Listen(ctx, a.options.InternalAddress),
		a.admin.Listen(ctx, a.options.AdminAddress),
	)
}

// PublicAddr is where the public listener listens.
func (a *App) PublicAddr() net.Addr { return a.public.Addr() }

// InternalAddr is where the internal listener listens.
func (a *App) InternalAddr() net.Addr { return a.internal.Addr() }

// AdminAddr is where the admin listener listens.
func (a *App) AdminAddr() net.Addr { return a.admin.Addr() }

// ready says why no requests should come here; nil when they should.
func (a *App) ready() error {
	switch {
	case a.stopping.Load():
		return errors.New("stopping")
	case !a.table.Synced():
		return errors.New("the function table has not been read yet: no queue node has it, or none can be reached")
	}
	return nil
}

// Run runs until ctx ends, or something that cannot be mended does, and drains. The order of the stop: readiness off, a wait
// for balancers, no new connections, requests under way, events, deliveries and with them the session (a live session is what
// keeps scalers from shrinking under our calls), a last load report, then the plumbing, the bus last.
func (a *App) Run(ctx context.Context) error {
	a.log.Info("edge running", "public", a.public.Addr().String(), "internal", a.internal.Addr().String(), "admin", a.admin.Addr().String())
	// The parts outlive ctx, by the bounded steps below only.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	serving, stopServing := context.WithCancel(life)
	delivering, stopDelivering := context.WithCancel(life)
	reporting, stopReporting := context.WithCancel(life)
	defer stopServing()
	defer stopDelivering()
	defer stopReporting()

	plumbing, broken := errgroup.WithContext(life)
	var traffic, delivery, report errgroup.Group
	watch := func(g *errgroup.Group, f func() error) {
		g.Go(func() error {
			err := f()
			if err != nil && !a.stopping.Load() {
				plumbing.Go(func() error { return err }) // ends everything
			}
			return err
		})
	}
	defer a.onBus()()
	plumbing.Go(func() error { return a.follower.Run(broken) })
	plumbing.Go(func() error { a.waker.Run(broken); return nil })
	if a.tls != nil {
		plumbing.Go(func() error { return a.tls.Run(broken) })
	}
	if a.site != nil {
		plumbing.Go(func() error { return a.site.Run(broken) })
	}
	if a.shed != nil {
		plumbing.Go(func() error { return a.shed.Run(broken) })
	}
	if a.keys != nil {
		plumbing.Go(func() error { return a.keys.Run(broken) })
	}
	plumbing.Go(func() error { return a.admin.Run(broken, time.Second) })
	watch(&report, func() error { a.reporter.Run(reporting); return nil })
	watch(&traffic, func() error { a.roster.Run(serving); return nil })
	watch(&delivery, func() error { return a.deliverer.Run(delivering) })
	watch(&traffic, func() error { return a.public.Run(serving, a.options.Drain) })
	watch(&traffic, func() error { return a.internal.Run(serving, a.options.Drain) })

	select {
	case <-ctx.Done():
		a.log.Info("stopping")
	case <-broken.Done():
	}
	a.stopping.Store(true)
	if a.options.DrainDelay > 0 {
		delay := time.NewTimer(a.options.DrainDelay)
		select {
		case <-delay.C:
		case <-broken.Done():
		}
		delay.Stop()
	}
	stopServing()
	err := traffic.Wait()
	a.publisher.Close()
	stopDelivering()
	err = errors.Join(err, delivery.Wait())
	stopReporting()
	_ = report.Wait()
	end()
	if failure := plumbing.Wait(); failure != nil {
		return errors.Join(failure, err)
	}
	if err != nil { // the stop was asked for; what it cut is worth a line, not an exit code
		a.log.Warn("the drain was not complete", "err", err)
	}
	a.log.Info("stopped")
	return nil
}

// onBus subscribes to what the table's follower does not, and returns how to end it.
func (a *App) onBus() (stop func()) {
	stops := []func(){
		hear(a, wire.SubjectSighting, func(m *wire.Sighting, _ string) { a.functions.Sight(m) }),
		hear(a, wire.SubjectEdgeHello, func(m *wire.EdgeHello, _ string) { a.roster.Heard(m) }),
		hear(a, wire.SubjectEventShare+"."+a.roster.Incarnation, a.publisher.Help),
		a.bus.OnReconnect(a.loads.Now), // what scalers missed
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// hear hands the messages of a subject to handle, until stop.
func hear[M any, P interface {
	*M
	proto.Message
}](a *App, subject string, handle func(m P, reply string),
) (stop func()) {
	stop, err := a.bus.Subscribe(subject, func(raw []byte, reply string) {
		m := P(new(M))
		if err := proto.Unmarshal(raw, m); err != nil {
			a.log.Warn("a message of the bus cannot be read", "subject", subject, "err", err)
			return
		}
		handle(m, reply)
	})
	if err != nil { // only a closed connection; the table's follower says so too
		a.log.Error("nothing will be heard", "subject", subject, "err", err)
		return func() {}
	}
	return stop
}

// Close ends what New made; after Run.
func (a *App) Close() {
	a.bus.Close()
	a.client.Close()
	a.forwarder.Close()
	for _, s := range []*serve.Server{a.public, a.internal, a.admin} {
		s.Close()
	}
	if err := a.tracer.Close(); err != nil {
		a.log.Warn("closing", "err", err)
	}
}

func (a *App) do(ctx context.Context, op *wire.Op) (*wire.OpResult, error) {
	return a.client.Do(ctx, op)
}

func (a *App) open(ctx context.Context) (async.Stream, string, error) {
	return a.client.Deliver(ctx)
}

func (a *App) readBody(ctx context.Context, id []byte, fence, size uint64) async.Pieces {
	return a.client.ReadBody(ctx, id, fence, size)
}

func (a *App) ask(ctx context.Context, subject string, m proto.Message) ([]byte, error) {
	return a.bus.Request(ctx, subject, m)
}

// digest is of the table this edge has, with the leader where one is heard.
func (a *App) digest() *wire.TableDigest {
	d := a.table.Digest()
	if leader := a.follower.Leader(); leader != nil {
		d.Leader, d.LeaderApi = leader.GetLeader(), leader.GetLeaderApi()
	}
	return d
}

// checkLinks keeps the token and the bus off networks nobody has called trusted, unless the links are encrypted.
func (a *App) checkLinks() error {
	var errs []error
	open := false
	for _, raw := range slices.Concat(a.options.QueueAPI, a.options.BusURLs) {
		u, err := url.Parse(strings.TrimSpace(raw))
		switch {
		case err != nil || u.Host == "":
			errs = append(errs, fmt.Errorf("reading the address %q: expected scheme://host:port", raw))
		case a.tls != nil:
		case u.Scheme == "https" || u.Scheme == "tls":
			errs = append(errs, fmt.Errorf("%s asks for TLS: put ca.crt, tls.crt and tls.key into EDGE_SECRETS_DIR", raw))
		case serve.Loopback(u.Host):
		case a.options.Insecure:
			open = true
		default:
			errs = append(errs, fmt.Errorf("refusing to send the edge's token unencrypted to %s on another machine: put ca.crt, tls.crt and tls.key into EDGE_SECRETS_DIR, or allow it with EDGE_INSECURE=true where the network is trusted", u.Host))
		}
	}
	if open && len(errs) == 0 {
		a.log.Warn("links to the queue are not encrypted, and leave this machine: EDGE_INSECURE allows it")
	}
	return errors.Join(errs...)
}
