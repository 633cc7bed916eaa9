package integration

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// The fault tests of docs/reliability.md. Small by default; SLIMFAAS_FULL=1 (make chaos) makes them as large as the table says,
// on plain binaries, and judges the figures of time too. CHAOS_PERCENT takes a part of the full size.

// nemesis decides who is harmed, when and for how long, from a seed that is printed: SEED=n decides the same again. What the
// processes do meanwhile is theirs.
type nemesis struct {
	*rand.Rand
	full bool
}

func newNemesis(t *testing.T) nemesis {
	t.Helper()
	seed := rand.Uint64()
	if given, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = given
	}
	full := os.Getenv("SLIMFAAS_FULL") == "1"
	t.Logf("SEED=%d full=%v", seed, full)
	return nemesis{rand.New(rand.NewPCG(seed, 1)), full}
}

// runs is how often to do harm.
func (n nemesis) runs(small, full int) int {
	if !n.full {
		return small
	}
	if percent, err := strconv.Atoi(os.Getenv("CHAOS_PERCENT")); err == nil {
		return max(1, full*percent/100)
	}
	return full
}

// between two durations.
func (n nemesis) between(a, b time.Duration) time.Duration {
	return a + time.Duration(n.Int64N(int64(b-a)+1))
}

// atMost judges a figure of time in full runs, where nothing else runs and no race detector slows everything down; small runs
// print it.
func (n nemesis) atMost(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	t.Logf("figure %s %v (want ≤ %v)", what, got.Round(time.Millisecond), want)
	if n.full && got > want {
		t.Errorf("%s took %v, want ≤ %v", what, got.Round(time.Millisecond), want)
	}
}

// percentile of durations; 0 of none.
func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// registers gives each load a function of its own: no workload has its name, so nobody delivers its calls, and a call is a register
// that is absent, queued or cancelled.
var registers atomic.Int64

func newRegister() string { return fmt.Sprintf("register-%d", registers.Add(1)) }

// hotKeys are read and written by many at once; older ones are left alone, so that no key gets more than maxOps operations.
const (
	hotKeys = 64
	maxOps  = 150
)

// load is writers and readers that go through the queue's client as edges do, and witnesses that ask single nodes.
type load struct {
	function string
	t        *testing.T
	c        *cluster.Cluster
	rec      *history.Recorder
	latest   atomic.Pointer[key] // accepted for certain, a moment ago
	cancel   context.CancelFunc
	work     sync.WaitGroup
	final    *queueclient.Client

	mu   sync.Mutex // guards the fields below
	hot  []*key
	all  []*key
	acks []time.Duration // on the recorder's clock
	next int             // client numbers given
}

// key is one call and what its accepts were told.
type key struct {
	id         string
	operations atomic.Int32
	ok, open   atomic.Bool
}

// startLoad with so many writers and readers, who do perSecond operations together.
func startLoad(t *testing.T, c *cluster.Cluster, writers, readers, perSecond int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{function: newRegister(), t: t, c: c, rec: history.NewRecorder(), cancel: cancel, final: c.Client(queueclient.Options{Name: "final"})}
	every := time.Second * time.Duration(writers+readers) / time.Duration(perSecond)
	var client *queueclient.Client
	for i := range writers + readers {
		if i%8 == 0 {
			client = c.Client(queueclient.Options{Name: "load"})
		}
		mine, number := client, l.number()
		l.work.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for ctx.Err() == nil {
				if i < writers {
					l.write(mine, number)
				} else if k := l.pick(); k != nil {
					l.read(ctx, number, k, 5*time.Second, func(ctx context.Context) (*wire.Call, error) {
						r, err := mine.GetCall(ctx, &wire.GetCallRequest{Id: []byte(k.id)})
						return r.GetCall(), err
					})
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); l.work.Wait() })
	return l
}

// witness asks one node, and no other, about the key that was accepted last: a node that answers from what it knew before a
// fault is caught.
func (l *load) witness(node string) (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	var work sync.WaitGroup
	n := l.c.Node(node)
	for range 2 {
		number := l.number()
		work.Go(func() {
			for ctx.Err() == nil {
				if k := l.latest.Load(); k != nil {
					l.read(ctx, number, k, 200*time.Millisecond, func(ctx context.Context) (*wire.Call, error) { return n.GetCall(ctx, []byte(k.id)) })
				}
				pace(5 * time.Millisecond)
			}
		})
	}
	return func() { cancel(); work.Wait() }
}

func (l *load) number() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next
}

// pick a key that others use too; nil while there is none.
func (l *load) pick() *key {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.hot) == 0 {
		return nil
	}
	k := l.hot[rand.IntN(len(l.hot))]
	if k.operations.Add(1) > maxOps {
		return nil
	}
	return k
}

// private is a key that nobody else reads or writes; finish looks for it.
func (l *load) private() *key {
	k := &key{id: newID()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, k)
	return k
}

func (l *load) fresh() *key {
	k := l.private()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hot = append(l.hot, k)
	if len(l.hot) > hotKeys {
		l.hot = l.hot[1:]
	}
	return k
}

// newID is a UUIDv7, as edges mint them.
func newID() string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], uint64(time.Now().UnixMilli())<<16|0x7000|rand.Uint64N(1<<12))
	binary.BigEndian.PutUint64(id[8:], 1<<63|rand.Uint64N(1<<62))
	return string(id[:])
}

func hexID(id string) string { return hex.EncodeToString([]byte(id)) }

func unhex(t *testing.T, key string) []byte {
	t.Helper()
	id, err := hex.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// payload of every call: 1 KiB.
var payload = make([]byte, 1<<10)

func accept(function, id string) *wire.Op {
	return &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{Id: []byte(id), Function: function, Payload: payload, Size: uint64(len(payload))}}}
}

