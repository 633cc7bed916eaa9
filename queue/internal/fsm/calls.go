package fsm

import (
	"strings"
	"unicode/utf8"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// maxKeep bounds what is added to a clock, in milliseconds: a hundred years.
const maxKeep = 100 * 365 * 24 * 3600 * 1000

// maxErrorText is how much of a try's error is remembered, in bytes.
const maxErrorText = 500

func (a *application) accept(c command.Accept) Result {
	if a.known(c.ID) {
		return Result{Repeated: true, ID: c.ID}
	}
	if c.Function == "" {
		return Result{Code: Invalid, Detail: "function is empty"}
	}
	body, refusal := a.uploaded(c)
	if refusal != nil && !a.Known(c) { // a repeat under its key needs no body
		return *refusal
	}
	if c.Key != "" {
		if known := a.useKey(c); known != nil {
			if known.Repeated && body != nil {
				a.dropUpload(body)
			}
			return *known
		}
	}
	a.Machine.seq++
	added := a.fresh()
	added.id, added.seq, added.function, added.enqueued, added.size = c.ID, a.seq, a.intern(c.Function), a.now, uint32(len(c.Payload))
	a.calls[c.ID] = added
	a.unfinished.push(added)
	added.function.counters.Accepted++
	payload := c.Payload
	if payload == nil {
		payload = []byte{} // nil would delete
	}
	a.put(BucketPayload, a.number(added.seq), payload)
	if c.PayloadAt != 0 {
		a.ops[len(a.ops)-1].Source = Source{Index: a.index, Offset: c.PayloadAt}
	}
	if c.ExpireUnixMs != 0 || c.KeepResultMs != 0 || body != nil {
		added.extras = &extras{expire: c.ExpireUnixMs, keepFor: c.KeepResultMs}
	}
	if body != nil {
		added.extras.body = &Body{Place: body.place, Parts: body.parts, Part: body.part, Size: body.size, Sum: c.Body.Sum}
		a.endUpload(body)
	}
	if c.NotBeforeUnixMs > a.now {
		added.nextTry = c.NotBeforeUnixMs
		a.move(added, Waiting)
	} else {
		a.move(added, Queued)
	}
	return Result{ID: c.ID}
}

func (a *application) grant(c command.Grant) Result {
	granted, ok := a.find(c.ID)
	if !ok {
		return Result{Code: NotFound, Detail: "no such call"}
	}
	if granted.state != Queued && granted.state != Waiting {
		return Result{Code: Conflict, Detail: "call is neither queued nor waiting"}
	}
	if !a.live(c.Session) {
		return Result{Code: Stale, Detail: "session is not live"}
	}
	granted.try = &try{
		session: c.Session, fence: a.index, replica: c.Replica, from: granted.state, started: granted.started,
	}
	granted.tries++
	granted.maxTries = c.MaxTries
	granted.started = a.now
	a.move(granted, Running)
	return Result{Index: a.index}
}

func (a *application) finish(c command.Finish) Result {
	tried, ok := a.find(c.ID)
	if !ok {
		return Result{Code: NotFound, Detail: "no such call"}
	}
	if tried.try == nil || tried.try.fence != c.Fence {
		return Result{Code: Stale, Detail: "the call has moved on"}
	}
	switch c.Outcome {
	case command.OutcomeReleased:
		if tried.state != Running {
			return Result{Code: Conflict, Detail: "a call that awaits its callback was sent"}
		}
		tried.tries--
		tried.started = tried.try.started
		from := tried.try.from
		tried.try = nil
		a.move(tried, from)
		return Result{}
	case command.OutcomeAwaiting:
		if tried.state == Awaiting {
			return Result{Repeated: true}
		}
	case command.OutcomeSucceeded, command.OutcomeRetry, command.OutcomeDead, command.OutcomePostponed:
	default:
		return Result{Code: Invalid, Detail: "unknown outcome"}
	}

	tried.lastStatus = c.Status
	tried.lastError = clip(c.Error)
	if len(c.Answer) > 0 {
		a.keep(tried, c.Answer)
	}
	switch c.Outcome {
	case command.OutcomeAwaiting:
		tried.try.session = 0
		a.move(tried, Awaiting)
	case command.OutcomeRetry, command.OutcomePostponed:
		if c.Outcome == command.OutcomePostponed {
			tried.tries--
		}
		a.dropAnswer(tried)
		tried.try = nil
		tried.nextTry = c.NextTryUnixMs
		a.move(tried, Waiting)
	case command.OutcomeSucceeded:
		a.end(tried, Succeeded)
	case command.OutcomeDead:
		a.end(tried, Dead)
	}
	return Result{}
}

func (a *application) cancel(c command.Cancel) Result {
	cancelled, ok := a.find(c.ID)
	if !ok {
		return Result{Code: NotFound, Detail: "no such call"}
	}
	if cancelled.state != Queued && cancelled.state != Waiting {
		return Result{Code: Conflict, Detail: "call runs or has ended"}
	}
	a.end(cancelled, Cancelled)
	return Result{}
}

func (a *application) bury(c command.Bury) Result {
	buried, ok := a.find(c.ID)
	if !ok {
		return Result{Code: NotFound, Detail: "no such call"}
	}
	if buried.state != Queued && buried.state != Waiting {
		return Result{Code: Conflict, Detail: "call runs or has ended"}
	}
	buried.lastError = clip(c.Error)
	a.end(buried, Dead)
	return Result{}
}

// end finishes a call for good. The payload of a dead one is kept: it is a dead letter until it is forgotten.
func (a *application) end(c *call, state State) {
	c.try = nil
	c.nextTry = 0
	c.finished = a.now
	a.Machine.ended++
	c.ended = a.ended
	a.unfinished.remove(c)
	if state != Dead {
		a.removePayload(c)
	}
	if c.extras != nil && c.extras.answer != 0 {
		c.extras.keptUntil = a.now + int64(min(c.extras.keepFor, maxKeep))
	}
	a.Machine.place(c, state)
	a.move(c, state)
}

// place puts an ended call where it belongs.
func (m *Machine) place(c *call, state State) {
	switch {
	case state == Dead:
		c.function.dead.push(c)
		m.dead++
	case c.extras != nil && c.extras.keptUntil != 0:
		m.kept.Push(c)
	default:
		m.finished.push(c)
	}
}

// keep puts away what the function answered, under a sequence of its own; without a caller who asked for it, nothing.
func (a *application) keep(c *call, answer []byte) {
	if c.extras == nil || c.extras.keepFor == 0 {
		return
	}
	a.dropAnswer(c)
	a.Machine.seq++
	c.extras.answer = a.seq
	a.put(BucketPayload, numberKey(a.seq), answer)
}

func (a *application) dropAnswer(c *call) {
	if c.extras != nil && c.extras.answer != 0 {
		a.remove(BucketPayload, numberKey(c.extras.answer))
		c.extras.answer, c.extras.keptUntil = 0, 0
	}
}

// move changes the state of a call, and everything that counts states.
func (a *application) move(c *call, state State) {
	from := c.state
	c.state = state
	c.function.counters.count(from, state)
	a.touch(c)
	a.changes = append(a.changes, Change{Call: c.export(), From: from})
}

// count moves one call; from 0 is a new one.
func (n *Counters) count(from, to State) {
	switch from {
	case Queued:
		n.Queued--
	case Running:
		n.Running--
	case Awaiting:
		n.Awaiting--
	case Waiting:
		n.Waiting--
	}
	switch to {
	case Queued:
		n.Queued++
	case Running:
		n.Running++
	case Awaiting:
		n.Awaiting++
	case Waiting:
		n.Waiting++
	case Succeeded:
		n.Succeeded++
	case Dead:
		n.Dead++
	case Cancelled:
		n.Cancelled++
	}
}

func (c *call) export() Call {
	e := Call{
		ID: c.id, Seq: c.seq, Function: c.function.name, State: c.state, Tries: c.tries, MaxTries: c.maxTries,
		EnqueuedUnixMs: c.enqueued, StartedUnixMs: c.started, FinishedUnixMs: c.finished,
		LastStatus: c.lastStatus, LastError: c.lastError, Size: c.size, Ended: c.ended,
	}
	if x := c.extras; x != nil {
		e.ExpireUnixMs, e.KeepResult, e.Answer, e.KeptUntilMs = x.expire, x.keepFor > 0, x.answer, x.keptUntil
		e.Body = x.body
	}
	if c.state == Waiting {
		e.NextTryUnixMs = c.nextTry
	}
	if c.try != nil {
		e.Session, e.Fence, e.Replica = c.try.session, c.try.fence, c.try.replica
	}
	return e
}

// clip cuts at a rune's edge and copies, so that no entry is kept in memory by a few of its bytes.
func clip(text string) string {
	if len(text) > maxErrorText {
		end := maxErrorText
		for end > 0 && !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end]
	}
	return strings.Clone(text)
}
