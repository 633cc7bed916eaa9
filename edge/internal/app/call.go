package app

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/forward"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/wake"
	"github.com/slimfaas/slimfaas/shared/problem"
)

// defaultPatience holds where a specification has no DefaultSync.HttpTimeout.
const defaultPatience = 120 * time.Second

// caller is the sync call: a replica, at once or after a wake, and the forwarding to it.
type caller struct {
	waker     *wake.Waker
	forwarder *forward.Forwarder
}

// call answers /function.
func (c *caller) call(w http.ResponseWriter, r *http.Request, in *httpapi.Request) {
	f := in.Function
	patience := time.Duration(f.Spec().Configuration.DefaultSync.HttpTimeout) * time.Second
	if patience <= 0 {
		patience = defaultPatience
	}
	lease, waited, err := c.waker.Acquire(r.Context(), f, patience)
	if err != nil {
		refuse(w, f, patience, err)
		return
	}
	if waited != (replica.Waited{}) {
		w.Header().Set("Server-Timing", waited.ServerTiming())
	}
	c.forwarder.Serve(w, r, forward.Call{
		Path: in.Rest, Query: in.Query, Mark: in.Mark,
		First:         lease,
		Next:          func(tried func(*replica.Replica) bool) (*replica.Lease, bool) { return f.Choose(load.Sync, tried) },
		HeaderTimeout: patience,
		KeepForwarded: in.Caller.ViaProxy,
	})
}

// refuse answers for a function that has no replica for this caller.
func refuse(w http.ResponseWriter, f *replica.Function, patience time.Duration, err error) {
	p := problem.Problem{Status: http.StatusServiceUnavailable, Type: problem.TypeNoReplica, Title: "No replica is ready", RetryAfter: time.Second}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		panic(http.ErrAbortHandler) // the caller has gone, or this edge's drain is over
	case errors.Is(err, replica.ErrGone):
		httpapi.Refuse(w, gate.NotFound())
		return
	case errors.Is(err, replica.ErrParkedFull):
		p.Type, p.Title = problem.TypeFull, "Too many requests wait for this function"
		p.Detail = "As many requests as may wait for a replica of " + f.Name() + " do (EDGE_PARKED_PER_FUNCTION, EDGE_PARKED_TOTAL)."
	case errors.Is(err, replica.ErrBroken):
		p.Type, p.Title, p.RetryAfter = "urn:slimfaas:broken-function", "The function is not started", 0
		p.Detail = "The annotations of " + f.Name() + " are invalid, so it is not started. GET /explain/" + f.Name() + " names each key and what was expected."
	default:
		p.RetryAfter = 5 * time.Second
		p.Detail = "No replica of " + f.Name() + " was ready within " + patience.String() +
			" (DefaultSync.HttpTimeout of SlimFaas/Configuration). GET /explain/" + f.Name() + " says what is awaited."
	}
	problem.Write(w, p)
}
