// Package stack is the whole local stack: it takes the state directory, ends what an earlier run left, starts every process
// and ends them again in order.
package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/api"
	"github.com/slimfaas/slimfaas/deploy/local/internal/fleet"
	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/deploy/local/internal/ports"
	"github.com/slimfaas/slimfaas/deploy/local/internal/proc"
	"github.com/slimfaas/slimfaas/shared/keys"
	"github.com/slimfaas/slimfaas/shared/secret"
)

// tlsVariable, true or false, overrides the manifest's cluster.tls.
const tlsVariable = "SLIMFAAS_LOCAL_TLS"

// Options of a run. Ready is called once a call would succeed; Hurry is closed when everything shall end at once.
type Options struct {
	Manifest  *manifest.Manifest
	State     string // absolute
	Bin       string // the folder of edge, queue and scaler
	Environ   []string
	NoRestart bool // the dead stay dead, functions too
	Clean     bool // forget everything before starting
	Hurry     <-chan struct{}
	Ready     func(url string)
	Log       *slog.Logger
}

// Run keeps the stack up until ctx ends, and returns when nothing of it is left.
func Run(ctx context.Context, o Options) (err error) {
	for _, program := range []string{"queue", "scaler", "edge"} {
		if _, err := os.Stat(filepath.Join(o.Bin, program)); err != nil {
			return fmt.Errorf("finding the programs: %s is not beside bin/local in %s: run make build", program, o.Bin)
		}
	}
	s, err := hold(o.State)
	if err != nil {
		return err
	}
	defer s.release()
	if err := prepare(s, o); err != nil {
		return err
	}
	block, err := ports.TakeBlock(s.dir)
	if err != nil {
		return err
	}
	defer block.Release() //nolint:errcheck // of a lock that nothing was written to
	book, err := choosePorts(s, o.Manifest, block)
	if err != nil {
		return err
	}
	token, err := secret.Read(s.path("secrets"), keys.Local)
	if err != nil {
		return err
	}
	host, err := proc.NewHost(proc.Options{State: s.dir, PidDir: s.path("pids"), LogDir: s.path("logs"), Log: o.Log})
	if err != nil {
		return err
	}
	r := newRun(o, s, book, host)
	if r.plan.cluster.TLS {
		if err := r.plan.certify(); err != nil {
			return errors.Join(err, host.Close())
		}
	}
	listener, err := api.Listen(s.dir)
	if err == nil {
		server := api.New(api.Options{Fleet: r.fleet, Token: token, Name: o.Manifest.Name, URL: r.url, Log: o.Log})
		err = r.run(ctx, func(ctx context.Context) error { return server.Run(ctx, listener) })
	}
	if closeErr := host.Close(); err == nil {
		err = closeErr
	}
	o.Log.Info("stopped")
	if o.Manifest.State.Ephemeral && err == nil {
		err = s.forget(false)
	}
	return err
}

// prepare makes the state directory ready for a start.
func prepare(s state, o Options) error {
	left, err := proc.EndLeftovers(s.dir, s.path("pids"))
	if len(left) > 0 {
		o.Log.Warn("ended what an earlier run left", "processes", strings.Join(left, ", "))
	}
	if err != nil {
		return err
	}
	if o.Clean || o.Manifest.State.Ephemeral {
		if err := s.forget(o.Clean); err != nil {
			return err
		}
	}
	if err := s.matches(o.Manifest.Cluster.Nodes); err != nil {
		return err
	}
	if err := s.folders(o.Manifest.Cluster.Nodes); err != nil {
		return err
	}
	return keys.Make(s.path("secrets"))
}

// choosePorts keeps ours away from everything the manifest names.
func choosePorts(s state, m *manifest.Manifest, block *ports.Block) (ports.Book, error) {
	foreign := map[int]bool{}
	for _, p := range m.Processes {
		foreign[p.Port] = true
		if p.Port > 0 {
			if holder := ports.Holder(p.Port); holder != "" {
				return nil, &ports.Busy{Port: p.Port, For: "process " + p.Name, Holder: holder}
			}
		}
	}
	for _, f := range m.Functions {
		if _, port, err := net.SplitHostPort(strings.TrimPrefix(f.DebugURL, "http://")); err == nil {
			number, _ := strconv.Atoi(port) // checked by the manifest
			foreign[number] = true
		}
	}
	return block.Choose(s.path("ports.json"), wants(m.Cluster), func(port int) bool { return m.Ports.Contains(port) || foreign[port] })
}

