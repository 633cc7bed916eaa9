package wake_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/wake"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	pending  = wire.ReplicaState_REPLICA_STATE_PENDING
	starting = wire.ReplicaState_REPLICA_STATE_STARTING
	ready    = wire.ReplicaState_REPLICA_STATE_READY
	draining = wire.ReplicaState_REPLICA_STATE_DRAINING
)

type bundle struct {
	set     *replica.Set
	fn      *replica.Function
	tracker *load.Tracker
	waker   *wake.Waker
	seq     uint64

	mu    sync.Mutex
	start time.Time
	wakes []time.Duration // when each wake was published
	err   error           // of Publish
}

func setup(t *testing.T) *bundle {
	t.Helper()
	return setupWith(t, nil)
}

func setupWith(t *testing.T, dial func(ctx context.Context, network, address string) (net.Conn, error)) *bundle {
	t.Helper()
	b := &bundle{tracker: load.NewTracker(), start: time.Now()}
	b.set = replica.NewSet(b.tracker)
	b.waker = wake.New(wake.Options{
		Name: "edge-0", Epoch: b.set.Epoch, MaxPerFunction: 5, MaxTotal: 8, Dial: dial,
		Publish: func(m *wire.Wake) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(m.Functions) != 1 || m.Edge != "edge-0" {
				t.Errorf("wake %v", m)
			}
			b.wakes = append(b.wakes, time.Since(b.start))
			return b.err
		},
	})
	b.set.Woken = b.waker.Look
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.waker.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	b.apply(1, 0)
	b.fn, _ = b.set.Get("fib")
	return b
}

func (b *bundle) apply(epoch uint64, wanted int32, replicas ...*wire.Replica) {
	b.seq++
	b.set.Apply(&wire.FunctionRecord{
		Name: "fib", Version: &wire.Version{Epoch: epoch, Seq: b.seq}, Wanted: wanted, Replicas: replicas,
	}, &function.Specification{NumberParallelRequestPerPod: 2})
}

// times returns and forgets when wakes were published, in milliseconds.
func (b *bundle) times() []int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ms []int64
	for _, d := range b.wakes {
		ms = append(ms, d.Milliseconds())
	}
	b.wakes = nil
	return ms
}

func (b *bundle) refuse(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func one(n int, state wire.ReplicaState) *wire.Replica {
	return &wire.Replica{Name: fmt.Sprint("fn-fib-", n), Instance: "a", Host: "10.0.0.1", Ports: []uint32{uint32(8000 + n)}, State: state}
}

type got struct {
	lease  *replica.Lease
	waited replica.Waited
	err    error
	after  time.Duration
}

// call acquires in the background.
func (b *bundle) call(ctx context.Context, patience time.Duration) <-chan got {
	c := make(chan got, 1)
	since := time.Now()
	go func() {
		lease, waited, err := b.waker.Acquire(ctx, b.fn, patience)
		c <- got{lease, waited, err, time.Since(since)}
	}()
	return c
}

func bubble(t *testing.T, name string, f func(t *testing.T, b *bundle)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := setup(t)
			synctest.Wait()
			f(t, b)
		})
	})
}

