package fsm

import (
	"cmp"
	"iter"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// Applied is the index of the last entry.
func (m *Machine) Applied() uint64 { return m.applied }

// Now is the machine's clock, UTC milliseconds: the highest a proposer had.
func (m *Machine) Now() int64 { return m.now }

// Installation is the id of this installation; empty before the first leader gave it.
func (m *Machine) Installation() string { return m.installation }

// Call finds a call that lives or is remembered.
func (m *Machine) Call(id command.ID) (Call, bool) {
	if c, ok := m.calls[id]; ok {
		return c.export(), true
	}
	position, ok := m.backlog.find(id)
	if !ok {
		return Call{}, false
	}
	return m.awaken(*m.backlog.at(position)).export(), true
}

// Unfinished gives the calls that are Queued, Running, Awaiting or Waiting, in order of acceptance.
func (m *Machine) Unfinished() iter.Seq[Call] {
	return func(yield func(Call) bool) {
		touched := make([]*call, 0, m.unfinished.size)
		for c := m.unfinished.first; c != nil; c = c.next {
			touched = append(touched, c)
		}
		slices.SortFunc(touched, func(a, b *call) int { return cmp.Compare(a.seq, b.seq) })
		for p := range m.backlog.all() {
			for len(touched) > 0 && touched[0].seq < p.seq {
				if !yield(touched[0].export()) {
					return
				}
				touched = touched[1:]
			}
			if !yield(m.awaken(*p).export()) {
				return
			}
		}
		for _, c := range touched {
			if !yield(c.export()) {
				return
			}
		}
	}
}

// DeadLetters gives the dead calls, function by function in order of their names, in order of their death.
func (m *Machine) DeadLetters() iter.Seq[Call] {
	return func(yield func(Call) bool) {
		for _, name := range sortedKeys(m.functions) {
			for c := range m.functions[name].dead.all() {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// DeadOf gives a function's dead calls, newest first, behind the one with the id after; its zero value begins with the newest.
// ok false: after is no dead call of the function.
func (m *Machine) DeadOf(function string, after command.ID) (calls iter.Seq[Call], ok bool) {
	var from *call
	f := m.functions[function]
	switch {
	case after != (command.ID{}):
		c := m.calls[after]
		if c == nil || c.state != Dead || c.function != f {
			return nil, false
		}
		from = c.previous
	case f != nil:
		from = f.dead.last
	}
	return func(yield func(Call) bool) {
		for c := from; c != nil && yield(c.export()); c = c.previous {
		}
	}, true
}

// Finished gives the remembered succeeded and cancelled calls: in order of their end, then those with a kept answer.
func (m *Machine) Finished() iter.Seq[Call] {
	return func(yield func(Call) bool) {
		for c := range m.finished.all() {
			if !yield(c) {
				return
			}
		}
		for _, c := range m.kept.Items() {
			if !yield(c.export()) {
				return
			}
		}
	}
}

// Known says whether this accept would enqueue nothing: its id or its key is known.
func (m *Machine) Known(c command.Accept) bool {
	if m.known(c.ID) {
		return true
	}
	if c.Key == "" {
		return false
	}
	k, known := m.keys[digestOf(c.Function, c.Key)]
	return known && k.until > m.now
}

// Keys is how many idempotency keys are remembered.
func (m *Machine) Keys() int { return len(m.keys) }

// Sizes says how many calls are in each of the three.
func (m *Machine) Sizes() (unfinished, finished, dead int) {
	return m.unfinished.size + m.backlog.size, m.finished.size + m.kept.Len(), m.dead
}

// Forgettable says whether this Forget would do anything: without a call of it nothing is proposed.
func (m *Machine) Forgettable(c command.Forget) bool {
	if m.keepsTooLong() || m.overdue(c) || m.overdueDead(c) != nil || m.keyIsOld() {
		return true
	}
	for _, s := range m.sessions {
		if s.Vanished && s.EndedUnixMs < c.BeforeUnixMs {
			return true
		}
	}
	for _, o := range m.overrides {
		if o.UntilUnixMs <= m.now {
			return true
		}
	}
	return false
}

// IndexBytes is about how much memory the calls that wait take, in bytes.
func (m *Machine) IndexBytes() int { return m.backlog.bytes() }

// Sessions gives live and vanished ones by id.
func (m *Machine) Sessions() []Session {
	all := make([]Session, 0, len(m.sessions))
	for _, id := range sortedKeys(m.sessions) {
		all = append(all, *m.sessions[id])
	}
	return all
}

// Session finds one by id, live or vanished.
func (m *Machine) Session(id uint64) (Session, bool) {
	s, ok := m.sessions[id]
	if !ok {
		return Session{}, false
	}
	return *s, true
}

// SessionNamed finds the one session of a name, live or vanished.
func (m *Machine) SessionNamed(name string) (Session, bool) {
	return m.Session(m.names[name])
}

// Locks that are held, by name.
func (m *Machine) Locks() []Lock {
	all := make([]Lock, 0, len(m.locks))
	for _, name := range sortedKeys(m.locks) {
		all = append(all, m.locks[name])
	}
	return all
}

// Lock finds a held lock.
func (m *Machine) Lock(name string) (Lock, bool) {
	l, ok := m.locks[name]
	return l, ok
}

// Activities gives the last activity of each function that ever had one, by name.
func (m *Machine) Activities() []command.Activity {
	all := make([]command.Activity, 0, len(m.activity))
	for _, name := range sortedKeys(m.activity) {
		all = append(all, command.Activity{Function: name, AtUnixMs: m.activity[name]})
	}
	return all
}

// Overrides in force, by function; also those whose time is up and that no Forget has dropped yet.
func (m *Machine) Overrides() []Override {
	all := make([]Override, 0, len(m.overrides))
	for _, name := range sortedKeys(m.overrides) {
		all = append(all, m.overrides[name])
	}
	return all
}

// FunctionCounters of one function.
type FunctionCounters struct {
	Function string
	Counters
}

// Counters of every function that ever had a call, by name.
func (m *Machine) Counters() []FunctionCounters {
	all := make([]FunctionCounters, 0, len(m.functions))
	for _, name := range sortedKeys(m.functions) {
		if n := m.functions[name].counters; n != (Counters{}) {
			all = append(all, FunctionCounters{Function: name, Counters: n})
		}
	}
	return all
}

// CountersOf one function; zero if it never had a call.
func (m *Machine) CountersOf(name string) Counters {
	if f, ok := m.functions[name]; ok {
		return f.counters
	}
	return Counters{}
}

func (l *list) all() iter.Seq[Call] {
	return func(yield func(Call) bool) {
		for c := l.first; c != nil; c = c.next {
			if !yield(c.export()) {
				return
			}
		}
	}
}
