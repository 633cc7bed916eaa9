package dispatch

import "time"

// Limits of what the queue remembers.
type Limits struct {
	HistoryAge     time.Duration // of succeeded and cancelled calls; never below 10 min, in which a repeated accept is recognised
	DeadAge        time.Duration // of dead calls
	KeepFinished   uint64        // succeeded and cancelled calls at most; 0: no limit
	KeepDead       uint64        // dead calls at most; 0: no limit
	OrphanDeadAge  time.Duration // calls of a function that left the table are dead after this
	UploadIdle     time.Duration // an upload without a new part is dropped after this; 0: 60 s
	HousekeepEvery time.Duration // 0: 30 s
}

// minHistoryAge is the promise of a recognised repeat.
const minHistoryAge = 10 * time.Minute

func (l Limits) complete() Limits {
	l.HistoryAge = max(l.HistoryAge, minHistoryAge)
	if l.DeadAge <= 0 {
		l.DeadAge = 7 * 24 * time.Hour
	}
	if l.OrphanDeadAge <= 0 {
		l.OrphanDeadAge = 24 * time.Hour
	}
	if l.UploadIdle <= 0 {
		l.UploadIdle = time.Minute
	}
	if l.HousekeepEvery <= 0 {
		l.HousekeepEvery = 30 * time.Second
	}
	return l
}
