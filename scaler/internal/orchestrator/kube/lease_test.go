package kube

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/slimfaas/slimfaas/scaler/internal/election"
)

// shelf holds one Lease, with the API server's rules.
type shelf struct {
	mu      sync.Mutex
	lease   *coordinationv1.Lease
	version int
}

var leaseResource = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// way is one candidate's way to the shelf, which may be broken.
type way struct {
	to    *shelf
	mu    sync.Mutex
	fault func(ctx context.Context) error // nil: none
}

func (w *way) fail(fault func(context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = fault
}

func (w *way) do(ctx context.Context, put *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	w.mu.Lock()
	fault := w.fault
	w.mu.Unlock()
	if fault != nil {
		if err := fault(ctx); err != nil {
			return nil, err
		}
	}
	return w.to.do(put)
}

func (w *way) get(ctx context.Context) (*coordinationv1.Lease, error) { return w.do(ctx, nil) }
func (w *way) create(ctx context.Context, l *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	return w.do(ctx, l)
}
func (w *way) update(ctx context.Context, l *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	return w.do(ctx, l)
}

func (s *shelf) do(put *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case put == nil && s.lease == nil:
		return nil, apierrors.NewNotFound(leaseResource, leaseName)
	case put == nil:
	case s.lease != nil && put.ResourceVersion == "":
		return nil, apierrors.NewAlreadyExists(leaseResource, leaseName)
	case s.lease != nil && put.ResourceVersion != s.lease.ResourceVersion:
		return nil, apierrors.NewConflict(leaseResource, leaseName, errors.New("it has changed"))
	default:
		s.version++
		s.lease = put.DeepCopy()
		s.lease.ResourceVersion = strconv.Itoa(s.version)
	}
	return s.lease.DeepCopy(), nil
}

// candidate runs for office on a shelf until the test's bubble is over, and says when it leads.
type candidate struct {
	*Elector
	terms chan election.Term // each term, at its beginning
	ended chan time.Time     // when the context of a term ended
	stay  time.Duration      // how long lead needs to end
	stop  context.CancelFunc
	done  chan struct{}
}

// run starts one; stay is how long its work needs to end.
func run(t *testing.T, name string, on *way, stay time.Duration) *candidate {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	c := &candidate{
		Elector: &Elector{leases: on, identity: name, log: slog.New(slog.DiscardHandler)},
		terms:   make(chan election.Term, 10), ended: make(chan time.Time, 10), stop: stop, done: make(chan struct{}), stay: stay,
	}
	go func() {
		defer close(c.done)
		_ = c.Run(ctx, func(ctx context.Context, term election.Term) error {
			c.terms <- term
			<-ctx.Done()
			c.ended <- time.Now()
			time.Sleep(c.stay)
			return ctx.Err()
		})
	}()
	t.Cleanup(func() { stop(); <-c.done })
	return c
}

func TestTheLeaseHasOneHolder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		on := &way{to: &shelf{}}
		a := run(t, "a", on, 0)
		first := <-a.terms
		b := run(t, "b", on, 0)
		time.Sleep(time.Minute)
		if len(b.terms) != 0 || len(a.ended) != 0 || !first.Valid() {
			t.Errorf("two lead, or none: %d %d %v", len(b.terms), len(a.ended), first.Valid())
		}
		if first.Token != 1 {
			t.Errorf("token %d", first.Token)
		}
	})
}

func TestALeaderThatStopsGivesTheLeaseBackAfterItsWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		on := &way{to: &shelf{}}
		a := run(t, "a", on, 5*time.Second)
		<-a.terms
		b := run(t, "b", on, 0)
		time.Sleep(10 * time.Second)
		began := time.Now()
		a.stop()
		second := <-b.terms
		if took := time.Since(began); took < a.stay || took > a.stay+3*time.Second {
			t.Errorf("the next leads after %v", took)
		}
		if second.Token <= 1 {
			t.Errorf("token %d does not grow", second.Token)
		}
	})
}

func TestWithoutTheAPIServerATermEndsBeforeAnotherMayBegin(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(context.Context) error{
		"refused": func(context.Context) error { return errors.New("connection refused") },
		"hanging": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				on := &way{to: &shelf{}}
				a := run(t, "a", on, 0)
				term := <-a.terms
				time.Sleep(30*time.Second + 500*time.Millisecond)
				began := time.Now()
				on.fail(fault)
				ended := <-a.ended
				if took := ended.Sub(began); took > renewDeadline-fenceMargin || took < renewDeadline-fenceMargin-2*retryEvery {
					t.Errorf("the term ended %v after the last word", took)
				}
				if term.Valid() {
					t.Error("a term that ended is valid")
				}
				on.fail(nil)
				if again := <-a.terms; again.Token < term.Token {
					t.Errorf("token %d after %d", again.Token, term.Token)
				}
			})
		})
	}
}

func TestADeadLeaderIsFollowedInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		on := &shelf{}
		cut := &way{to: on}
		a := run(t, "a", cut, 0)
		<-a.terms
		time.Sleep(10 * time.Second)
		b := run(t, "b", &way{to: on}, 0)
		time.Sleep(10 * time.Second)
		// What a killed leader looks like to b: it does not renew.
		cut.fail(func(context.Context) error { return errors.New("no route to host") })
		began := time.Now()
		second := <-b.terms
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("another leads after %v", took)
		}
		if second.Token != 2 {
			t.Errorf("token %d", second.Token)
		}
		if len(a.ended) != 1 {
			t.Error("both lead")
		}
	})
}
