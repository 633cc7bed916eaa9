package slots

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// at is a moment at the beginning of a turn.
var at = time.Unix(1_800_000_000, 0)

func given(orders []Order) string {
	slices.SortFunc(orders, func(a, b Order) int { return int(a.Session) - int(b.Session) })
	text := ""
	for _, o := range orders {
		text += fmt.Sprintf("%d:%d ", o.Session, o.Given)
	}
	return text
}

func TestSlotsAreSharedOut(t *testing.T) {
	t.Parallel()
	type say struct {
		session      uint64
		held, wanted uint32
	}
	for _, tt := range []struct {
		name  string
		limit uint32
		says  []say
		want  string
	}{
		{"one edge has what it wants", 10, []say{{1, 0, 4}}, "1:4 "},
		{"one edge has at most the limit", 10, []say{{1, 0, 400}}, "1:10 "},
		{"two have even parts", 10, []say{{1, 0, 400}, {2, 0, 400}}, "1:5 2:5 "},
		{"what does not divide goes to one", 10, []say{{1, 0, 400}, {2, 0, 400}, {3, 0, 400}}, "1:4 2:3 3:3 "},
		{"who wants little leaves the rest to others", 10, []say{{1, 0, 1}, {2, 0, 400}, {3, 0, 2}}, "1:1 2:7 3:2 "},
		{"what is held is not given again", 10, []say{{1, 10, 10}, {2, 0, 400}}, "1:5 "},
		{"what is idle is asked back as far as it is wanted", 10, []say{{1, 10, 0}, {2, 0, 3}}, "1:7 "},
		{"what is idle and not wanted stays", 10, []say{{1, 6, 0}, {2, 0, 3}}, "2:3 "},
		{"a limit that was lowered", 4, []say{{1, 6, 6}, {2, 2, 2}}, "1:2 "},
		{"no limit is known yet", 0, []say{{1, 0, 400}}, ""},
		{"fewer slots than edges: one has its turn", 1, []say{{1, 0, 1}, {2, 0, 1}}, "1:1 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var p Pool
			for _, s := range tt.says {
				p.Greet(s.session, s.held, s.wanted)
			}
			orders, _ := p.Plan(tt.limit, at, 1)
			if got := given(orders); got != tt.want {
				t.Errorf("orders %q, want %q", got, tt.want)
			}
			if again, _ := p.Plan(tt.limit, at, 2); len(again) > 0 {
				t.Errorf("planned again, without news: %q", given(again))
			}
		})
	}
}

// The slot goes round, and moves only when it has been given back.
func TestOneSlotGoesRound(t *testing.T) {
	t.Parallel()
	var p Pool
	p.Greet(1, 0, 1)
	p.Greet(2, 0, 1)
	p.Plan(1, at, 1)
	p.Say(1, 1, 1, 1)
	_, next := p.Plan(1, at, 2)
	if next.Sub(at) != RotateEvery {
		t.Fatalf("next turn %v later, want %v", next.Sub(at), RotateEvery)
	}
	if orders, _ := p.Plan(1, next, 3); given(orders) != "1:0 " {
		t.Fatalf("at the next turn: %q", given(orders))
	}
	p.Say(1, 1, 1, 3) // its call is not over
	if orders, _ := p.Plan(1, next, 4); len(orders) > 0 {
		t.Fatalf("before it was given back: %q", given(orders))
	}
	p.Say(1, 0, 1, 3)
	if orders, _ := p.Plan(1, next, 5); given(orders) != "2:1 " {
		t.Fatalf("when it was given back: %q", given(orders))
	}
}

// world is edges and a leader, with messages under way that are late or, with their connection, lost.
type world struct {
	*rand.Rand
	limit   uint32
	pool    *Pool
	version uint64
	now     time.Time
	edges   []*edge
}

type edge struct {
	session   uint64
	cap, used uint32
	wants     uint32
	applied   uint64
	greeted   bool // the leader knows of it
	up, down  []message
	starts    int
}

type message struct {
	held, wanted, cap uint32
	version           uint64 // of up: applied
	greeting          bool
}

func (e *edge) message(greeting bool) message {
	return message{held: max(e.cap, e.used), wanted: e.wants + e.used, version: e.applied, greeting: greeting}
}

func (e *edge) say() {
	if len(e.up) > 0 || e.greeted {
		e.up = append(e.up, e.message(false))
	}
}

