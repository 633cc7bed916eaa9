// Package table is the function table as every program holds it: whole records, each with a version, the higher version wins.
// Reading costs an atomic load and a map lookup; no reader ever waits for a writer. See docs/adr/0004-table-and-epoch.md.
package table

import (
	"context"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// shards: a change copies one of them, so 10,000 functions cost 40 pointers a change and nothing a read.
const shards = 256

// Entry is one function, decoded once. It never changes: a new version is a new Entry.
type Entry struct {
	Record *wire.FunctionRecord
	// Spec is never nil; it is the default one where the record has none or one that cannot be read (Err).
	Spec *function.Specification
	// Err says why the specification could not be read; the function is then broken, and the others are not.
	Err error
}

// Table is safe for concurrent use. Make it with New.
type Table struct {
	seed   maphash.Seed
	shards [shards]atomic.Pointer[map[string]*Entry]

	synced     chan struct{} // closed by MarkSynced
	syncedOnce sync.Once

	mu        sync.Mutex // guards everything below, and every write to shards; never held while a subscriber runs
	state     state
	past      history
	deletedAt map[string]time.Time // of the records that are deletions; monotonic
	subs      []*func(*Entry)
	pending   []*Entry // changes not yet told to subscribers
	telling   bool     // somebody is telling them
}

// state identifies the content of the whole table.
type state struct {
	epoch, seq uint64 // the highest version
	count      uint64
	hash       uint64
}

// New returns an empty table that has not been synced.
func New() *Table {
	return &Table{seed: maphash.MakeSeed(), synced: make(chan struct{}), deletedAt: map[string]time.Time{}}
}

func (t *Table) shard(name string) *atomic.Pointer[map[string]*Entry] {
	return &t.shards[maphash.String(t.seed, name)%shards]
}

// lookup finds deletions too.
func (t *Table) lookup(name string) *Entry {
	m := t.shard(name).Load()
	if m == nil {
		return nil
	}
	return (*m)[name]
}

// Get returns the live function of that name.
func (t *Table) Get(name string) (*Entry, bool) {
	e := t.lookup(name)
	if e == nil || e.Record.Deleted {
		return nil, false
	}
	return e, true
}

// All returns the live functions by name.
func (t *Table) All() []*Entry {
	var all []*Entry
	for i := range t.shards {
		if m := t.shards[i].Load(); m != nil {
			for _, e := range *m {
				if !e.Record.Deleted {
					all = append(all, e)
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b *Entry) int { return strings.Compare(a.Record.Name, b.Record.Name) })
	return all
}

// Apply takes r over, which must not change any more, and says whether it was newer than what was there. A record without a name
// or version is ignored. Subscribers are told before Apply returns, unless another goroutine is telling them already.
func (t *Table) Apply(r *wire.FunctionRecord) (changed bool) {
	t.mu.Lock()
	changed = t.apply(r)
	t.tell()
	return changed
}

// ReplaceAll applies all records and removes every function that is not among them and not newer than upTo, the version
// of the source they come from.
func (t *Table) ReplaceAll(records []*wire.FunctionRecord, upTo *wire.Version) {
	listed := make(map[string]struct{}, len(records))
	t.mu.Lock()
	for _, r := range records {
		listed[r.GetName()] = struct{}{}
		t.apply(r)
	}
	t.drop(listed, upTo, true)
	t.tell()
}

// dropUnlisted is the second half of ReplaceAll, for records that were applied as they came. Without live, only deletions go.
func (t *Table) dropUnlisted(listed map[string]struct{}, upTo *wire.Version, live bool) {
	t.mu.Lock()
	t.drop(listed, upTo, live)
	t.tell()
}

// Forget removes deletions that are older than age and returns how many. Only the source of the table forgets; the others drop
// a deletion when a pull no longer lists it.
func (t *Table) Forget(age time.Duration) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	forgotten := 0
	for name, at := range t.deletedAt {
		if time.Since(at) >= age {
			t.remove(t.lookup(name))
			forgotten++
		}
	}
	if forgotten > 0 {
		t.past.add(t.state)
	}
	return forgotten
}

// apply runs under mu.
func (t *Table) apply(r *wire.FunctionRecord) bool {
	if r.GetName() == "" || r.GetVersion() == nil {
		return false
	}
	old := t.lookup(r.Name)
	if old != nil && compare(r.Version, old.Record.Version) <= 0 {
		return false
	}
	if old != nil {
		t.state.hash -= hash(old.Record)
	} else {
		t.state.count++
	}
	t.state.hash += hash(r)
	if compare(r.Version, t.state.version()) > 0 {
		t.state.epoch, t.state.seq = r.Version.Epoch, r.Version.Seq
	}
	if r.Deleted {
		t.deletedAt[r.Name] = time.Now()
	} else {
		delete(t.deletedAt, r.Name)
	}
	e := newEntry(r)
	t.write(r.Name, e)
	t.past.add(t.state)
	t.pending = append(t.pending, e)
	return true
}

// drop runs under mu. The source's version counts as seen: its newest record may be a deletion that it has forgotten.
func (t *Table) drop(listed map[string]struct{}, upTo *wire.Version, live bool) {
	changed := false
	if compare(upTo, t.state.version()) > 0 {
		t.state.epoch, t.state.seq = upTo.GetEpoch(), upTo.GetSeq()
		changed = true
	}
	for i := range t.shards {
		m := t.shards[i].Load()
		if m == nil {
			continue
		}
		for name, e := range *m {
			if _, ok := listed[name]; ok || compare(e.Record.Version, upTo) > 0 || (!live && !e.Record.Deleted) {
				continue
			}
			t.remove(e)
			changed = true
			if !e.Record.Deleted { // told as what it amounts to
				gone := &wire.FunctionRecord{Name: name, Version: e.Record.Version, Deleted: true}
				t.pending = append(t.pending, newEntry(gone))
			}
		}
	}
	if changed {
		t.past.add(t.state)
	}
}

// remove runs under mu. The highest version stays: it has been seen.
func (t *Table) remove(e *Entry) {
	t.state.hash -= hash(e.Record)
	t.state.count--
	delete(t.deletedAt, e.Record.Name)
	t.write(e.Record.Name, nil)
}

// write replaces one entry (nil removes) in a copy of its shard. Runs under mu.
func (t *Table) write(name string, e *Entry) {
	p := t.shard(name)
	next := map[string]*Entry{}
	if m := p.Load(); m != nil {
		next = maps.Clone(*m)
	}
	if e == nil {
		delete(next, name)
	} else {
		next[name] = e
	}
	p.Store(&next)
}

func newEntry(r *wire.FunctionRecord) *Entry {
	spec, err := function.Default(), error(nil)
	if len(r.Specification) > 0 {
		spec, err = function.Decode(r.Specification)
	}
	return &Entry{Record: r, Spec: &spec, Err: err}
}

// Changed calls f after each change with the new entry; a function that went has Record.Deleted. Calls come one at a time and in the
// order of the changes, outside all locks: f may use the table, and must be quick. stop ends it, but for a call under way.
func (t *Table) Changed(f func(*Entry)) (stop func()) {
	sub := &f
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subs = append(slices.Clone(t.subs), sub)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.subs = slices.DeleteFunc(slices.Clone(t.subs), func(s *func(*Entry)) bool { return s == sub })
	}
}

// tell is called with mu held and gives it back. One goroutine tells at a time, also what others add meanwhile: that keeps the
// order without a lock around subscribers, who may apply changes themselves.
func (t *Table) tell() {
	if t.telling {
		t.mu.Unlock()
		return
	}
	t.telling = true
	for len(t.pending) > 0 {
		changes, subs := t.pending, t.subs
		t.pending = nil
		t.mu.Unlock()
		for _, e := range changes {
			for _, f := range subs {
				(*f)(e)
			}
		}
		t.mu.Lock()
	}
	t.telling = false
	t.mu.Unlock()
}

// MarkSynced states that the table is as complete as its source: a Follower says so after its first pull, the source itself
// when it has built the table. It cannot be taken back.
func (t *Table) MarkSynced() { t.syncedOnce.Do(func() { close(t.synced) }) }

// Synced says whether MarkSynced was called. Before it, a function that is not here may well exist.
func (t *Table) Synced() bool {
	select {
	case <-t.synced:
		return true
	default:
		return false
	}
}

// WaitSynced blocks until Synced or until ctx ends, whose error it returns.
func (t *Table) WaitSynced(ctx context.Context) error {
	select {
	case <-t.synced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