func TestWaking(t *testing.T) {
	t.Parallel()
	bubble(t, "a warm call waits for nothing", func(t *testing.T, b *bundle) {
		b.apply(1, 1, one(1, ready))
		g := <-b.call(t.Context(), time.Second)
		if g.err != nil || g.waited != (replica.Waited{}) || len(b.times()) != 0 {
			t.Errorf("%+v", g)
		}
	})
	bubble(t, "the wake is repeated, doubling, until the table shows the function wanted; one loop for all that wait", func(t *testing.T, b *bundle) {
		var calls []<-chan got
		for range 3 {
			calls = append(calls, b.call(t.Context(), time.Minute))
			synctest.Wait() // so that they park in this order
		}
		time.Sleep(3500 * time.Millisecond)
		want := []int64{0, 50, 150, 350, 750, 1550, 2550}
		if times := b.times(); fmt.Sprint(times) != fmt.Sprint(want) {
			t.Errorf("wakes at %v ms, want %v", times, want)
		}
		b.apply(1, 1, one(1, pending))
		time.Sleep(5 * time.Second)
		if times := b.times(); len(times) != 0 {
			t.Errorf("still waking a function that is wanted: %v", times)
		}
		b.apply(1, 1, one(1, starting)) // no probe declared: the orchestrator's word
		time.Sleep(2 * time.Second)
		b.apply(1, 1, one(1, ready))
		first := <-calls[0]
		if first.err != nil {
			t.Fatal(first.err)
		}
		if w := first.waited; w.Wake != 3500*time.Millisecond || w.Start < 4900*time.Millisecond || w.Probe != 2*time.Second {
			t.Errorf("waited %+v", w)
		}
		if s := first.waited.ServerTiming(); s != "wake;dur=3500.0, start;dur=5000.0, probe;dur=2000.0" {
			t.Error(s)
		}
		first.lease.Answered()
		first.lease.End()
		for _, c := range calls[1:] {
			(<-c).lease.End()
		}
		if n := b.tracker.Open(); n != 0 {
			t.Errorf("%d open", n)
		}
	})
	bubble(t, "what a dead scaler wished is not believed", func(t *testing.T, b *bundle) {
		b.apply(1, 1)
		b.set.Apply(&wire.FunctionRecord{Name: "other", Version: &wire.Version{Epoch: 2, Seq: 1}}, &function.Specification{})
		b.start = time.Now()
		c := b.call(t.Context(), 200*time.Millisecond)
		if g := <-c; !errors.Is(g.err, replica.ErrNotInTime) || g.after != 200*time.Millisecond {
			t.Errorf("%+v", g)
		}
		if times := b.times(); fmt.Sprint(times) != "[0 50 150]" {
			t.Errorf("wakes at %v", times)
		}
	})
	bubble(t, "while the bus is away the wake is tried again at once", func(t *testing.T, b *bundle) {
		b.refuse(errors.New("away"))
		ctx, cancel := context.WithCancel(t.Context())
		c := b.call(ctx, time.Minute)
		time.Sleep(1010 * time.Millisecond)
		if n := len(b.times()); n != 21 {
			t.Errorf("%d attempts in a second", n)
		}
		b.refuse(nil)
		time.Sleep(300 * time.Millisecond)
		if n := len(b.times()); n == 0 || n > 4 {
			t.Errorf("%d wakes after the bus is back", n)
		}
		cancel()
		if g := <-c; !errors.Is(g.err, context.Canceled) {
			t.Errorf("%+v", g)
		}
		b.times()
		time.Sleep(5 * time.Second)
		if times := b.times(); len(times) != 0 {
			t.Errorf("waking for nobody: %v", times)
		}
	})
	bubble(t, "only draining replicas: park and wake; a cancelled drain lets the call go on", func(t *testing.T, b *bundle) {
		b.apply(1, 1, one(1, ready))
		b.apply(1, 1, one(1, draining)) // also while the record still says one is wanted
		b.start = time.Now()
		c := b.call(t.Context(), time.Minute)
		time.Sleep(60 * time.Millisecond)
		if times := b.times(); fmt.Sprint(times) != "[0 50]" {
			t.Errorf("wakes at %v", times)
		}
		b.apply(1, 1, one(1, ready))
		if g := <-c; g.err != nil || g.after != 60*time.Millisecond {
			t.Errorf("%+v", g)
		}
	})
	bubble(t, "a sighting releases without a record", func(t *testing.T, b *bundle) {
		c := b.call(t.Context(), time.Minute)
		time.Sleep(20 * time.Millisecond)
		b.set.Sight(&wire.Sighting{Function: "fib", Replica: one(1, ready)})
		if g := <-c; g.err != nil || g.lease.Address != "10.0.0.1:8001" {
			t.Errorf("%+v", g)
		}
		time.Sleep(31 * time.Second)
		if g := <-b.call(t.Context(), time.Second); !errors.Is(g.err, replica.ErrNotInTime) {
			t.Errorf("a sighting is used after 30 s without a record: %+v", g)
		}
	})
	bubble(t, "first come, first served, at the pace of a just-woken replica", func(t *testing.T, b *bundle) {
		order := make(chan int, 5)
		release := make(chan struct{})
		for i := range 5 {
			go func() {
				lease, _, err := b.waker.Acquire(t.Context(), b.fn, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				order <- i
				<-release
				lease.Answered()
				lease.End()
			}()
			synctest.Wait()
		}
		if b.fn.Load().Parked() != 5 {
			t.Errorf("%d parked", b.fn.Load().Parked())
		}
		b.apply(1, 1, one(1, ready)) // two at a time
		for i := range 5 {
			synctest.Wait()
			if open := i + len(order); open > 5 || len(order) > 2 {
				t.Errorf("%d at one time", len(order))
			}
			if n := <-order; n != i && n != i^1 {
				t.Errorf("place %d went to %d", i, n)
			}
			release <- struct{}{}
		}
	})
	bubble(t, "bounds: per function, in all; a full lot refuses at once", func(t *testing.T, b *bundle) {
		ctx, cancel := context.WithCancel(t.Context())
		var calls []<-chan got
		for range 5 {
			calls = append(calls, b.call(ctx, time.Minute))
		}
		synctest.Wait()
		if g := <-b.call(ctx, time.Minute); !errors.Is(g.err, replica.ErrParkedFull) || g.after != 0 {
			t.Errorf("the sixth: %+v", g)
		}
		b.set.Apply(&wire.FunctionRecord{Name: "other", Version: &wire.Version{Epoch: 1, Seq: 1}}, &function.Specification{})
		other, _ := b.set.Get("other")
		for i := range 4 {
			c := make(chan error, 1)
			go func() {
				_, _, err := b.waker.Acquire(ctx, other, time.Minute)
				c <- err
			}()
			synctest.Wait()
			select {
			case err := <-c:
				if i < 3 || !errors.Is(err, replica.ErrParkedFull) {
					t.Errorf("%d: %v", i, err)
				}
			default:
				if i == 3 {
					t.Error("nine are parked where eight may")
				}
			}
		}
		cancel()
		for _, c := range calls {
			<-c
		}
		synctest.Wait()
		if n := b.tracker.Open(); n != 0 {
			t.Errorf("%d open", n)
		}
	})
	bubble(t, "a function that leaves the table sends its callers away", func(t *testing.T, b *bundle) {
		c := b.call(t.Context(), time.Minute)
		synctest.Wait()
		b.set.Apply(&wire.FunctionRecord{Name: "fib", Version: &wire.Version{Epoch: 1, Seq: 99}, Deleted: true}, nil)
		if g := <-c; !errors.Is(g.err, replica.ErrGone) || g.after != 0 {
			t.Errorf("%+v", g)
		}
	})
	bubble(t, "a wake without a call: coalesced, until wanted, thirty seconds at most; awake, it counts as use", func(t *testing.T, b *bundle) {
		for range 10 {
			b.waker.Wake(b.fn)
		}
		time.Sleep(100 * time.Millisecond)
		if times := b.times(); fmt.Sprint(times) != "[0 50]" {
			t.Errorf("wakes at %v", times)
		}
		time.Sleep(time.Minute)
		times := b.times()
		if n := len(times); n < 30 || times[n-1] > 30_100 {
			t.Errorf("%d wakes, the last at %v ms", n, times[n-1])
		}
		b.apply(1, 1, one(1, ready))
		for range 5 {
			b.waker.Wake(b.fn)
		}
		if n := len(b.times()); n != 1 {
			t.Errorf("%d wakes of a function that is awake", n)
		}
	})
}

// target is a record's replica at the address of a real listener.
func target(t *testing.T, address string, probe *wire.Probe) *wire.Replica {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	r := one(1, starting)
	r.Host, r.Ports, r.Probe = host, []uint32{uint32(n)}, probe
	return r
}

func TestEarlyProbes(t *testing.T) {
	t.Parallel()
	t.Run("http: the first 2xx or 3xx releases", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var asked, open, most atomic.Int32
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n := open.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer open.Add(-1)
			if r.URL.Path != "/health" {
				t.Errorf("asked %s", r.URL.Path)
			}
			switch asked.Add(1) {
			case 1:
				w.WriteHeader(http.StatusServiceUnavailable)
			case 2, 3:
				<-r.Context().Done() // hangs: two are open, no third is begun until one has timed out
			default:
				w.WriteHeader(http.StatusEarlyHints)
				http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
			}
		}))
		defer srv.Close()
		c := b.call(t.Context(), 10*time.Second)
		b.apply(1, 1, target(t, srv.Listener.Addr().String(), &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_HTTP, Path: "/health"}))
		g := <-c
		if g.err != nil {
			t.Fatal(g.err)
		}
		if most.Load() > 2 || asked.Load() < 4 {
			t.Errorf("%d probes, %d at one time", asked.Load(), most.Load())
		}
		g.lease.End()
	})
	t.Run("tcp: as soon as somebody listens", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close()
		c := b.call(t.Context(), 10*time.Second)
		b.apply(1, 1, target(t, address, &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP}))
		select {
		case g := <-c:
			t.Fatalf("released though nobody listens: %+v", g)
		case <-time.After(80 * time.Millisecond):
		}
		if l, err = net.Listen("tcp", address); err != nil {
			t.Skip("the port was taken by another: ", err)
		}
		defer l.Close()
		since := time.Now()
		g := <-c
		if g.err != nil {
			t.Fatal(g.err)
		}
		if late := time.Since(since); late > time.Second {
			t.Errorf("released %v after the listener was there", late)
		}
		g.lease.End()
	})
}

