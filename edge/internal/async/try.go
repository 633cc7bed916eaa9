package async

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/wire"
	"google.golang.org/protobuf/proto"
)

const (
	// tableLag is how long a try waits for a record that the leader may have seen earlier than this edge.
	tableLag = 250 * time.Millisecond
	// fallbackTimeout bounds a try whose grant names no deadline.
	fallbackTimeout = 120 * time.Second
	// maxRetryAfter bounds what a function may ask for with Retry-After.
	maxRetryAfter = time.Hour
)

func limit(g *wire.Grant) time.Duration {
	if g.GetDeadlineMs() == 0 {
		return fallbackTimeout
	}
	return time.Duration(min(g.GetDeadlineMs(), uint64(24*time.Hour/time.Millisecond))) * time.Millisecond
}

// try sends the call to its replica and says how that went. With a share the answer is part of it.
func (d *Deliverer) try(ctx context.Context, h *held, payload []byte, share *message.Share) *wire.TryResult {
	g := h.grant
	lease, ok := d.reserve(ctx, g.GetFunction(), g.GetReplica())
	if !ok {
		return released(h, "the replica takes no calls as this edge sees it")
	}
	defer lease.End()
	var request wire.StoredRequest
	if err := proto.Unmarshal(payload, &request); err != nil {
		d.opts.Log.Error("stored request cannot be read", "call", h.id.String(), "fn", g.GetFunction(), "err", err)
		return noAnswer(h, "the stored request cannot be read")
	}
	extra := http.Header{
		message.HeaderElementID: {h.id.String()},
		message.HeaderLastTry:   {strconv.FormatBool(g.GetMaxTries() > 0 && g.GetTryNumber() >= g.GetMaxTries())},
		message.HeaderTryNumber: {strconv.FormatUint(uint64(g.GetTryNumber()), 10)},
	}
	traced, span := d.opts.Tracer.Try(ctx, &request, g.GetFunction(), g.GetReplica(), h.id.String(), g.GetTryNumber())
	maps.Copy(extra, traced)
	result := d.send(ctx, h, lease, &request, extra, share)
	span.End(result.GetStatus(), result.GetError())
	return result
}

// send the request to the replica that is reserved for it.
func (d *Deliverer) send(ctx context.Context, h *held, lease *replica.Lease, request *wire.StoredRequest, extra http.Header, share *message.Share) *wire.TryResult {
	g := h.grant
	body := d.body(g)
	answer, err := d.transport.SendKeeping(ctx, lease.Address, request, body.stored(), extra, share)
	if err != nil {
		if reason, ok := d.bodyFailed(ctx, h, body); ok {
			return noAnswer(h, reason)
		}
		if message.Unreachable(err) {
			lease.Unreachable(errors.Is(err, syscall.ECONNREFUSED))
		}
		if errors.Is(context.Cause(ctx), errStopped) {
			return noAnswer(h, errStopped.Error())
		}
		return noAnswer(h, message.Explain(err, limit(g)))
	}
	lease.Answered()
	result := resultOf(h, wire.TryOutcome_TRY_OUTCOME_ANSWERED, "")
	result.Status = uint32(answer.Status)
	result.RetryAfterMs = uint64(retryAfter(answer.RetryAfter, time.Now()) / time.Millisecond)
	if answer.Stored != nil {
		if result.Answer, err = proto.Marshal(answer.Stored); err != nil { // a header that is no UTF-8: kept without them
			result.Answer, _ = proto.Marshal(&wire.StoredAnswer{Status: result.GetStatus(), Omitted: "its headers are no text"})
		}
	}
	return result
}

// reserve counts the try on its replica. A replica that this edge does not know as ready yet is waited for a moment; one it
// knows to be going is not.
func (d *Deliverer) reserve(ctx context.Context, function, name string) (*replica.Lease, bool) {
	changed, stop := d.listen(function)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, tableLag)
	defer cancel()
	for {
		if f, ok := d.opts.Replicas.Get(function); ok {
			if lease, ok := f.Reserve(name, load.Delivery); ok {
				return lease, true
			}
			if leaving(f, name) {
				return nil, false
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false
		}
	}
}

func leaving(f *replica.Function, name string) bool {
	for _, r := range f.Replicas() {
		if r.Name == name {
			return r.State == wire.ReplicaState_REPLICA_STATE_DRAINING || r.State == wire.ReplicaState_REPLICA_STATE_GONE
		}
	}
	return false
}

// Changed says that the record of a function was applied, so that tries granted ahead of it look again. It never blocks.
func (d *Deliverer) Changed(function string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.listeners[function] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (d *Deliverer) listen(function string) (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listeners[function] == nil {
		d.listeners[function] = map[chan struct{}]struct{}{}
	}
	d.listeners[function][c] = struct{}{}
	return c, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if delete(d.listeners[function], c); len(d.listeners[function]) == 0 {
			delete(d.listeners, function)
		}
	}
}

func resultOf(h *held, outcome wire.TryOutcome, reason string) *wire.TryResult {
	return &wire.TryResult{Id: h.id[:], Fence: h.fence, Outcome: outcome, Error: reason}
}

// released: nothing was sent; the try does not count.
func released(h *held, reason string) *wire.TryResult {
	return resultOf(h, wire.TryOutcome_TRY_OUTCOME_RELEASED, reason)
}

// noAnswer: the try counts, and ended without an answer.
func noAnswer(h *held, reason string) *wire.TryResult {
	return resultOf(h, wire.TryOutcome_TRY_OUTCOME_NO_ANSWER, reason)
}

// retryAfter reads the header: seconds or a date; anything else is nothing.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}
