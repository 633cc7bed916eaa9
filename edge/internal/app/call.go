package app

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/forward"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/tracing"
	"github.com/slimfaas/slimfaas/edge/internal/wake"
	"github.com/slimfaas/slimfaas/shared/problem"
)

// defaultPatience holds where a specification has no DefaultSync.HttpTimeout.
const defaultPatience = 120 * time.Second

// maxRetryAfter is as long as a caller is told to stay away: what earlier starts took is a guess.
const maxRetryAfter = time.Minute

// caller is the sync call: a replica, at once or after a wake, and the forwarding to it.
type caller struct {
	waker     *wake.Waker
	forwarder *forward.Forwarder
	// enqueue answers the request as an asynchronous call.
	enqueue httpapi.Handler
}

// call answers /function.
func (c *caller) call(w http.ResponseWriter, r *http.Request, in *httpapi.Request) {
	f, spec := in.Function, in.Function.Spec()
	patience := time.Duration(spec.Configuration.DefaultSync.HttpTimeout) * time.Second
	if patience <= 0 {
		patience = defaultPatience
	}
	if !spec.Wakes(in.Rest, r.UserAgent()) {
		c.quietly(w, r, in, patience)
		return
	}
	prefer := httpapi.PreferencesOf(r.Header["Prefer"])
	page := spec.WaitingPage && httpapi.WantsPage(r)
	wait := patience
	switch {
	case prefer.Limited:
		wait = min(patience, prefer.Wait)
	case prefer.Async:
		wait = 0
	case page:
		wait = min(patience, pageAfter)
	}
	lease, waited, err := c.waker.Acquire(r.Context(), f, wait)
	switch late := errors.Is(err, replica.ErrNotInTime); {
	case err == nil:
	case prefer.Async && (late || errors.Is(err, replica.ErrParkedFull)):
		r.Header.Del("Prefer") // it has been honoured; a function that reads it would answer 202, which asks for a callback here
		w.Header().Set("Preference-Applied", "respond-async")
		c.enqueue(w, r, in)
		return
	case late && wait < patience: // the wake goes on: the caller will come again
		c.waker.Wake(f)
		if page {
			waitingPage(w, f.Name())
			return
		}
		fallthrough
	default:
		c.refuse(w, f, wait, err)
		return
	}
	if waited != (replica.Waited{}) {
		w.Header().Set("Server-Timing", waited.ServerTiming())
		tracing.Waited(r.Context(), tracing.Phase{Name: "wake", Took: waited.Wake}, tracing.Phase{Name: "start", Took: waited.Start}, tracing.Phase{Name: "probe", Took: waited.Probe})
	}
	c.forward(w, r, in, lease, load.Sync, patience)
}

// quietly answers a request that neither wakes the function nor keeps it awake.
func (c *caller) quietly(w http.ResponseWriter, r *http.Request, in *httpapi.Request, patience time.Duration) {
	lease, ok := in.Function.Choose(load.Quiet, nil)
	if !ok && atLimit(in.Function) {
		problem.Write(w, limitReached(in.Function))
		return
	}
	if !ok {
		problem.Write(w, problem.Problem{
			Status: http.StatusServiceUnavailable, Type: "urn:slimfaas:asleep", Title: "The function sleeps",
			Detail: "No replica of " + in.Function.Name() + " is ready, and this request does not wake it (SlimFaas/NoWakePaths, SlimFaas/NoWakeUserAgents).",
		})
		return
	}
	c.forward(w, r, in, lease, load.Quiet, patience)
}

func (c *caller) forward(w http.ResponseWriter, r *http.Request, in *httpapi.Request, first *replica.Lease, kind load.Kind, patience time.Duration) {
	began := time.Now()
	next := func(tried func(*replica.Replica) bool) (*replica.Lease, bool) {
		if lease, ok := in.Function.Choose(kind, tried); ok || kind != load.Sync {
			return lease, ok
		}
		if slices.ContainsFunc(in.Function.Replicas(), (*replica.Replica).Usable) {
			return nil, false // those were tried
		}
		// What refused the call has gone meanwhile, or was only heard of: the call waits for a replica as any.
		lease, _, err := c.waker.Acquire(r.Context(), in.Function, patience-time.Since(began))
		return lease, err == nil
	}
	c.forwarder.Serve(w, r, forward.Call{
		Path: in.Rest, Query: in.Query, Mark: in.Mark, Prefix: in.Prefix(),
		Began: began, First: first,
		Next:          next,
		HeaderTimeout: patience,
		KeepForwarded: in.Caller.ViaProxy,
	})
}

// refuse answers for a function that has no replica for this caller, who waited so long for one.
func (c *caller) refuse(w http.ResponseWriter, f *replica.Function, waited time.Duration, err error) {
	p := problem.Problem{Status: http.StatusServiceUnavailable, Type: problem.TypeNoReplica, Title: "No replica is ready"}
	left, known := c.waker.Estimate(f)
	retry := func(otherwise time.Duration) time.Duration {
		if known {
			return min(max(left, time.Second), maxRetryAfter)
		}
		return otherwise
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		panic(http.ErrAbortHandler) // the caller has gone, or this edge's drain is over
	case errors.Is(err, replica.ErrGone):
		httpapi.Refuse(w, gate.NotFound())
		return
	case errors.Is(err, replica.ErrParkedFull):
		p.Type, p.Title, p.RetryAfter = problem.TypeFull, "Too many requests wait for this function", retry(time.Second)
		p.Detail = "As many requests as may wait for a replica of " + f.Name() + " do (EDGE_PARKED_PER_FUNCTION, EDGE_PARKED_TOTAL)."
	case errors.Is(err, replica.ErrBroken):
		p.Type, p.Title = "urn:slimfaas:broken-function", "The function is not started"
		p.Detail = "The annotations of " + f.Name() + " are invalid, so it is not started. GET /explain/" + f.Name() + " names each key and what was expected."
	case atLimit(f):
		p = limitReached(f)
	default:
		p.RetryAfter = retry(5 * time.Second)
		p.Detail = "No replica of " + f.Name() + " was ready within " + waited.String() +
			" (DefaultSync.HttpTimeout of SlimFaas/Configuration, or Prefer: wait). GET /explain/" + f.Name() + " says what is awaited."
	}
	problem.Write(w, p)
}

// atLimit: there are replicas, and the calls that the function lets them have.
func atLimit(f *replica.Function) bool { return f.Limited() && len(f.Ready()) > 0 }

func limitReached(f *replica.Function) problem.Problem {
	return problem.Problem{
		Status: http.StatusServiceUnavailable, Type: problem.TypeFull, Title: "The function has as many calls as it takes",
		Detail: "No run slot of " + f.Name() + " was free in time (SlimFaas/NumberParallelRequestSync, SlimFaas/NumberParallelRequestPerPodSync; " +
			"the leader of the queue shares them out among the edges).",
		RetryAfter: time.Second,
	}
}