// A network that swallows the first packets to a new address costs a probe, not the second after which the kernel sends another; one on
// which connecting takes long is waited for.
func TestProbesOfAnAddressThatSaysNothing(t *testing.T) {
	t.Parallel()
	for name, network := range map[string]struct {
		silent, slow, atMost time.Duration // since the replica had its address; of connecting
	}{
		"at first":                  {silent: 200 * time.Millisecond, atMost: 275 * time.Millisecond},
		"for long":                  {silent: 5 * time.Second, atMost: 5075 * time.Millisecond},
		"connecting takes its time": {slow: 300 * time.Millisecond, atMost: 300 * time.Millisecond},
	} {
		for _, kind := range []wire.ProbeKind{wire.ProbeKind_PROBE_KIND_TCP, wire.ProbeKind_PROBE_KIND_HTTP} {
			t.Run(name+"/"+kind.String(), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var open atomic.Int32
					began := time.Now()
					b := setupWith(t, func(ctx context.Context, _, _ string) (net.Conn, error) {
						if open.Add(1) > 2 {
							t.Error("more than two connect at one time")
						}
						defer open.Add(-1)
						var connected <-chan time.Time
						if time.Since(began) >= network.silent {
							connected = time.After(network.slow)
						}
						select {
						case <-ctx.Done():
							return nil, ctx.Err()
						case <-connected:
						}
						ours, theirs := net.Pipe()
						go func() {
							defer theirs.Close()
							if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
								_, _ = io.WriteString(theirs, "HTTP/1.1 204 No Content\r\n\r\n")
							}
						}()
						return ours, nil
					})
					c := b.call(t.Context(), 20*time.Second)
					r := one(1, starting)
					r.Probe = &wire.Probe{Kind: kind, Path: "/health"}
					b.apply(1, 1, r)
					g := <-c
					if g.err != nil || g.after > network.atMost {
						t.Fatalf("%v after %v, want after %v at most", g.err, g.after, network.atMost)
					}
					g.lease.End()
				})
			})
		}
	}
}

func TestManyCallersAndARestlessTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stop := make(chan struct{})
	var table sync.WaitGroup
	table.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				b.apply(1, 1, one(1, ready))
				return
			default:
			}
			b.apply(1, 1, one(1, []wire.ReplicaState{ready, draining, starting, pending}[i%4]))
		}
	})
	var callers sync.WaitGroup
	for range 5 {
		callers.Go(func() {
			for range 300 {
				lease, _, err := b.waker.Acquire(t.Context(), b.fn, 10*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				lease.Answered()
				lease.End()
			}
		})
	}
	callers.Wait()
	close(stop)
	table.Wait()
	if n := b.tracker.Open(); n != 0 {
		t.Errorf("%d open", n)
	}
}
