package fsm

import "github.com/slimfaas/slimfaas/queue/internal/command"

// redrive puts dead calls back. The place in the order of acceptance stays, and with it the payload.
func (a *application) redrive(c command.Redrive) Result {
	return a.eachDead(c.DeadCalls, func(c *call) {
		c.function.dead.remove(c)
		a.Machine.dead--
		a.dropAnswer(c)
		c.tries, c.maxTries, c.started, c.finished, c.ended = 0, 0, 0, 0, 0
		if c.extras != nil {
			c.extras.expire = 0 // it would be dead again at once
		}
		a.unfinished.push(c)
		c.function.counters.Redriven++
		a.move(c, Queued)
	})
}

// purge forgets dead calls before their time; that changes no counter.
func (a *application) purge(c command.Purge) Result {
	return a.eachDead(c.DeadCalls, a.drop)
}

// eachDead does something to the dead calls that are meant, which takes each out of its list.
func (a *application) eachDead(which command.DeadCalls, do func(*call)) Result {
	f := a.functions[which.Function]
	if f == nil {
		return Result{}
	}
	if which.ID != (command.ID{}) {
		c := a.calls[which.ID]
		if c == nil || c.function != f || c.state != Dead {
			return Result{}
		}
		do(c)
		return Result{Count: 1}
	}
	var r Result
	var done int64
	for c := f.dead.first; c != nil && c.ended <= which.UpTo; c = f.dead.first {
		if which.Limit > 0 && done >= int64(which.Limit) {
			r.More = true
			break
		}
		done += c.weight()
		do(c)
		r.Count++
	}
	return r
}
