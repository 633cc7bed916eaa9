package dispatch

import (
	"fmt"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/priority"
	"github.com/slimfaas/slimfaas/shared/function"
)

// avoidReplica is how long a replica is passed over after an edge gave a call back for it.
const avoidReplica = 200 * time.Millisecond

// office is what a leader knows beyond the state machine: lanes, slots, sessions with their timers, what to propose next. It
// is made from the state when the node takes office and follows it change by change. Pure but for the queues of its links:
// time is given, nothing blocks, its owner locks.
type office struct {
	applied  uint64 // index of the last change seen
	synced   bool   // the table has been complete once: without it nothing is granted
	lanes    map[string]*lane
	runnable []*lane // lanes with due calls to look at, in turn
	runs     map[command.ID]*run
	pending  map[command.ID]*pending
	sessions map[uint64]*session
	linked   []*session
	turn     int // where the search for an edge begins

	ended     []*run // with a finish to propose
	expired   []*session
	burials   []*pending // calls of functions long gone
	overdue   []overdue  // calls over their maximum age
	deadlines priority.Heap[deadline]
	wakes     priority.Heap[wake]
	ages      priority.Heap[overdue]  // calls with a maximum age, by its end
	aging     map[command.ID]struct{} // those of them that have not ended
	agesAt    time.Time               // when the first is over
	uploads   uploads
	slots     syncSlots
	expiry    time.Time // no session can expire before; zero: look now

	flipped    bool   // a count left or reached zero since the last demand report
	facts      uint64 // index of the last change of an override not yet announced; 0: none
	unsettled  int    // runs whose settings were not known
	limits     Limits
	settingsOf func(name string) (Function, bool)
}

// deadline of a run; one that the run does not have any more is void.
type deadline struct {
	at time.Time
	*run
}

// wake of a lane: a waiting call is due, or a replica is to be tried again.
type wake struct {
	at time.Time
	*lane
}

// newOffice reads the state. settingsOf asks the table; it is called within, and must not block.
func newOffice(m *fsm.Machine, now time.Time, settingsOf func(string) (Function, bool), synced bool, limits Limits) *office {
	o := &office{
		applied:    m.Applied(),
		synced:     synced,
		lanes:      map[string]*lane{},
		runs:       map[command.ID]*run{},
		pending:    map[command.ID]*pending{},
		sessions:   map[uint64]*session{},
		deadlines:  priority.New(func(a, b deadline) bool { return a.at.Before(b.at) }),
		wakes:      priority.New(func(a, b wake) bool { return a.at.Before(b.at) }),
		aging:      map[command.ID]struct{}{},
		ages:       priority.New(func(a, b overdue) bool { return a.at < b.at }),
		flipped:    true,
		limits:     limits,
		uploads:    newUploads(m, now, limits.UploadIdle),
		settingsOf: settingsOf,
	}
	for _, s := range m.Sessions() {
		if !s.Vanished {
			o.sessions[s.ID] = newSession(s, now)
		}
	}
	o.slots = newSyncSlots(o.sessions)
	for c := range m.Unfinished() {
		o.enter(fsm.Change{Call: c}, now, true)
	}
	o.tick(now)
	return o
}

// apply follows the state machine. Changes seen before are passed over.
func (o *office) apply(index uint64, changes []fsm.Change, now time.Time) {
	if index <= o.applied {
		return
	}
	o.applied = index
	for _, c := range changes {
		switch c.Topic {
		case fsm.TopicCall:
			o.enter(c, now, false)
		case fsm.TopicSession:
			o.changeSession(*c.Session, now)
		case fsm.TopicOverride:
			o.facts = index
		case fsm.TopicUpload:
			o.uploads.change(*c.Upload, now)
		}
	}
}

// enter brings a call to its place. loading: found when taking office, not moved just now.
func (o *office) enter(c fsm.Change, now time.Time, loading bool) {
	l := o.lane(c.Call.Function, now)
	o.count(l, c)
	o.age(c.Call, now)
	known := o.runs[c.Call.ID]
	switch c.Call.State {
	case fsm.Running:
		o.start(l, c.Call, now, loading)
		return
	case fsm.Awaiting:
		o.await(l, known, c.Call, now)
		return
	}
	if known != nil {
		o.close(known, c.Call)
	}
	switch c.Call.State {
	case fsm.Queued:
		if c.From == fsm.Dead { // redriven: it comes back to a place that may be marked
			l.sweep()
		}
		if p := o.pending[c.Call.ID]; p != nil && p.direct && known == nil {
			p.seq = c.Call.Seq // its grant is in the same entry, or comes back
			return
		}
		l.due.Push(place{c.Call.Seq, c.Call.ID})
		o.look(l)
	case fsm.Waiting:
		l.waiting.Push(retry{c.Call.NextTryUnixMs, place{c.Call.Seq, c.Call.ID}})
		o.ripen(l, now)
	default:
		if known == nil && (c.From == fsm.Queued || c.From == fsm.Waiting) {
			if p := o.pending[c.Call.ID]; p == nil {
				l.cancelled[c.Call.Seq] = struct{}{}
			}
		}
	}
}

