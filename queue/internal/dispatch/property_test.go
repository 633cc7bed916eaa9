package dispatch

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Whatever happens, in whatever order: no limit is exceeded, every slot belongs to a try, every call that waits has exactly one
// place, and at the end everything ends.
func TestNothingIsLostInAnyOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		names := []string{"a", "b", "c"}
		for _, n := range names {
			w.function(n, 1+r.IntN(4), 1+r.IntN(2), n+"-0", n+"-1")
		}
		edges := []*session{w.edge("edge-0", 3), w.edge("edge-1", 5)}
		var granted []*run
		var unknown []batch
		for range 400 {
			e := edges[r.IntN(len(edges))]
			if w.office.sessions[e.ID] != e {
				i := slices.Index(edges, e)
				edges[i] = w.edge(e.Name, uint32(1+r.IntN(5)))
				continue
			}
			switch r.IntN(18) {
			case 16, 17:
				if told := w.acceptSomehow(names[r.IntN(3)], e, r.IntN(4)); told != nil {
					granted = append(granted, told)
				}
			case 0, 1:
				w.accept(names[r.IntN(3)])
			case 2:
				o := command.AcceptOptions{KeepResultMs: uint64(r.IntN(2))}
				if r.IntN(2) == 0 {
					o.NotBeforeUnixMs = w.now.UnixMilli() + int64(r.IntN(5000))
				}
				if r.IntN(2) == 0 {
					o.ExpireUnixMs = w.now.UnixMilli() + int64(r.IntN(5000))
				}
				w.acceptWith(names[r.IntN(3)], o)
			case 14:
				w.commit(command.Redrive{DeadCalls: command.DeadCalls{Function: names[r.IntN(3)], UpTo: 1 << 60, Limit: uint32(r.IntN(4))}})
			case 15:
				w.commit(command.Purge{DeadCalls: command.DeadCalls{Function: names[r.IntN(3)], UpTo: 1 << 60, Limit: 1}})
			case 3, 4:
				granted = append(granted, w.sent(e)...)
			case 5, 6:
				if len(granted) > 0 {
					g := granted[r.IntN(len(granted))]
					if g.session != nil {
						w.office.result(g.session, &wire.TryResult{
							Id: g.ID[:], Fence: g.Fence, Outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED,
							Status: []uint32{200, 202, 500, 404, 429}[r.IntN(5)], RetryAfterMs: uint64(r.IntN(3000)), Answer: []byte("answer"),
						}, w.now)
					}
				}
			case 7:
				w.commit(command.Cancel{ID: command.ID{15: byte(1 + r.IntN(int(w.ids)+1))}})
			case 8:
				if len(granted) > 0 {
					g := granted[r.IntN(len(granted))]
					if f, ok := w.office.callback(g.ID, g.Function, r.IntN(2) == 0, w.now); ok {
						w.commit(f)
					}
				}
			case 9:
				b := w.office.batch(w.now)
				switch r.IntN(3) {
				case 0:
					w.office.failed(b)
				case 1:
					w.commit(b.commands...)
					w.office.failed(b)
				default:
					unknown = append(unknown, b)
				}
			case 10:
				w.pass(time.Duration(r.IntN(3000))*time.Millisecond, edges[r.IntN(2)])
			case 11:
				w.office.heartbeat(e, &wire.HeldHeartbeat{Listed: true}, w.now)
			case 12:
				w.function(names[r.IntN(3)], 1+r.IntN(4), 1+r.IntN(2), "x-0", "x-1")
			default:
				w.propose()
			}
			for len(unknown) > 0 && r.IntN(2) == 0 { // answered late, in order
				b := unknown[0]
				unknown = unknown[1:]
				w.office.committed(b, w.commit(b.commands...), w.now)
			}
			w.check(seed)
		}
		for _, b := range unknown {
			w.office.failed(b)
		}
		for _, n := range names {
			w.function(n, 5, 5, "z-0")
		}
		last := w.edge("edge-9", 100)
		for range 300 {
			w.pass(time.Second, last)
			for _, g := range w.sent(last) {
				w.answer(last, g, 200)
			}
		}
		w.propose()
		if unfinished, _, _ := w.machine.Sizes(); unfinished != 0 {
			t.Fatalf("seed %d: %d calls never end", seed, unfinished)
		}
		for name, l := range w.office.lanes {
			if l.slots != 0 || len(l.onReplica) != 0 || l.counts != (counts{}) {
				t.Fatalf("seed %d: %s keeps %d slots %v, counts %+v", seed, name, l.slots, l.onReplica, l.counts)
			}
		}
		if len(w.office.aging) != 0 {
			t.Fatalf("seed %d: %d ended calls still age", seed, len(w.office.aging))
		}
	}
}

// check the laws that hold at every moment.
func (w *world) check(seed uint64) {
	w.t.Helper()
	slots := map[*lane]int{}
	load := map[*session]int{}
	for _, r := range w.office.runs {
		if r.slot {
			slots[r.lane]++
		}
		if r.load {
			load[r.session]++
		}
	}
	places := map[command.ID]int{}
	for _, p := range w.office.pending {
		slots[p.lane]++
		load[p.session]++
		places[p.id]++
	}
	for name, l := range w.office.lanes {
		if l.slots != slots[l] {
			w.t.Fatalf("seed %d: %s counts %d slots and has %d", seed, name, l.slots, slots[l])
		}
		onReplicas := 0
		for _, n := range l.onReplica {
			onReplicas += n
		}
		if onReplicas != l.slots {
			w.t.Fatalf("seed %d: %s has %d slots and %d on replicas", seed, name, l.slots, onReplicas)
		}
		marked := maps.Clone(l.cancelled)
		count := func(p place) {
			if _, ok := marked[p.seq]; ok {
				delete(marked, p.seq)
			} else {
				places[p.id]++
			}
		}
		for _, p := range l.due.Items() {
			count(p)
		}
		for _, p := range l.waiting.Items() {
			count(p.place)
		}
		if n := w.machine.CountersOf(name); n.Queued != l.counts.queued || n.Running != l.counts.running || n.Awaiting != l.counts.awaiting || n.Waiting != l.counts.waiting {
			w.t.Fatalf("seed %d: %s counts %+v, the state %+v", seed, name, l.counts, n)
		}
	}
	for _, s := range w.office.sessions {
		if s.load != load[s] {
			w.t.Fatalf("seed %d: %s counts a load of %d and has %d", seed, s.Name, s.load, load[s])
		}
		var hash uint64
		for _, r := range s.held {
			hash += heldHash(r.ID, r.Fence)
		}
		if hash != s.hash {
			w.t.Fatalf("seed %d: hash of %s", seed, s.Name)
		}
	}
	for c := range w.machine.Unfinished() {
		switch c.State {
		case fsm.Queued, fsm.Waiting:
			if places[c.ID] == 0 {
				w.t.Fatalf("seed %d: %s waits nowhere", seed, c.ID)
			}
		default:
			if w.office.runs[c.ID] == nil {
				w.t.Fatalf("seed %d: %s runs nowhere", seed, c.ID)
			}
		}
	}
}
