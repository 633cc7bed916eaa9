package events

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// delivery is one event on its way to one replica.
type delivery struct {
	publisher *Publisher
	f         *replica.Function // nil: this edge does not know it, and run is not called
	function  string
	replica   string
	retry     retry
	open      chan struct{} // one place per open call
	request   *wire.StoredRequest
	result    *wire.EventResult
}

func newDelivery(p *Publisher, f *replica.Function, function, name string, retry retry, open chan struct{}, request *wire.StoredRequest) *delivery {
	return &delivery{
		publisher: p, f: f, function: function, replica: name, retry: retry, open: open, request: request,
		result: &wire.EventResult{Function: function, Replica: name},
	}
}

// retry is how one replica is called: once and once more after each of delays, with timeout for each.
type retry struct {
	timeout  time.Duration
	delays   []time.Duration
	statuses []uint32 // answers that are worth another try; 504 stands for a timeout too
}

func retryFrom(c function.RetryConfiguration) retry {
	r := retry{timeout: time.Duration(max(1, c.HttpTimeout)) * time.Second}
	for _, seconds := range c.TimeoutRetries {
		r.delays = append(r.delays, time.Duration(seconds)*time.Second)
	}
	for _, status := range c.HttpStatusRetries {
		r.statuses = append(r.statuses, uint32(status))
	}
	return r
}

// retryOf reads what another edge says.
func retryOf(t *wire.EventTarget) retry {
	r := retry{timeout: max(time.Second, milliseconds(t.GetTimeoutMs())), statuses: t.GetRetryStatuses()}
	for _, ms := range t.GetRetryDelaysMs() {
		r.delays = append(r.delays, milliseconds(ms))
	}
	return r
}

func milliseconds(ms uint64) time.Duration {
	return time.Duration(min(ms, uint64((24*time.Hour).Milliseconds()))) * time.Millisecond //nolint:gosec // bounded
}

// run tries as retry says (the original's HttpTimeout covered all tries together).
func (d *delivery) run(ctx context.Context) {
	began := time.Now()
	defer func() { d.result.DurationMs = uint64(time.Since(began).Milliseconds()) }()
	for i := 0; ; i++ {
		select {
		case d.open <- struct{}{}:
		case <-ctx.Done():
			d.result.Error = errClosed.Error()
			return
		}
		again := d.try(ctx)
		<-d.open
		if !again || i >= len(d.retry.delays) {
			return
		}
		pause := time.NewTimer(d.retry.delays[i])
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// try calls the replica once and says whether that may be repeated. As the original, a timeout counts as 504; a connection
// that failed may always be repeated.
func (d *delivery) try(ctx context.Context) (again bool) {
	lease, ok := d.f.Reserve(d.replica, load.Delivery)
	if !ok {
		d.result.Error = "the replica is not ready any more"
		return false
	}
	defer lease.End()
	ctx, cancel := context.WithTimeout(ctx, d.retry.timeout)
	defer cancel()
	d.result.Tries++
	answer, err := d.publisher.transport.Send(ctx, lease.Address, d.request, nil)
	if err == nil {
		lease.Answered()
		d.result.Status, d.result.Error = uint32(answer.Status), ""
		if answer.Status < 200 || answer.Status >= 400 {
			d.result.Error = "the function answered an error"
		}
		return slices.Contains(d.retry.statuses, uint32(answer.Status))
	}
	d.result.Status, d.result.Error = 0, message.Explain(err, d.retry.timeout)
	if message.Unreachable(err) {
		lease.Unreachable(errors.Is(err, syscall.ECONNREFUSED))
		return true
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return slices.Contains(d.retry.statuses, 504)
	}
	return ctx.Err() == nil
}