// start is a grant that was committed.
func (o *office) start(l *lane, c fsm.Call, now time.Time, loading bool) {
	r := &run{Call: c, lane: l, spec: l.Spec, since: now, session: o.sessions[c.Session], sent: loading}
	p := o.pending[c.ID]
	if p != nil {
		delete(o.pending, c.ID)
		r.spec, r.slot, r.load, r.direct = p.spec, true, true, p.direct
	} else {
		l.take(c.Replica)
		r.slot = true
		if r.session != nil {
			r.session.load++
			r.load = true
		}
	}
	if r.spec == nil {
		o.unsettled++
	}
	o.runs[c.ID] = r
	o.setDeadline(r, now)
	if p != nil && p.bury {
		o.end(r, l, now)
		return
	}
	if r.session == nil {
		o.finish(r, noAnswer("edge lost"), now)
		return
	}
	r.session.hold(r)
	if loading {
		return
	}
	if r.session.link == nil || r.session.link.closed {
		o.finish(r, released("edge has no stream"), now)
		return
	}
	if r.direct {
		r.taken, r.sent = true, true
		return
	}
	r.session.send(outgoing{grant: r})
}

// await is a call whose function answered 202: it keeps its slot and leaves its session.
func (o *office) await(l *lane, r *run, c fsm.Call, now time.Time) {
	if r == nil {
		r = &run{lane: l, spec: l.Spec, slot: true}
		if r.spec == nil {
			o.unsettled++
		}
		l.take(c.Replica)
		o.runs[c.ID] = r
	} else {
		o.leaveSession(r, c)
	}
	r.Call, r.finish, r.since = c, nil, now
	if !r.slot {
		l.take(r.Replica)
		r.slot = true
	}
	o.setDeadline(r, now)
}

// close is the end of a try.
func (o *office) close(r *run, after fsm.Call) {
	delete(o.runs, r.ID)
	if r.spec == nil {
		o.unsettled--
	}
	o.leaveSession(r, after)
	o.freeSlot(r)
	r.deadline = time.Time{}
}

// leaveSession answers the edge: its result is durable, or the call has moved on without it.
func (o *office) leaveSession(r *run, after fsm.Call) {
	s := r.session
	if s == nil {
		return
	}
	s.drop(r)
	o.freeLoad(r)
	switch {
	case r.result && r.finish != nil && fits(r.finish, after):
		s.send(acknowledge(r.ID, r.Fence, codeOK))
	case r.result:
		s.send(acknowledge(r.ID, r.Fence, codeStale))
	case r.sent || r.taken:
		s.send(withdraw(r.ID, r.Fence, "call has moved on to "+stateName(after.State)))
	}
	r.session = nil
	r.result = false
}

// fits says whether the call is as this finish leaves it.
func fits(f *command.Finish, after fsm.Call) bool {
	if f.Outcome == command.OutcomeReleased {
		return after.State == fsm.Queued || after.State == fsm.Waiting
	}
	return after.State == stateAfter[f.Outcome] && after.LastStatus == f.Status
}

var stateAfter = map[command.Outcome]fsm.State{
	command.OutcomeSucceeded: fsm.Succeeded,
	command.OutcomeRetry:     fsm.Waiting,
	command.OutcomePostponed: fsm.Waiting,
	command.OutcomeDead:      fsm.Dead,
	command.OutcomeAwaiting:  fsm.Awaiting,
}

func (o *office) freeSlot(r *run) {
	if r.slot {
		r.slot = false
		r.lane.free(r.Replica)
		o.look(r.lane)
	}
}

func (o *office) freeLoad(r *run) {
	if r.load {
		r.load = false
		r.session.load--
	}
}

// finish decides the end of a try; it is proposed with the next batch. The slot is free from now on: the try is over, whatever
// becomes of the proposal. Not that of a released call: it comes back to its place first, and is the next. A try whose end is
// decided already keeps that end.
func (o *office) finish(r *run, e ending, now time.Time) {
	if r.finish != nil {
		return
	}
	f := decide(now.UnixMilli(), o.attempt(r), e)
	f.ID, f.Fence = r.ID, r.Fence
	r.finish = &f
	o.ended = append(o.ended, r)
	if f.Outcome != command.OutcomeAwaiting && f.Outcome != command.OutcomeReleased {
		o.freeSlot(r)
	}
	if r.session != nil {
		o.freeLoad(r)
	}
}

func (o *office) attempt(r *run) attempt {
	a := attempt{spec: r.spec, tries: r.Tries, maxTries: r.MaxTries, expire: r.ExpireUnixMs, keep: r.KeepResult}
	if a.spec == nil {
		a.spec = r.lane.Spec
	}
	return a
}

func (o *office) setDeadline(r *run, now time.Time) {
	spec := r.spec
	if spec == nil {
		spec = r.lane.Spec
	}
	r.deadline = now.Add(timeout(spec))
	if r.State == fsm.Running {
		r.deadline = r.deadline.Add(backstop)
	}
	o.deadlines.Push(deadline{r.deadline, r})
	if o.deadlines.Len() > 2*len(o.runs)+1024 {
		o.compact()
	}
}

