package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slimfaas/slimfaas/scaler/internal/election"
)

// The Lease of the scalers, with the semantics of client-go's leader election (reliability.md, S1): another leads at most
// leaseDuration + retryEvery·1.2 after the leader's last renewal.
const (
	leaseName     = "slimfaas-scaler"
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryEvery    = 2 * time.Second
	// fenceMargin: no write begins or goes on later than the last renewal + renewDeadline − fenceMargin.
	fenceMargin = 2 * time.Second
	// leaseTimeout bounds one request about the Lease.
	leaseTimeout = 4 * time.Second
)

// leases is what an election needs of the API server.
type leases interface {
	get(ctx context.Context) (*coordinationv1.Lease, error)
	create(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error)
	update(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error)
}

// Elector makes one of the scalers of a namespace the leader, by a Lease. Run may be called once.
type Elector struct {
	leases   leases
	identity string
	log      *slog.Logger

	observed string    // resourceVersion of the Lease that was seen last
	since    time.Time // when it was first seen, by this process's own clock: no other's is trusted
	held     *coordinationv1.Lease

	mu      sync.Mutex
	renewed time.Time // when the request that renewed it last was sent
}

// Elector makes an elector; identity is that of this process, and differs from every other's.
func (d *Driver) Elector(identity string) *Elector {
	return &Elector{leases: &leaseClient{d}, identity: identity, log: d.log}
}

// Run runs for office until ctx ends, and calls lead for each term. The context of a term ends when the Lease may be lost, or with
// ctx; lead must have stopped every effect when it returns. Only then is the Lease given back.
func (e *Elector) Run(ctx context.Context, lead func(ctx context.Context, term election.Term) error) error {
	for ctx.Err() == nil {
		got, err := e.try(ctx)
		if err != nil && ctx.Err() == nil {
			e.log.Warn("no answer about the lease", "lease", leaseName, "err", err)
		}
		if got {
			e.term(ctx, lead)
		}
		timer := time.NewTimer(retryEvery + rand.N(retryEvery/5)) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return ctx.Err()
}

// try takes or renews the Lease once; false without an error: another holds it.
func (e *Elector) try(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	sent := time.Now()
	lease := e.held
	if lease == nil {
		var err error
		if lease, err = e.leases.get(ctx); apierrors.IsNotFound(err) {
			lease, err = e.leases.create(ctx, claim(nil, e.identity, sent))
			return e.took(lease, sent, err)
		} else if err != nil {
			return false, fmt.Errorf("read the lease: %w", err)
		}
		if lease.ResourceVersion != e.observed {
			e.observed, e.since = lease.ResourceVersion, sent
		}
		if !free(lease, e.identity, e.since, sent) {
			return false, nil
		}
	}
	updated, err := e.leases.update(ctx, claim(lease, e.identity, sent))
	return e.took(updated, sent, err)
}

// free says whether the Lease may be taken: nobody's, ours, or not renewed for as long as its holder said.
func free(lease *coordinationv1.Lease, identity string, since, now time.Time) bool {
	holder := value(lease.Spec.HolderIdentity)
	duration := time.Duration(value(lease.Spec.LeaseDurationSeconds)) * time.Second
	return holder == "" || holder == identity || !now.Before(since.Add(duration))
}

// claim is the Lease with us as its holder; nil: a new one.
func claim(lease *coordinationv1.Lease, identity string, now time.Time) *coordinationv1.Lease {
	next := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseName, Labels: map[string]string{
		"app.kubernetes.io/part-of": "slimfaas", "app.kubernetes.io/component": "scaler",
	}}}
	transitions := int32(0)
	if lease != nil {
		next = lease.DeepCopy()
		transitions = value(lease.Spec.LeaseTransitions)
	}
	at := metav1.NewMicroTime(now)
	seconds := int32(leaseDuration / time.Second)
	if value(next.Spec.HolderIdentity) != identity {
		if lease != nil {
			transitions++
		}
		next.Spec.AcquireTime = &at
	}
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.LeaseTransitions, next.Spec.RenewTime = &identity, &seconds, &transitions, &at
	return next
}

func value[T any](of *T) (v T) {
	if of != nil {
		v = *of
	}
	return v
}

func (e *Elector) took(lease *coordinationv1.Lease, sent time.Time, err error) (bool, error) {
	if err != nil {
		e.held = nil // read it again: it may be another's, or ours without our knowing
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			return false, nil
		}
		return false, fmt.Errorf("write the lease: %w", err)
	}
	e.held, e.observed, e.since = lease, lease.ResourceVersion, sent
	e.mu.Lock()
	e.renewed = sent
	e.mu.Unlock()
	return true, nil
}