// run is one stack that runs.
type run struct {
	o       Options
	url     string
	plan    plan
	host    *proc.Host
	fleet   *fleet.Fleet
	ranged  *ports.Range
	queues  []*keeper
	edges   []*keeper
	scalers []*keeper
	helpers []*keeper
}

func newRun(o Options, s state, book ports.Book, host *proc.Host) *run {
	m := o.Manifest
	caller := map[string]string{}
	for _, line := range o.Environ {
		if name, value, ok := strings.Cut(line, "="); ok {
			caller[name] = value
		}
	}
	cluster := m.Cluster
	if on, err := strconv.ParseBool(caller[tlsVariable]); err == nil {
		cluster.TLS = on
	}
	r := &run{
		o: o, host: host, url: fmt.Sprintf("http://127.0.0.1:%d", m.Cluster.EntrypointPort),
		plan:   plan{cluster: cluster, book: book, state: s, bin: o.Bin, caller: caller},
		ranged: ports.NewRange(m.Ports.From, m.Ports.To),
	}
	r.fleet = fleet.New(fleet.Options{
		Namespace: m.Name, Host: host, Ports: r.ranged, Environ: o.Environ, URL: r.url, NoRestart: o.NoRestart, Hurry: o.Hurry, Log: o.Log,
	}, m.Functions)
	return r
}

// run starts everything, waits for ctx, and ends everything: edges first, so that no call comes in any more; then those who
// would scale; then the functions; the queue last, for edges and scalers close their sessions there.
func (r *run) run(asked context.Context, serve func(context.Context) error) error {
	// The API outlives what was asked: it ends after the scalers, which are its clients.
	serving, endServing := context.WithCancel(context.WithoutCancel(asked))
	defer endServing()
	ctx, cancel := context.WithCancelCause(asked)
	defer cancel(nil)
	var work sync.WaitGroup
	work.Go(func() {
		if err := serve(serving); err != nil {
			cancel(err)
		}
	})
	if err := r.startAll(); err != nil {
		cancel(err)
	}
	work.Go(func() { r.awaitReady(ctx) })
	<-ctx.Done()
	r.o.Log.Info("stopping")
	endAll(r.edges)
	endAll(r.scalers)
	endServing()
	work.Go(func() { endAll(r.helpers) })
	r.fleet.Stop()
	work.Wait()
	endAll(r.queues)
	if asked.Err() == nil {
		return context.Cause(ctx)
	}
	return nil
}

func (r *run) startAll() error {
	c := r.plan.cluster
	begin := func(spec proc.Spec, restart manifest.Restart, grace time.Duration) *keeper {
		if r.o.NoRestart {
			restart = manifest.RestartNever
		}
		k := &keeper{
			spec: spec, restart: restart, grace: grace,
			host: r.host, tell: r.fleet.SetPart, hurry: r.o.Hurry, log: r.o.Log, stop: make(chan struct{}),
		}
		k.life.Go(k.run)
		return k
	}
	for i := range c.Nodes {
		r.queues = append(r.queues, begin(r.plan.queue(i), manifest.RestartAlways, queueGrace))
	}
	for i := range c.Scalers {
		r.scalers = append(r.scalers, begin(r.plan.scaler(i), manifest.RestartAlways, scalerGrace))
	}
	for i := range c.Edges {
		r.edges = append(r.edges, begin(r.plan.edge(i), manifest.RestartAlways, edgeGrace))
	}
	r.fleet.Start()
	for _, p := range r.o.Manifest.Processes {
		port := p.Port
		if p.AutoPort {
			var err error
			if port, err = r.ranged.Take(); err != nil {
				return fmt.Errorf("choosing a port for process %s: %w", p.Name, err)
			}
		}
		r.helpers = append(r.helpers, begin(r.plan.helper(p, port, r.url), p.Restart, helperGrace))
	}
	return nil
}
