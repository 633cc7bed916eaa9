package dispatch

import (
	"context"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// housekeep proposes what is to be forgotten, and what has waited too long for a function that is gone.
func (d *Dispatcher) housekeep(ctx context.Context, o *office) {
	every := time.NewTicker(d.config.Limits.HousekeepEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
		d.bury(o)
		for d.forget(ctx) {
		}
	}
}

// forget proposes one Forget when it would do something; more: do it again.
func (d *Dispatcher) forget(ctx context.Context) (more bool) {
	now := time.Now()
	limits := d.config.Limits
	c := command.Forget{
		BeforeUnixMs:     now.Add(-limits.HistoryAge).UnixMilli(),
		DeadBeforeUnixMs: now.Add(-limits.DeadAge).UnixMilli(),
		KeepCount:        limits.KeepFinished,
		DeadKeepCount:    limits.KeepDead,
		Limit:            forgetLimit,
	}
	due := false
	d.config.Log.View(func(m *fsm.Machine) { due = m.Forgettable(c) })
	if !due {
		return false
	}
	results, _, err := d.config.Log.Propose(ctx, []command.Command{c})
	if err != nil {
		d.log.Debug("forgetting failed, trying again later", "err", err)
		return false
	}
	return results[0].More
}
