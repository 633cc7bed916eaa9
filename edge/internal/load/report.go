package load

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// reportGap is the least time between two reports made at once: a function that flips 0 ↔ 1 with every call of a busy
	// caller costs a hundred small messages a second, not thousands.
	reportGap = 10 * time.Millisecond
	// maxReport bounds the functions of one message, in bytes, below wire.MaxBusMessage with room for the envelope.
	maxReport = 60 << 10
)

// repeats of a change, one a second: the bus may lose a report, and the next full one is up to 5 s away.
const repeats = 2

// Reporter tells the scalers what the tracker counts: changed functions at once when they cross 0 ↔ n and each second,
// all of them every 5 s in numbered parts.
type Reporter struct {
	Tracker     *Tracker
	Edge        string
	Incarnation string
	// Epoch is the table's epoch; a report under a new one is full and at once, for the new leader waits for it.
	Epoch func() uint64
	// Draining lists the draining replicas of a function, with the version that says so and what is open.
	Draining func(function string) []*wire.DrainReport
	// Publish puts a report on the bus. A lost one is repaired by the repeats of the next seconds, or the next full one.
	Publish func(*wire.LoadReport) error

	sequence uint64
	epoch    uint64
	again    map[string]int                // seconds in which a change is still repeated
	sent     map[string]*wire.FunctionLoad // as last published; age not compared
	ended    map[string]int64              // lastEnd as last published
}

// Run reports until ctx ends, and once more then, so that an edge that goes away says what it left.
func (r *Reporter) Run(ctx context.Context) {
	r.sent, r.ended, r.again = map[string]*wire.FunctionLoad{}, map[string]int64{}, map[string]int{}
	second, all := time.NewTicker(wire.ReportEvery), time.NewTicker(wire.FullReportEvery)
	defer second.Stop()
	defer all.Stop()
	gap := time.NewTimer(0)
	defer gap.Stop()
	r.full()
	for {
		select {
		case <-ctx.Done():
			r.full()
			return
		case <-all.C:
			r.full()
		case <-second.C:
			r.changed(false)
		case <-r.Tracker.signal:
			r.changed(true)
			gap.Reset(reportGap)
			select {
			case <-gap.C:
			case <-ctx.Done():
			}
		}
	}
}

// Now asks for a full report at once: after a reconnect of the bus, after the table moved to a new epoch.
func (t *Tracker) Now() {
	t.whole.Store(true)
	t.notify()
}

// changed publishes what changed: with crossed only what crossed 0 ↔ n, else all that differs from what was last said.
func (r *Reporter) changed(crossed bool) {
	if r.Tracker.whole.Swap(false) || r.Epoch() != r.epoch {
		r.full()
		return
	}
	looked := r.Tracker.takeChanged()
	dirty := make(map[*Function]bool, len(looked))
	for _, f := range looked {
		dirty[f] = true
	}
	if !crossed {
		looked = r.Tracker.list()
	}
	var functions []*wire.FunctionLoad
	for _, f := range looked {
		changed := dirty[f]
		if !changed && r.again[f.name] == 0 && r.told(f) {
			continue
		}
		now, end := r.measure(f)
		switch {
		case changed || r.differs(now, end):
			r.again[f.name] = repeats
		case r.again[f.name] > 0:
			if r.again[f.name]--; r.again[f.name] == 0 {
				delete(r.again, f.name)
			}
		case len(now.Draining) == 0: // somebody waits for what is said of a drain
			continue
		}
		functions = append(functions, now)
		r.sent[f.name], r.ended[f.name] = now, end
	}
	if len(functions) > 0 {
		r.publish(functions, false)
	}
}

// told says, at the cost of a look, that a function rests and that this is what was said of it last: most functions of an edge, most of
// the time.
func (r *Reporter) told(f *Function) bool {
	end, last := f.lastEnd.Load(), r.sent[f.name]
	if f.active.Load() != 0 || len(r.Draining(f.name)) > 0 || end != r.ended[f.name] {
		return false
	}
	return last == nil || last.InFlight == 0 && last.Streams == 0 && last.Parked == 0 && last.Deliveries == 0 && len(last.Draining) == 0
}

// full publishes everything that is not zero.
func (r *Reporter) full() {
	r.epoch = r.Epoch()
	functions := []*wire.FunctionLoad{}
	clear(r.sent)
	clear(r.ended)
	r.Tracker.takeChanged()
	for _, f := range r.Tracker.list() {
		if r.told(f) {
			continue // of a function nothing was said of since clear: it has never been called
		}
		now, end := r.measure(f)
		r.sent[f.name], r.ended[f.name] = now, end
		if now.InFlight != 0 || now.Parked != 0 || now.Deliveries != 0 || now.ActiveBefore || len(now.Draining) > 0 {
			functions = append(functions, now)
		}
	}
	r.publish(functions, true)
}

// measure reads the counters. end is when the last thing ended, read first: what ends meanwhile is told next time.
func (r *Reporter) measure(f *Function) (m *wire.FunctionLoad, end int64) {
	end = f.lastEnd.Load()
	m = &wire.FunctionLoad{Function: f.name, Draining: r.Draining(f.name)}
	m.InFlight, m.Streams = figure(f.inFlight.Load()), figure(f.streams.Load())
	m.Parked, m.Deliveries = figure(f.parked.Load()), figure(f.deliveries.Load())
	if end != 0 {
		m.ActiveBefore, m.AgeMs = true, uint64(max(0, f.tracker.now()-end))/uint64(time.Millisecond)
	}
	return m, end
}

func figure(n int64) uint32 { return uint32(max(0, n)) }

func (r *Reporter) differs(m *wire.FunctionLoad, end int64) bool {
	last := r.sent[m.Function]
	if last == nil {
		return m.InFlight != 0 || m.Parked != 0 || m.Deliveries != 0 || m.ActiveBefore || len(m.Draining) > 0
	}
	return r.ended[m.Function] != end || last.InFlight != m.InFlight || last.Streams != m.Streams ||
		last.Parked != m.Parked || last.Deliveries != m.Deliveries ||
		!slices.EqualFunc(last.Draining, m.Draining, func(a, b *wire.DrainReport) bool { return proto.Equal(a, b) })
}

// publish sends the functions in as many messages as their size asks for. The parts of a full report carry its numbers.
func (r *Reporter) publish(functions []*wire.FunctionLoad, full bool) {
	slices.SortFunc(functions, func(a, b *wire.FunctionLoad) int { return cmp.Compare(a.Function, b.Function) })
	var parts [][]*wire.FunctionLoad
	size := maxReport + 1
	for _, f := range functions {
		n := proto.Size(f) + 4
		if size += n; size > maxReport {
			parts, size = append(parts, nil), n
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], f)
	}
	if len(parts) == 0 {
		parts = [][]*wire.FunctionLoad{nil}
	}
	for i, part := range parts {
		r.sequence++
		m := &wire.LoadReport{
			Edge: r.Edge, Incarnation: r.Incarnation, Epoch: r.epoch, Sequence: r.sequence, Full: full, Functions: part,
		}
		if full {
			m.Part, m.Parts = uint32(i), uint32(len(parts))
		}
		_ = r.Publish(m) // counted by the bus; the next report repairs it
	}
}
