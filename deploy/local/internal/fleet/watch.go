package fleet

import (
	"encoding/json"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// watchBuffer is how many events may wait for a watcher. One that falls further behind is cut: it comes back and gets the
// whole state, which is cheaper than remembering changes for it.
const watchBuffer = 1024

// Watcher receives events as lines of JSON.
type Watcher struct {
	// First is the state at the start of the watch, ending with `synced`.
	First [][]byte
	// Next carries the changes after it. Closed: the watcher was too slow, or the fleet ends.
	Next chan []byte
}

// Watch begins a watch. End it with Unwatch.
func (f *Fleet) Watch() *Watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &Watcher{Next: make(chan []byte, watchBuffer)}
	add := func(e wire.LocalEvent) {
		e.Revision = f.revision
		w.First = append(w.First, f.line(e))
	}
	for _, name := range f.order {
		state := f.workload(f.workloads[name])
		add(wire.LocalEvent{Type: wire.LocalEventWorkload, Name: name, Workload: &state})
	}
	for _, p := range f.sortedParts() {
		add(wire.LocalEvent{Type: wire.LocalEventPart, Part: &p})
	}
	add(wire.LocalEvent{Type: wire.LocalEventSynced})
	f.watchers[w] = struct{}{}
	return w
}

// Unwatch ends a watch.
func (f *Fleet) Unwatch(w *Watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut(w)
}

// Ping is the line that says nothing but that the watch lives.
func (f *Fleet) Ping() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.line(wire.LocalEvent{Type: wire.LocalEventPing, Revision: f.revision})
}

// publish sends the whole state of a workload under a new revision. The lock is held.
func (f *Fleet) publish(w *workload) {
	f.revision++
	state := f.workload(w)
	f.send(wire.LocalEvent{Type: wire.LocalEventWorkload, Revision: f.revision, Name: w.f.Name, Workload: &state})
}

func (f *Fleet) send(e wire.LocalEvent) {
	if len(f.watchers) == 0 {
		return
	}
	line := f.line(e)
	for w := range f.watchers {
		select {
		case w.Next <- line:
		default:
			f.o.Log.Warn("a watcher is too slow and is cut", "behind", watchBuffer)
			f.cut(w)
		}
	}
}

func (f *Fleet) cut(w *Watcher) {
	if _, known := f.watchers[w]; known {
		delete(f.watchers, w)
		close(w.Next)
	}
}

func (f *Fleet) line(e wire.LocalEvent) []byte {
	line, err := json.Marshal(e)
	if err != nil { // plain strings and numbers: cannot be
		f.o.Log.Error("an event cannot be encoded", "err", err)
		return []byte("{}\n")
	}
	return append(line, '\n')
}
