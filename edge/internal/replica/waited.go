package replica

import (
	"errors"
	"fmt"
	"time"
)

// Why a request that waited got no replica.
var (
	// ErrParkedFull: as many wait as may.
	ErrParkedFull = errors.New("too many requests wait for a replica")
	// ErrNotInTime: the function's patience is over.
	ErrNotInTime = errors.New("no replica was ready in time")
	// ErrGone: the function left the table meanwhile.
	ErrGone = errors.New("the function is gone")
	// ErrBroken: its annotations are invalid, so nobody starts it.
	ErrBroken = errors.New("the function is broken")
)

// Waited says where the time of a cold call went. The zero Waited did not wait.
type Waited struct {
	Wake  time.Duration // until the table showed the function wanted
	Start time.Duration // until a replica had an address
	Probe time.Duration // until it could be used
}

// ServerTiming is the value of the Server-Timing header, in milliseconds.
func (w Waited) ServerTiming() string {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return fmt.Sprintf("wake;dur=%.1f, start;dur=%.1f, probe;dur=%.1f", ms(w.Wake), ms(w.Start), ms(w.Probe))
}
