package reload_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/shared/reload"
)

func TestAMistakeIsToldOnceUntilItIsMended(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		looks := []error{nil, errors.New("a"), errors.New("a"), errors.New("b"), nil, errors.New("b"), errors.New("b")}
		looked := 0
		var told []string
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		reload.Watch(ctx, func() error {
			looked++
			if looked == len(looks) {
				cancel()
			}
			return looks[looked-1]
		}, func(err error) { told = append(told, err.Error()) })
		if want := []string{"a", "b", "b"}; !slices.Equal(told, want) || looked != len(looks) || time.Since(began) != time.Duration(len(looks))*reload.Every {
			t.Errorf("told %q after %d looks in %v", told, looked, time.Since(began))
		}
	})
}
