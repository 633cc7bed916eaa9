package raftnode

import "runtime/debug"

const (
	// garbageBytes may be on the heap besides what is alive, whatever that is: with the runtime's default a backlog of 150 MiB
	// would be let grow to 300 before it is looked at.
	garbageBytes = 40 << 20
	// aliveBytes of a node without a backlog, about.
	aliveBytes = 24 << 20
	// minCollect and maxCollect are the bounds of the runtime's percentage.
	minCollect, maxCollect = 10, 100
)

// collector keeps the runtime's garbage in step with the backlog, whose chunks cost a collection nothing. Percentages that an
// operator set by GOGC are left alone.
type collector struct {
	off     bool
	percent int
}

func newCollector() collector {
	if before := debug.SetGCPercent(maxCollect); before != maxCollect {
		debug.SetGCPercent(before)
		return collector{off: true}
	}
	return collector{percent: maxCollect}
}

// pace by the bytes of the index. The dispatcher of a leader has about half as many again.
func (c *collector) pace(index int) {
	if c.off {
		return
	}
	alive := aliveBytes + index + index/2
	percent := min(max(garbageBytes*100/alive, minCollect), maxCollect)
	if percent > c.percent*9/10 && percent < c.percent*11/10 { // setting it stops the world for a moment
		return
	}
	c.percent = percent
	debug.SetGCPercent(percent)
}