func (e *Elector) until() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.renewed.Add(renewDeadline - fenceMargin)
}

var (
	errLate = fmt.Errorf("the lease was not renewed for %s: it may be lost", renewDeadline-fenceMargin)
	errLost = errors.New("another has taken the lease")
)

// term leads until lead returns, renewing meanwhile, and gives the Lease back.
func (e *Elector) term(ctx context.Context, lead func(context.Context, election.Term) error) {
	token := uint64(value(e.held.Spec.LeaseTransitions)) + 1 //nolint:gosec // counts from 0
	held, end := context.WithCancelCause(ctx)
	defer end(nil)
	e.log.Info("leading", "token", token, "lease", leaseName)
	returned := make(chan error, 1)
	go func() {
		returned <- lead(held, election.NewTerm(0, token, func() bool { return held.Err() == nil && time.Now().Before(e.until()) }))
	}()
	err := e.renew(ctx, end, returned)
	reason := context.Cause(held)
	if reason == nil {
		reason = err
	}
	e.log.Info("no longer leading", "token", token, "reason", reason)
	e.release(ctx)
}

// renew keeps the Lease, also while a term comes to its end, until lead has returned.
func (e *Elector) renew(ctx context.Context, end context.CancelCauseFunc, returned <-chan error) error {
	ticker := time.NewTicker(retryEvery)
	defer ticker.Stop()
	late := time.NewTimer(time.Until(e.until()))
	defer late.Stop()
	var lost bool
	for {
		select {
		case err := <-returned:
			return err
		case <-late.C:
			if left := time.Until(e.until()); left > 0 {
				late.Reset(left)
				continue
			}
			end(errLate)
			lost = true
		case <-ticker.C:
			if lost {
				continue
			}
			// Beside the loop's own deadline: a request that hangs must not hide it.
			asked := make(chan bool, 1)
			go func() {
				ok, err := e.try(context.WithoutCancel(ctx))
				if err != nil {
					e.log.Warn("the lease could not be renewed", "err", err)
				}
				asked <- ok || err != nil
			}()
			select {
			case still := <-asked:
				if !still && !e.ours(ctx) {
					end(errLost)
					lost = true
				}
			case <-late.C:
				if time.Until(e.until()) <= 0 {
					end(errLate)
					lost = true
				}
				<-asked // bounded by leaseTimeout
			}
			late.Reset(max(time.Until(e.until()), 0))
		}
	}
}

// ours settles a conflict: the write before may have been ours, its answer lost.
func (e *Elector) ours(ctx context.Context) bool {
	ok, err := e.try(context.WithoutCancel(ctx))
	return ok || err != nil
}

// release gives the Lease back, so that another leads at once.
func (e *Elector) release(ctx context.Context) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTimeout)
	defer cancel()
	lease, err := e.leases.get(bounded)
	e.held = nil
	if err == nil && value(lease.Spec.HolderIdentity) == e.identity {
		nobody, second := "", int32(1)
		next := lease.DeepCopy()
		next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds = &nobody, &second
		_, err = e.leases.update(bounded, next)
	}
	if err != nil {
		e.log.Warn("the lease could not be given back, it will expire", "err", err)
	}
}

// leaseClient reads and writes the Lease in the scaler's own namespace.
type leaseClient struct{ *Driver }

func (c *leaseClient) get(ctx context.Context) (*coordinationv1.Lease, error) {
	var lease coordinationv1.Lease
	err := c.lease.get(ctx, c.lease.coordination, c.own, "leases", leaseName, &lease)
	return &lease, c.noted(err)
}

func (c *leaseClient) create(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	var made coordinationv1.Lease
	err := c.lease.coordination.Post().Namespace(c.own).Resource("leases").Body(lease).Do(ctx).Into(&made)
	return &made, c.noted(err)
}

func (c *leaseClient) update(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	var after coordinationv1.Lease
	err := c.lease.coordination.Put().Namespace(c.own).Resource("leases").Name(leaseName).Body(lease).Do(ctx).Into(&after)
	return &after, c.noted(err)
}

func (c *leaseClient) noted(err error) error {
	if forbidden(err) {
		c.hint("leases", "coordination.k8s.io", c.own, "get, create, update", "no scaler leads: nothing is put to sleep, and queued calls wake nobody")
	}
	return err
}
