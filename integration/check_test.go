package integration

import (
	"errors"
	"fmt"
	"time"
)

var errNotYet = errors.New("not yet")

// wantStatus turns an unexpected answer into an error.
func wantStatus(got, want int, body []byte, err error) error {
	switch {
	case err != nil:
		return err
	case got != want:
		return fmt.Errorf("answered %d, want %d: %.300s", got, want, body)
	}
	return nil
}

// pace shapes load: a client that thinks, a fault that lasts. It never waits for the system under test to get somewhere;
// that is what Cluster.Eventually is for.
func pace(d time.Duration) { <-time.After(d) }
