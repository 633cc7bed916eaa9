package dispatch

import (
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// overdue is a call with the end of its maximum age, UTC milliseconds.
type overdue struct {
	at int64
	id command.ID
}

// age follows a call with a maximum age. Its end is looked at once; a call that runs then is not buried (the state machine refuses),
// and is looked at again should it come back to wait.
func (o *office) age(c fsm.Call, now time.Time) {
	if c.ExpireUnixMs == 0 {
		return
	}
	if c.FinishedUnixMs != 0 {
		delete(o.aging, c.ID)
		if o.ages.Len() > 2*len(o.aging)+1024 { // most calls end long before
			o.compactAges()
		}
		return
	}
	waits := c.State == fsm.Queued || c.State == fsm.Waiting
	if _, known := o.aging[c.ID]; known && !(waits && c.ExpireUnixMs < now.UnixMilli()) {
		return
	}
	o.aging[c.ID] = struct{}{}
	o.ages.Push(overdue{c.ExpireUnixMs, c.ID})
	o.setAgesAt(now)
}

func (o *office) compactAges() {
	for _, a := range o.ages.Take() {
		if o.isAging(a.id) {
			o.ages.Push(a)
		}
	}
}

// tickAges brings calls whose time is over among what is proposed.
func (o *office) tickAges(now time.Time) {
	nowMs := now.UnixMilli()
	for o.ages.Len() > 0 && o.ages.Top().at < nowMs {
		if a := o.ages.Pop(); o.isAging(a.id) {
			o.overdue = append(o.overdue, a)
		}
	}
	o.setAgesAt(now)
}

func (o *office) isAging(id command.ID) bool {
	_, ok := o.aging[id]
	return ok
}

// setAgesAt keeps on the monotonic clock when the next one is over.
func (o *office) setAgesAt(now time.Time) {
	if o.ages.Len() > 0 {
		o.agesAt = now.Add(time.Duration(o.ages.Top().at+1-now.UnixMilli()) * time.Millisecond)
	}
}