// connect anew: what was under way is lost.
func (e *edge) connect() {
	e.applied = 0
	e.up, e.down = []message{e.message(true)}, nil
}

func (w *world) plan() {
	if slices.ContainsFunc(w.edges, func(e *edge) bool { return !e.greeted }) {
		return // somebody may have slots that nobody knows of
	}
	w.version++
	orders, _ := w.pool.Plan(w.limit, w.now, w.version)
	for _, o := range orders {
		for _, e := range w.edges {
			if e.session == o.Session && !(len(e.up) > 0 && e.up[0].greeting) { // else it goes to a connection that is gone
				e.down = append(e.down, message{cap: o.Given, version: w.version})
			}
		}
	}
}

func (w *world) hear(e *edge) {
	m := e.up[0]
	e.up = e.up[1:]
	if m.greeting {
		e.greeted = true
		w.pool.Greet(e.session, m.held, m.wanted)
	} else {
		w.pool.Say(e.session, m.held, m.wanted, m.version)
	}
	w.plan()
}

func (e *edge) obey() {
	m := e.down[0]
	e.down = e.down[1:]
	e.cap, e.applied = m.cap, m.version
	e.say()
}

func (e *edge) start() {
	if e.wants > 0 && e.used < e.cap {
		e.wants--
		e.used++
		e.starts++
	}
}

func (w *world) step() {
	e := w.edges[w.IntN(len(w.edges))]
	switch w.IntN(40) {
	case 0:
		e.connect()
	case 1: // another node leads
		w.pool = &Pool{}
		for _, e := range w.edges {
			e.greeted = false
			e.connect()
		}
	case 2: // killed, and its session ended
		w.pool.Leave(e.session)
		*e = edge{session: e.session + 1000, greeted: true}
		w.plan()
	case 3:
		w.now = w.now.Add(RotateEvery)
		w.plan()
	case 4, 5, 6, 7:
		e.wants += uint32(w.IntN(4))
		e.say()
	case 8, 9, 10, 11, 12, 13:
		if e.used > 0 {
			e.used--
			if e.used >= e.cap {
				e.say()
			}
		}
	default:
		if len(e.up) > 0 && w.IntN(2) == 0 {
			w.hear(e)
		} else if len(e.down) > 0 {
			e.obey()
		}
	}
	e.start()
}

func TestNoSlotIsUsedTwiceAndAllAreUsed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		w := &world{Rand: rand.New(rand.NewPCG(seed, 0)), pool: &Pool{}, now: at}
		w.limit = uint32(1 + w.IntN(12))
		for i := range 1 + w.IntN(4) {
			w.edges = append(w.edges, &edge{session: uint64(i + 1), greeted: true})
		}
		for range 2000 {
			w.step()
			used := uint32(0)
			for _, e := range w.edges {
				used += e.used
			}
			if used > w.limit {
				t.Fatalf("seed %d: %d calls at one time, limit %d", seed, used, w.limit)
			}
		}
		w.settle(t, seed)
	}
}

// settle lets every edge have more to do than there are slots, and everything arrive.
func (w *world) settle(t *testing.T, seed uint64) {
	t.Helper()
	for _, e := range w.edges {
		e.starts = 0
	}
	for range 40 {
		w.now = w.now.Add(RotateEvery)
		for _, e := range w.edges {
			e.wants = w.limit * 2
			e.used = 0
			e.say()
		}
		for again := true; again; {
			again = false
			for _, e := range w.edges {
				for ; len(e.up) > 0; again = true {
					w.hear(e)
				}
				for ; len(e.down) > 0; again = true {
					e.obey()
				}
			}
		}
		used := uint32(0)
		for _, e := range w.edges {
			for e.wants > 0 && e.used < e.cap {
				e.start()
			}
			used += e.used
		}
		if used > w.limit {
			t.Fatalf("seed %d: %d calls at one time, limit %d", seed, used, w.limit)
		}
	}
	// Two turns may go by until everybody has his part.
	n, even := len(w.edges), int(w.limit)/len(w.edges)
	least, most := 38*even, 40*(even+1)
	if even == 0 {
		least, most = 38*int(w.limit)/n-n, 40*int(w.limit)/n+n
	}
	for _, e := range w.edges {
		if e.starts < least || e.starts > most {
			t.Errorf("seed %d: of %d slots, one of %d edges had %d calls in 40 turns, want %d to %d", seed, w.limit, n, e.starts, least, most)
		}
	}
}
