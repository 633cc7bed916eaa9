package decide_test

import (
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/decide"
)

// TestSquareWavesChangeTheScaleAtMostTwicePerIdleTime: a function that is called for half of every period and then left alone, at every
// period from 1 s to 120 s, for ten minutes.
func TestSquareWavesChangeTheScaleAtMostTwicePerIdleTime(t *testing.T) {
	t.Parallel()
	const idle, whole, step = 10 * time.Second, 10 * time.Minute, 250 * time.Millisecond
	for seconds := range 120 {
		period := time.Duration(seconds+1) * time.Second
		f := fn("wave", nil)
		changes := 0
		for at := time.Duration(0); at < whole; at += step {
			now := noon.Add(at)
			f.Open = decide.Open{}
			if called := at%period < period/2; called && f.Wanted == 0 {
				f.Open.Parked = 1
			} else if called {
				f.Open.InFlight = 1
			}
			if f.Open.Any() {
				f.LastActive, f.LastLive = now, now
			}
			if d := decide.NewFacts(now, []*decide.Function{f}).Decide(f); d.Replicas != f.Wanted {
				f.Wanted, f.Ready = d.Replicas, d.Replicas
				changes++
			}
		}
		most := 1 // it wakes once, and the pauses are too short for it to sleep
		if period/2+step > idle {
			most = 2 * int((whole+period-1)/period)
		}
		if changes > most || changes > 2*int(whole/idle) {
			t.Errorf("period %v: %d changes in ten minutes, want %d at most", period, changes, most)
		}
	}
}
