package async

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestATermIsSharedForATwentiethOfIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const d = 20 * time.Second
		var shared term
		began := time.Now()
		first := shared.within(d)
		time.Sleep(d / 20)
		if shared.within(d) != first {
			t.Error("not shared")
		}
		time.Sleep(time.Nanosecond)
		second := shared.within(d)
		if second == first {
			t.Error("shared for longer")
		}
		<-first.Done()
		if ended := time.Since(began); ended != d || context.Cause(first) != context.DeadlineExceeded { //nolint:errorlint // it is the cause itself
			t.Errorf("the first ends after %v: %v", ended, context.Cause(first))
		}
		<-second.Done()
	})
}
