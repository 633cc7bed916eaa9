// Package testkit has what tests of several modules share: waiting for a black box with a deadline, and a TCP proxy that
// misbehaves on request. Only tests and the integration module import it.
package testkit

import (
	"testing"
	"time"
)

// Every is the pace at which Eventually looks.
const Every = 2 * time.Millisecond

// Eventually polls until holds answers true, and fails the test when it has not within the time. what says what was
// expected, as the rest of a sentence: "the edge is ready".
func Eventually(t testing.TB, within time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			if holds() {
				return
			}
			t.Fatalf("not within %v: %s", within, what)
		case <-t.Context().Done():
			t.Fatalf("the test ended while waiting: %s", what)
		}
	}
}

// Stays polls for the whole time and fails the test as soon as holds answers false.
func Stays(t testing.TB, during time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(during)
	defer deadline.Stop()
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		if !holds() {
			t.Fatalf("no longer: %s", what)
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		case <-t.Context().Done():
			return
		}
	}
}
