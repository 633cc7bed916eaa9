// Package reload looks again and again at files that may change while a program runs.
package reload

import (
	"context"
	"time"
)

// Every is how often they are looked at.
const Every = 2 * time.Second

// Watch looks every 2 s until ctx ends. failed is told an error of look when it is not the one before: a mistake in a file is worth
// one line, not one every two seconds.
func Watch(ctx context.Context, look func() error, failed func(error)) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	told := ""
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		switch err := look(); {
		case err == nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			failed(err)
		}
	}
}
