// Package app puts the scaler together, starts it and stops it.
//
// What is heard (orchestrator, loads, demand, wakes) is kept by every scaler. Waking has effects in every scaler; everything
// else with effects runs only while leading, in package lead.
package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/api"
	"github.com/slimfaas/slimfaas/scaler/internal/catalogue"
	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/scaler/internal/election"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/lead"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/scaler/internal/waking"
	"github.com/slimfaas/slimfaas/shared/nc"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// drainTime bounds the end of open requests of the API and of the admin listener.
const drainTime = 2 * time.Second

// Options of an App.
type Options struct {
	Name         string
	APIAddress   string
	APIAdvertise string // empty: where the API really listens
	AdminAddress string

	QueueAPI []string
	BusURLs  []string

	SecretsDir  string // where the certificates are, if any
	Insecure    bool   // allows internal links without TLS that leave this machine
	BusSeedFile string // empty: the bus asks for none
	Token       string // this scaler's, presented to queue nodes
	QueueToken  string // presented by queue nodes

	Orchestrator orchestrator.Orchestrator
	// Elect runs for office by the orchestrator's own means until ctx ends, and calls lead for each term; nil: by a lock in the queue.
	Elect func(ctx context.Context, lead func(ctx context.Context, term election.Term) error) error

	IdleDrain, ShrinkDrain, VanishedBlocks time.Duration

	Log *slog.Logger
}

// App is one scaler.
type App struct {
	Options
	fleet      *fleet.Fleet
	loads      *demand.Loads
	demand     *demand.Queue
	catalogue  *catalogue.Catalogue
	queue      *queueclient.Client
	bus        *nc.Bus
	waker      *waking.Waker
	leader     *lead.Leader
	api, admin *serve.Server
	tls        *tlsconf.Files // nil: internal links are not encrypted
	hint       chan struct{}
	explains   chan question
	stopping   atomic.Bool
}

// New builds a scaler and opens its listeners; nothing runs yet.
func New(ctx context.Context, options Options) (*App, error) {
	a := &App{Options: options, hint: make(chan struct{}, 1), explains: make(chan question, maxQuestions)}
	links, err := a.links()
	if err != nil {
		return nil, err
	}
	a.fleet = fleet.New(time.Now, options.Log)
	a.loads, a.demand = demand.NewLoads(), demand.NewQueue()

	// The admin listener goes first: whoever asks whether this scaler is ready gets an answer from the start.
	a.admin = serve.New(serve.Options{Name: "admin", Log: options.Log, Handler: serve.Admin{
		Ready: a.ready, Metrics: obs.Handler(a.registry(), options.Log),
	}.Handler()})
	if err := a.admin.Listen(ctx, options.AdminAddress); err != nil {
		return nil, err
	}
	a.api = serve.New(serve.Options{Name: "api", Log: options.Log, TLS: links.api, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		api.Handler(a.catalogue, options.QueueToken).ServeHTTP(w, r)
	})})
	if err := a.api.Listen(ctx, options.APIAddress); err != nil {
		a.admin.Close()
		return nil, err
	}
	advertise := options.APIAdvertise
	if advertise == "" {
		advertise = a.api.Addr().String()
	}
	a.catalogue = catalogue.New(options.Name, advertise)

	a.queue = queueclient.New(queueclient.Options{Endpoints: options.QueueAPI, Token: options.Token, Name: options.Name, TLS: links.queue, Log: options.Log})
	a.bus, err = nc.Connect(ctx, nc.Options{URLs: options.BusURLs, Name: options.Name, Role: "scaler", SeedFile: options.BusSeedFile, TLS: links.queue, Log: options.Log})
	if err != nil {
		a.admin.Close()
		a.api.Close()
		return nil, err
	}
	a.waker = waking.New(waking.Options{
		Orchestrator: a.Orchestrator, Fleet: a.fleet, Log: options.Log, Sighted: a.sighted,
		Leading: func() bool { return a.leader.Epoch() != 0 },
	})
	a.leader = lead.New(lead.Options{
		Name: options.Name, Orchestrator: a.Orchestrator, Fleet: a.fleet, Loads: a.loads, Demand: a.demand, Catalogue: a.catalogue,
		Bus: a.bus, Queue: queue{a.queue}, Waker: a.waker, Log: options.Log,
		IdleDrain: options.IdleDrain, ShrinkDrain: options.ShrinkDrain, VanishedBlocks: options.VanishedBlocks,
	})
	if a.Elect == nil {
		a.Elect = election.New(election.Options{
			Queue: queue{a.queue}, Name: options.Name, Incarnation: rand.Text(), Address: advertise, Log: options.Log, Hint: a.hint,
		}).Run
	}
	return a, nil
}

// Run runs the scaler until ctx ends, and stops it in order: the lead is given back first, so that another can take it while this
// one still wakes; then the API, then hearing, then the bus.
func (a *App) Run(ctx context.Context) error {
	root, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	defer a.bus.Close()
	defer a.queue.Close()

	var plumbing sync.WaitGroup
	keep := func(what string, run func(context.Context) error) {
		plumbing.Go(func() {
			if err := run(root); err != nil && root.Err() == nil {
				stop(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	keep("the admin listener", func(ctx context.Context) error { return a.admin.Run(ctx, drainTime) })
	if a.tls != nil {
		keep("the watch of the certificates", a.tls.Run)
	}
	keep("the API", func(ctx context.Context) error { return a.api.Run(ctx, drainTime) })
	keep("the watch of the orchestrator", func(ctx context.Context) error { return a.Orchestrator.Watch(ctx, a.fleet) })
	keep("waking", a.waker.Run)
	for range explainers {
		keep("explaining", a.explain)
	}
	unsubscribe, err := a.subscribe()
	if err != nil {
		stop(err)
	}

	leading, resign := context.WithCancel(root)
	defer context.AfterFunc(ctx, func() {
		a.stopping.Store(true)
		resign()
	})()
	if err := a.elect(leading); err != nil && leading.Err() == nil {
		stop(fmt.Errorf("the election: %w", err))
	}
	resign()
	unsubscribe()
	stop(nil)
	plumbing.Wait()
	if cause := context.Cause(root); ctx.Err() == nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// elect runs for office once there is something to lead.
func (a *App) elect(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	a.fleet.Notify(changed)
	defer a.fleet.Forget(changed)
	for !a.fleet.View().Synced {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
	return a.Elect(ctx, func(ctx context.Context, term election.Term) error {
		return a.leader.Lead(ctx, term.Token, term.Valid)
	})
}

// ready says what is missing; nil: the orchestrator is known and the bus is there.
func (a *App) ready() error {
	switch {
	case a.stopping.Load():
		return errors.New("stopping")
	case a.bus == nil || !a.bus.Connected():
		return errors.New("no connection to the bus")
	case !a.fleet.View().Synced:
		return errors.New("the orchestrator has not told its state yet")
	}
	return nil
}

// Addresses where the API and the admin listener really are, for tests.
func (a *App) Addresses() (api, admin string) { return a.api.Addr().String(), a.admin.Addr().String() }
