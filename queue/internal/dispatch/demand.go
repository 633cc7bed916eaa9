package dispatch

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// reportBytes bounds the functions of one part of a report; the rest of the message needs far less than what is left.
const reportBytes = wire.MaxBusMessage - 4<<10

// count follows a call from state to state.
func (o *office) count(l *lane, c fsm.Change) {
	before := l.counts
	if n := l.counts.at(c.From); n != nil && *n > 0 {
		*n--
	}
	if n := l.counts.at(c.Call.State); n != nil {
		*n++
	}
	l.changed = true
	if before.zeros() != l.counts.zeros() {
		o.flipped = true
	}
}

// zeros says which of what a scaler acts on is zero: work to start, work under way, work for later.
func (c counts) zeros() [3]bool {
	return [3]bool{c.queued == 0, c.running+c.awaiting == 0, c.waiting == 0}
}

// demand of the functions that changed since the last report, or of all that have calls; by name.
func (o *office) demand(all bool, now time.Time) []*wire.FunctionDemand {
	var list []*wire.FunctionDemand
	for name, l := range o.lanes {
		if !l.changed && (!all || l.counts == counts{}) {
			continue
		}
		l.changed = false
		list = append(list, l.demand(now))
		if l.idle() {
			delete(o.lanes, name)
		}
	}
	o.flipped = false
	slices.SortFunc(list, func(a, b *wire.FunctionDemand) int { return strings.Compare(a.GetFunction(), b.GetFunction()) })
	return list
}

// snapshot is the same for a reader that gets no reports: nothing counts as reported.
func (o *office) snapshot(now time.Time) []*wire.FunctionDemand {
	var list []*wire.FunctionDemand
	for _, l := range o.lanes {
		if l.counts != (counts{}) {
			list = append(list, l.demand(now))
		}
	}
	slices.SortFunc(list, func(a, b *wire.FunctionDemand) int { return strings.Compare(a.GetFunction(), b.GetFunction()) })
	return list
}

func (l *lane) demand(now time.Time) *wire.FunctionDemand {
	d := &wire.FunctionDemand{
		Function: l.Name, Queued: l.counts.queued, Running: l.counts.running, Awaiting: l.counts.awaiting, Waiting: l.counts.waiting,
	}
	if at, ok := l.earliest(); ok {
		d.HasNextTry = true
		d.NextTryInMs = uint64(max(0, at-now.UnixMilli()))
	}
	return d
}

// parts cuts a list into reports that fit on the bus; an empty full list is one empty part.
func parts(list []*wire.FunctionDemand, full bool) []*wire.DemandReport {
	var reports []*wire.DemandReport
	for len(list) > 0 || full && len(reports) == 0 {
		size, n := 0, 0
		for n < len(list) {
			size += proto.Size(list[n]) + 4
			if n > 0 && size > reportBytes {
				break
			}
			n++
		}
		reports = append(reports, &wire.DemandReport{Full: full, Functions: list[:n:n]})
		list = list[n:]
	}
	if full {
		for i, r := range reports {
			r.Part, r.Parts = uint32(i), uint32(len(reports))
		}
	}
	return reports
}
