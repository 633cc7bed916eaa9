package fleet

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/deploy/local/internal/proc"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Back-off after crashes: 1 s doubling to 30 s, as upstream; forgotten when a process was ready and lived this long.
const (
	maxBackoff = 30 * time.Second
	settled    = 10 * time.Second
)

const loopback = "127.0.0.1"

// run is the life of one replica until it is told to stop: start, look after, wait, start again.
func (f *Fleet) run(w *workload, r *replica) {
	defer f.gone(w, r)
	crashes := 0
	for {
		began := time.Now()
		reason, ready, stopped := f.live(w, r)
		if stopped {
			return
		}
		if ready && time.Since(began) > settled {
			crashes = 0
		}
		crashes++
		wait := backoff(crashes)
		detail := fmt.Sprintf("%s; crash %d, again in %v", reason, crashes, wait)
		if f.o.NoRestart {
			detail = reason + "; stays dead (--no-restart)"
		}
		f.o.Log.Warn("a replica is down", "fn", w.f.Name, "replica", r.name, "reason", detail)
		f.change(w, r, func(told *wire.LocalReplica) {
			*told = wire.LocalReplica{Name: r.name, Instance: told.Instance, State: wire.LocalBackoff, Detail: detail, HealthPath: w.f.Health.Path}
		})
		timer := time.NewTimer(wait)
		if f.o.NoRestart {
			timer.Stop()
		}
		select {
		case <-r.stop:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func backoff(crashes int) time.Duration {
	return min(maxBackoff, time.Second<<min(crashes-1, 10))
}

// live runs one process to its end. It says why it ended, whether it had been ready, and whether it was told to stop.
func (f *Fleet) live(w *workload, r *replica) (reason string, ready, stopped bool) {
	select {
	case <-r.stop:
		return "", false, true
	default:
	}
	port, err := f.o.Ports.Take()
	if err != nil {
		return err.Error(), false, false
	}
	defer f.o.Ports.Give(port)
	p, err := f.o.Host.Start(f.spec(w.f, r, port))
	if err != nil {
		return err.Error(), false, false
	}
	instance := f.instance(p.PID)
	f.change(w, r, func(told *wire.LocalReplica) {
		*told = wire.LocalReplica{
			Name: r.name, Instance: instance, PID: p.PID, Host: loopback, Port: port,
			State: wire.LocalStarting, HealthPath: w.f.Health.Path,
		}
	})
	base := "http://" + net.JoinHostPort(loopback, strconv.Itoa(port))
	h := &health{conf: w.f.Health, since: p.Started}
	switch f.follow(w, r, h, base, p.Done()) {
	case followStopped:
		f.end(w.f, r, p, base)
		return "", h.was, true
	case followHopeless:
		p.Stop(w.f.Shutdown.Timeout, f.o.Hurry)
		return fmt.Sprintf("not ready for %v", h.conf.StartupTimeout), h.was, false
	}
	return p.Ended(), h.was, false
}

// end stops a process as its function asks: the hook, SIGTERM, SIGKILL.
func (f *Fleet) end(fn manifest.Function, r *replica, p *proc.Process, base string) {
	if fn.Shutdown.Path != "" {
		// Not below any caller's context: the replica ends for its own sake, bounded by the hook's time and Hurry.
		ctx, cancel := context.WithCancel(context.Background())
		var hook sync.WaitGroup
		asked := make(chan struct{})
		hook.Go(func() {
			defer close(asked)
			if err := ask(ctx, http.MethodPost, base+fn.Shutdown.Path, fn.Shutdown.Timeout); err != nil {
				f.o.Log.Warn("the shutdown hook did not answer well", "replica", r.name, "err", err)
			}
		})
		select {
		case <-asked:
		case <-p.Done():
		case <-f.o.Hurry:
		}
		cancel()
		hook.Wait()
	}
	p.Stop(fn.Shutdown.Timeout, f.o.Hurry)
}

type followed int

const (
	followEnded    followed = iota // the process is gone
	followStopped                  // told to stop
	followHopeless                 // not ready for too long
)

// follow asks for health until something ends it. ended may be nil for what somebody else runs.
func (f *Fleet) follow(w *workload, r *replica, h *health, base string, ended <-chan struct{}) followed {
	ctx, cancel := context.WithCancel(context.Background()) // ends with this function, which waits for its question
	var question sync.WaitGroup
	defer question.Wait()
	defer cancel()
	answers := make(chan error, 1)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.stop:
			return followStopped
		case <-ended:
			return followEnded
		case <-timer.C:
			question.Go(func() { answers <- ask(ctx, http.MethodGet, base+w.f.Health.Path, h.conf.Timeout) })
		case err := <-answers:
			now := time.Now()
			if h.answer(now, err) {
				f.tell(w, r, h, err)
			}
			if ended != nil && h.hopeless(now) {
				return followHopeless
			}
			timer.Reset(h.pause(now))
		}
	}
}

func (f *Fleet) tell(w *workload, r *replica, h *health, err error) {
	f.change(w, r, func(told *wire.LocalReplica) {
		told.WasReady = h.was
		if told.State, told.Detail = wire.LocalReady, ""; !h.ready {
			told.State, told.Detail = wire.LocalNotReady, err.Error()
		}
	})
}

// runDebug follows the one replica of a function that somebody else runs.
func (f *Fleet) runDebug(w *workload, r *replica) {
	defer f.gone(w, r)
	u, err := url.Parse(w.f.DebugURL)
	if err != nil { // checked by the manifest
		f.o.Log.Error("a debugUrl cannot be read", "fn", w.f.Name, "err", err)
		return
	}
	port, _ := strconv.Atoi(u.Port()) // checked by the manifest
	f.change(w, r, func(told *wire.LocalReplica) {
		*told = wire.LocalReplica{
			Name: r.name, Instance: "debug", Host: u.Hostname(), Port: port,
			State: wire.LocalStarting, HealthPath: w.f.Health.Path,
		}
	})
	f.follow(w, r, &health{conf: w.f.Health, since: time.Now()}, w.f.DebugURL, nil)
}

// spec is the process of a replica: templates filled in, environment put together.
func (f *Fleet) spec(fn manifest.Function, r *replica, port int) proc.Spec {
	argv := make([]string, len(fn.Command))
	for i, word := range fn.Command {
		argv[i] = manifest.Expand(word, port, r.index)
	}
	number := strconv.Itoa(port)
	env := environment(f.o.Environ,
		map[string]string{"ASPNETCORE_URLS": "http://" + net.JoinHostPort(loopback, number), "SLIMFAAS_URL": f.o.URL},
		expandAll(fn.Environment, port, r.index),
		map[string]string{"PORT": number, "SLIMFAAS_PORT": number, "SLIMFAAS_REPLICA_INDEX": strconv.Itoa(r.index), "SLIMFAAS_FUNCTION": fn.Name},
	)
	return proc.Spec{Name: r.name, Argv: argv, Dir: manifest.Expand(fn.Dir, port, r.index), Env: env}
}

func expandAll(in map[string]string, port, replica int) map[string]string {
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[k] = manifest.Expand(v, port, replica)
	}
	return out
}

// environment lays maps over an environment; each name is there once, for C libraries take the first they find.
func environment(base []string, over ...map[string]string) []string {
	all := map[string]string{}
	for _, line := range base {
		if name, value, ok := strings.Cut(line, "="); ok {
			all[name] = value
		}
	}
	for _, m := range over {
		maps.Copy(all, m)
	}
	out := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, name+"="+all[name])
	}
	return out
}
