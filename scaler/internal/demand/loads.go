// Package demand keeps what others say about work: the edges' load reports and the queue leader's demand. Every scaler
// listens, leading or not, so that a new leader knows at once.
package demand

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// maxEdges bounds the incarnations of edges that are kept.
	maxEdges = 4096
	// maxReported bounds the functions kept of one edge.
	maxReported = 100_000
	// superseded: an old incarnation of a name that is silent for this long is forgotten when a newer one reports.
	superseded = 3 * time.Second
	// forgotten: an edge without a session that is silent for this long is forgotten.
	forgotten = 10 * time.Second
	// Fresh is how old a report may be: a full one is due each 5 s, and an edge silent for longer than two of them has not reported.
	Fresh = 12 * time.Second
)

// Edge identifies one life of an edge.
type Edge struct {
	Name        string
	Incarnation string
}

// Load is the work at all edges for one function.
type Load struct {
	InFlight, Streams, Parked, Deliveries int
	// Last is the newest end of activity ever reported; zero: none.
	Last time.Time
}

// Open says whether anything is under way or waiting.
func (l Load) Open() bool { return l.InFlight > 0 || l.Streams > 0 || l.Parked > 0 || l.Deliveries > 0 }

// Report is how one edge stands.
type Report struct {
	Edge     Edge
	Epoch    uint64
	Heard    time.Time
	Complete bool // everything it has was heard at least once
}

// Loads keeps the newest load of every edge. Its methods may be called from many goroutines.
type Loads struct {
	mu    sync.Mutex
	edges map[Edge]*edgeLoad
	last  map[string]time.Time // by function: newest end of activity, over all edges that ever were
}

type edgeLoad struct {
	Report
	sequence  uint64
	functions map[string]*functionLoad
	round     round
}

type functionLoad struct {
	load     *wire.FunctionLoad
	sequence uint64 // of the report that said it
}

// round gathers the parts of one full report.
type round struct {
	first uint64 // sequence of the first part heard
	parts uint32
	heard map[uint32]bool
}

// NewLoads makes an empty keeper.
func NewLoads() *Loads {
	return &Loads{edges: map[Edge]*edgeLoad{}, last: map[string]time.Time{}}
}

// Apply takes one report, heard now. It says whether it was news.
func (l *Loads) Apply(now time.Time, report *wire.LoadReport) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := Edge{Name: report.GetEdge(), Incarnation: report.GetIncarnation()}
	edge := l.edges[key]
	if edge == nil {
		if len(l.edges) >= maxEdges {
			return false
		}
		edge = &edgeLoad{Report: Report{Edge: key}, functions: map[string]*functionLoad{}}
		l.edges[key] = edge
	}
	sequence := report.GetSequence()
	again := report.GetFull() && sequence == edge.sequence && !edge.round.heard[report.GetPart()] && edge.round.first == sequence
	if sequence <= edge.sequence && !again {
		return false
	}
	edge.sequence = sequence
	edge.Heard = now
	edge.Epoch = max(edge.Epoch, report.GetEpoch())
	for _, function := range report.GetFunctions() {
		if len(edge.functions) >= maxReported && edge.functions[function.GetFunction()] == nil {
			continue
		}
		edge.functions[function.GetFunction()] = &functionLoad{load: function, sequence: sequence}
		switch {
		case open(function):
			l.active(function.GetFunction(), now)
		case function.GetActiveBefore():
			l.active(function.GetFunction(), now.Add(-milliseconds(function.GetAgeMs())))
		}
	}
	if report.GetFull() {
		edge.part(sequence, report.GetPart(), max(report.GetParts(), 1))
	}
	for other, old := range l.edges {
		if other.Name == key.Name && other != key && now.Sub(old.Heard) > superseded {
			delete(l.edges, other)
		}
	}
	return true
}

// part notes one part of a full report; with the last of them, what none of them named is zero.
func (e *edgeLoad) part(sequence uint64, part, parts uint32) {
	if part == 0 || e.round.parts != parts || e.round.heard == nil {
		if part != 0 {
			e.round = round{}
			return // the beginning was lost; the next round will do
		}
		e.round = round{first: sequence, parts: parts, heard: map[uint32]bool{}}
	}
	e.round.heard[part] = true
	if uint32(len(e.round.heard)) < parts { //nolint:gosec // at most parts
		return
	}
	maps.DeleteFunc(e.functions, func(_ string, f *functionLoad) bool { return f.sequence < e.round.first })
	e.Complete = true
}

func (l *Loads) active(function string, at time.Time) {
	if known, ok := l.last[function]; ok {
		if at.After(known) {
			l.last[function] = at
		}
		return
	}
	if len(l.last) < maxReported {
		l.last[function] = at
	}
}

// Functions sums the load of all edges by function.
func (l *Loads) Functions() map[string]Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	sums := make(map[string]Load, len(l.last))
	for name, at := range l.last {
		sums[name] = Load{Last: at}
	}
	for _, edge := range l.edges {
		for name, f := range edge.functions {
			sum := sums[name]
			sum.InFlight += int(f.load.GetInFlight())
			sum.Streams += int(f.load.GetStreams())
			sum.Parked += int(f.load.GetParked())
			sum.Deliveries += int(f.load.GetDeliveries())
			sums[name] = sum
		}
	}
	return sums
}

// Edges lists how every edge that is remembered stands, by name.
func (l *Loads) Edges() []Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	reports := make([]Report, 0, len(l.edges))
	for _, edge := range l.edges {
		reports = append(reports, edge.Report)
	}
	slices.SortFunc(reports, func(a, b Report) int {
		if a.Edge.Name != b.Edge.Name {
			return strings.Compare(a.Edge.Name, b.Edge.Name)
		}
		return strings.Compare(a.Edge.Incarnation, b.Edge.Incarnation)
	})
	return reports
}

// Draining is what one edge said of one draining replica; ok is false when it said nothing.
func (l *Loads) Draining(edge Edge, function, replica string) (version *wire.Version, stillOpen int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.edges[edge]
	if of == nil || of.functions[function] == nil {
		return nil, 0, false
	}
	for _, report := range of.functions[function].load.GetDraining() {
		if report.GetReplica() == replica {
			return report.GetVersion(), int(report.GetOpen()), true
		}
	}
	return nil, 0, false
}

// Keep forgets edges that are silent and have no session any more, and functions nobody knows.
func (l *Loads) Keep(now time.Time, live func(Edge) bool, known func(string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.edges, func(key Edge, edge *edgeLoad) bool {
		return now.Sub(edge.Heard) > forgotten && !live(key)
	})
	maps.DeleteFunc(l.last, func(name string, _ time.Time) bool { return !known(name) })
}

func open(f *wire.FunctionLoad) bool {
	return f.GetInFlight() > 0 || f.GetStreams() > 0 || f.GetParked() > 0 || f.GetDeliveries() > 0
}

// milliseconds converts an age, clamped to a year: a nonsense age must not overflow.
func milliseconds(ms uint64) time.Duration {
	const year = uint64(365 * 24 * time.Hour / time.Millisecond)
	return time.Duration(min(ms, year)) * time.Millisecond //nolint:gosec // clamped
}
