package lead

import (
	"context"
	"errors"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/decide"
	"github.com/slimfaas/slimfaas/scaler/internal/drain"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

const (
	firstRetry = 100 * time.Millisecond
	maxRetry   = 5 * time.Second
)

// result is what something that ran beside the loop reports back.
type result struct {
	request orchestrator.Request
	victims []drain.Victim
	scaled  orchestrator.Scaled
	err     error
	saved   map[string]time.Time // activity that was persisted; nil: this is about a request
}

// grow asks for more replicas where the decision is more than there is, and says when to try again; zero: nothing to do.
func (o *office) grow(ctx context.Context, now time.Time, f *fleet.Function, w *work) time.Time {
	current := w.wanted(f)
	target := w.decision.Replicas
	if w.busy {
		return time.Time{}
	}
	if w.unsure {
		if now.Before(w.retry) {
			return w.retry
		}
		// The same question again settles it: the precondition tells whether the first was carried out.
		o.request(ctx, f, w, orchestrator.Request{
			Function: f.Name, Replicas: target, Victims: names(w.drain), Epoch: o.epoch, IfRevision: current.Revision,
		})
		return time.Time{}
	}
	if w.decision.Kind == decide.Untouched || target <= current.Wanted {
		return time.Time{}
	}
	if now.Before(w.retry) {
		return w.retry
	}
	if current.Wanted == 0 && target == decide.StartCount(f.Spec) {
		o.Waker.Raise(f.Name)
		return now.Add(time.Second)
	}
	o.request(ctx, f, w, orchestrator.Request{Function: f.Name, Replicas: target, Epoch: o.epoch, IfRevision: current.Revision})
	return time.Time{}
}

// shrink asks the orchestrator to stop the victims of a drain that is done.
func (o *office) shrink(ctx context.Context, f *fleet.Function, w *work) {
	o.request(ctx, f, w, orchestrator.Request{
		Function: f.Name, Replicas: w.decision.Replicas, Victims: names(w.drain), Epoch: o.epoch, IfRevision: w.wanted(f).Revision,
	})
}

func names(d *drain.Drain) []string {
	if d == nil {
		return nil
	}
	all := make([]string, 0, len(d.Victims))
	for _, victim := range d.Victims {
		all = append(all, victim.Name)
	}
	return all
}

// request sends one request beside the loop, if this scaler certainly still leads.
func (o *office) request(ctx context.Context, f *fleet.Function, w *work, request orchestrator.Request) {
	if !o.valid() {
		return
	}
	var victims []drain.Victim
	if w.drain != nil {
		victims = w.drain.Victims
	}
	w.busy = true
	o.Log.Info("scaling", "fn", f.Name, "from", w.wanted(f).Wanted, "to", request.Replicas, "victims", request.Victims, "reason", w.decision.Reason)
	o.wait.Go(func() {
		scaled, err := o.Orchestrator.Scale(ctx, request)
		o.deliver(ctx, result{request: request, victims: victims, scaled: scaled, err: err})
	})
}

// deliver hands a result to the loop, unless the term is over.
func (o *office) deliver(ctx context.Context, done result) {
	select {
	case o.results <- done:
	case <-ctx.Done():
	}
}

// finished takes the outcome of a request over.
func (o *office) finished(done result) {
	if done.saved != nil {
		for name, at := range done.saved {
			if at.After(o.saved[name]) {
				o.saved[name] = at
			}
		}
		return
	}
	w := o.work[done.request.Function]
	if w == nil || w.function == nil {
		return
	}
	w.busy = false
	now := time.Now()
	var conflict *orchestrator.Conflict
	switch {
	case done.err == nil:
		o.counts.scaled.Add(1)
		w.pause, w.retry = 0, time.Time{}
		w.tell(done.request.IfRevision, done.scaled)
		if len(done.victims) > 0 && done.request.Replicas < w.function.Wanted {
			o.counts.drained.Add(1)
			w.leaving, w.left = append(w.leaving, done.victims...), now
		}
		w.unsure, w.drain = false, nil
	case errors.As(done.err, &conflict):
		w.pause, w.retry = 0, now.Add(firstRetry)
		w.tell(done.request.IfRevision, conflict.Current)
		if w.unsure {
			w.resolve(now)
		}
	case errors.Is(done.err, orchestrator.ErrStaleEpoch):
		o.Log.Warn("another leader has spoken to the orchestrator", "epoch", o.epoch)
		o.resign = done.err
	default:
		o.counts.failed.Add(1)
		w.pause = min(max(2*w.pause, firstRetry), maxRetry)
		w.retry = now.Add(w.pause)
		if errors.Is(done.err, orchestrator.ErrUnreachable) && w.drain != nil {
			w.unsure = true
		}
		o.Log.Warn("the orchestrator did not scale", "fn", done.request.Function, "err", done.err, "again", w.pause)
	}
}