// write accepts a new call, or one that others know, or cancels one. It is not given up when the load ends: an accept that was
// handed over and not waited for may be carried out after finish has counted.
func (l *load) write(client *queueclient.Client, number int) {
	kind, k := history.Accept, (*key)(nil)
	switch n := rand.IntN(10); {
	case n < 3:
		k = l.pick()
	case n < 5:
		kind, k = history.Cancel, l.pick()
	}
	if k == nil {
		kind, k = history.Accept, l.fresh()
	}
	op := accept(l.function, k.id)
	if kind == history.Cancel {
		op = &wire.Op{Op: &wire.Op_Cancel{Cancel: &wire.Cancel{Id: []byte(k.id)}}}
	}
	patience, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
	defer cancel()
	o := history.Op{Client: number, Key: k.id, Kind: kind, Call: l.rec.Now()}
	result, err := client.Do(patience, op)
	o.Return = l.rec.Now()
	switch {
	case err != nil && !errors.Is(err, queueclient.ErrUnknown):
		return // nothing was handed over; if that is untrue, the ledger shows it
	case err != nil:
		o.Seen = history.Perhaps
		if kind == history.Accept {
			k.open.Store(true)
		}
	case result.GetCode() == wire.Code_CODE_OK:
		o.Seen = history.Done
		l.mu.Lock()
		l.acks = append(l.acks, o.Return)
		l.mu.Unlock()
		if kind == history.Accept {
			k.ok.Store(true)
			l.latest.Store(k)
		}
	case kind == history.Cancel && result.GetCode() == wire.Code_CODE_NOT_FOUND:
		o.Seen = history.Absent
	case kind == history.Cancel && result.GetCode() == wire.Code_CODE_CONFLICT:
		o.Seen = history.Cancelled
	default:
		l.t.Errorf("%v was answered %v", o, result)
		return
	}
	l.rec.Add(o)
}

// read one key. No answer says nothing.
func (l *load) read(ctx context.Context, number int, k *key, patience time.Duration, get func(context.Context) (*wire.Call, error)) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	o := history.Op{Client: number, Key: k.id, Kind: history.Read, Call: l.rec.Now()}
	call, err := get(ctx)
	o.Return = l.rec.Now()
	if err != nil || k.operations.Add(1) > 2*maxOps {
		return
	}
	o.Seen = stateOf(l.t, call)
	l.rec.Add(o)
}

func stateOf(t *testing.T, call *wire.Call) history.Seen {
	switch call.GetState() {
	case wire.CallState_CALL_STATE_UNSPECIFIED:
		return history.Absent
	case wire.CallState_CALL_STATE_QUEUED:
		return history.Queued
	case wire.CallState_CALL_STATE_CANCELLED:
		return history.Cancelled
	}
	t.Errorf("a call that nobody delivers is %v", call)
	return history.Absent
}

// gap is the longest time without an acknowledged write between two moments.
func (l *load) gap(from, to time.Duration) time.Duration {
	l.mu.Lock()
	acks := slices.Sorted(slices.Values(l.acks))
	l.mu.Unlock()
	last, longest := from, time.Duration(0)
	for _, at := range acks {
		if at > from && at < to {
			longest, last = max(longest, at-last), at
		}
	}
	return max(longest, to-last)
}

// acked waits for a write that was acknowledged after this moment.
func (l *load) acked(after time.Duration, limit time.Duration) {
	l.t.Helper()
	l.c.Eventually(limit, "writes are acknowledged again", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.acks) == 0 || l.acks[len(l.acks)-1] <= after {
			return errNotYet
		}
		return nil
	})
}

// finish ends the load and judges: nothing lost, untrue or doubled; linearizable; all nodes agree and conserve.
func (l *load) finish() {
	l.t.Helper()
	l.cancel()
	l.work.Wait()
	nodes := l.c.Agreed(30 * time.Second)
	var ledger history.Ledger
	seen := map[string]int{}
	var mu sync.Mutex // guards seen
	var readers sync.WaitGroup
	keys := make(chan *key)
	for range 16 {
		readers.Go(func() {
			for k := range keys {
				r, err := l.final.GetCall(l.t.Context(), &wire.GetCallRequest{Id: []byte(k.id)})
				if err != nil {
					l.t.Errorf("reading %x at the end: %v", k.id, err)
				} else if r.GetCall() != nil {
					mu.Lock()
					seen[hexID(k.id)]++
					mu.Unlock()
				}
			}
		})
	}
	for _, k := range l.all {
		a := history.Attempt{Key: hexID(k.id), Outcome: history.None}
		if k.ok.Load() {
			a.Outcome = history.OK
		} else if k.open.Load() {
			a.Outcome = history.Unknown
		}
		ledger.Add(a)
		keys <- k
	}
	close(keys)
	readers.Wait()
	report := history.Check(ledger.Attempts(), seen)
	l.t.Log(report)
	if err := report.Err(); err != nil {
		l.t.Error(err)
	}
	if got := nodes[0].Functions[l.function].Accepted; int(got) != len(seen) {
		l.t.Errorf("%.0f calls were accepted and %d are there: each must have exactly one record", got, len(seen))
	}
	operations, registers := l.rec.Size()
	began := time.Now()
	if err := l.rec.Linearizable(); err != nil {
		l.t.Error(err)
	}
	l.t.Logf("history: %d operations on %d calls over %v, checked in %v; nodes agree at index %.0f", operations, registers,
		l.rec.Now().Round(time.Second), time.Since(began).Round(time.Millisecond), nodes[0].Applied)
}