// compact drops void deadlines: most tries end long before theirs.
func (o *office) compact() {
	o.deadlines.Take()
	for _, r := range o.runs {
		o.deadlines.Push(deadline{r.deadline, r})
	}
}

// tick is what time alone brings: sessions and tries that are over, calls that are due. Exact when called at next.
func (o *office) tick(now time.Time) {
	for o.deadlines.Len() > 0 && !o.deadlines.Top().at.After(now) {
		d := o.deadlines.Pop()
		if d.run.deadline != d.at || o.runs[d.ID] != d.run {
			continue
		}
		if d.State == fsm.Awaiting {
			o.finish(d.run, noAnswer("no callback in time"), now)
		} else {
			o.finish(d.run, noAnswer(fmt.Sprintf("no result within %s", timeout(o.attempt(d.run).spec))), now)
		}
	}
	for o.wakes.Len() > 0 && !o.wakes.Top().at.After(now) {
		w := o.wakes.Pop()
		if w.lane.wakeAt != w.at {
			continue
		}
		w.lane.wakeAt = time.Time{}
		w.lane.tidy(now)
		o.ripen(w.lane, now)
		o.look(w.lane)
	}
	o.tickAges(now)
	o.tickSlots(now)
	o.uploads.tick(now)
	if !o.expiry.After(now) {
		o.expire(now)
	}
}

func (o *office) expire(now time.Time) {
	o.expiry = now.Add(time.Minute)
	for _, s := range o.sessions {
		if s.ending {
			continue
		}
		end := s.seen.Add(s.ttl())
		if end.After(now) {
			o.expiry = earlier(o.expiry, end)
			continue
		}
		s.ending = true
		o.expired = append(o.expired, s)
	}
}

// next is when tick has something to do.
func (o *office) next() time.Time {
	at := o.expiry
	if o.deadlines.Len() > 0 {
		at = earlier(at, o.deadlines.Top().at)
	}
	if o.wakes.Len() > 0 {
		at = earlier(at, o.wakes.Top().at)
	}
	if o.ages.Len() > 0 {
		at = earlier(at, o.agesAt)
	}
	if len(o.uploads.by) > 0 {
		at = earlier(at, o.uploads.next)
	}
	if !o.slots.turn.IsZero() {
		at = earlier(at, o.slots.turn)
	}
	return at
}

// recheck looks again at what only the wall clock says: it may have been set.
func (o *office) recheck(now time.Time) {
	for _, l := range o.lanes {
		if l.waiting.Len() > 0 {
			o.ripen(l, now)
		}
	}
	o.tickAges(now)
}

func (o *office) ripen(l *lane, now time.Time) {
	nowMs := now.UnixMilli()
	moved, next := l.ripen(nowMs)
	if moved {
		o.look(l)
	}
	if next > 0 {
		o.wakeAt(l, now.Add(time.Duration(next-nowMs)*time.Millisecond))
	}
}

func (o *office) wakeAt(l *lane, at time.Time) {
	if l.wakeAt.IsZero() || at.Before(l.wakeAt) {
		l.wakeAt = at
		o.wakes.Push(wake{at, l})
	}
}

// look puts a lane among those that may have something to grant.
func (o *office) look(l *lane) {
	if !l.runnable && l.due.Len() > 0 {
		l.runnable = true
		o.runnable = append(o.runnable, l)
	}
}

func (o *office) lane(name string, now time.Time) *lane {
	l, ok := o.lanes[name]
	if !ok {
		l = newLane(name)
		o.lanes[name] = l
		if f, known := o.settingsOf(name); known {
			l.Function = f
		} else {
			l.goneSince = now
		}
	}
	return l
}

// setFunction takes a record of the table; known false: it is not, or no longer, in it.
func (o *office) setFunction(f Function, known bool, now time.Time) {
	o.planSlots(now, f.Name)
	l, ok := o.lanes[f.Name]
	if !ok {
		return // read when the first call comes
	}
	if !known {
		l.Function = Function{Name: f.Name}
		if l.goneSince.IsZero() {
			l.goneSince = now
		}
		return
	}
	l.Function, l.goneSince = f, time.Time{}
	clear(l.avoid)
	for name := range l.paused {
		if !l.has(name) { // under the same name something else may come
			delete(l.paused, name)
		}
	}
	if o.unsettled > 0 {
		o.settle(l, f.Spec)
	}
	o.look(l)
}

// settle gives tries that were found before the table their settings, and their deadlines.
func (o *office) settle(l *lane, spec *function.Specification) {
	for _, r := range o.runs {
		if r.lane == l && r.spec == nil {
			r.spec = spec
			o.unsettled--
			if r.finish == nil {
				o.setDeadline(r, r.since)
			}
		}
	}
}

// setSynced: the table is complete.
func (o *office) setSynced(now time.Time) {
	o.synced = true
	o.planAllSlots(now)
	for _, l := range o.lanes {
		o.look(l)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
