package dispatch

import (
	"fmt"
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// unknownTimeout is for a try of a function that has left the table: nothing says how long it may take.
	unknownTimeout = 120 * time.Second
	// backstop is what a running try gets beyond its timeout before the leader ends it: the edge has ended it by then.
	backstop = 5 * time.Second

	statusAccepted      = 202
	statusCallbackOK    = 200
	statusCallbackError = 500
)

// ending is how one try ended, as the edge, a callback or a timer says.
type ending struct {
	outcome wire.TryOutcome
	status  uint32 // with ANSWERED
	text    string // why, for people
}

func noAnswer(text string) ending {
	return ending{outcome: wire.TryOutcome_TRY_OUTCOME_NO_ANSWER, text: text}
}

func released(text string) ending {
	return ending{outcome: wire.TryOutcome_TRY_OUTCOME_RELEASED, text: text}
}

// attempt is what an outcome is decided from: the settings of the function at the time of the try, nil if they are not known,
// and the number of this try.
type attempt struct {
	spec     *function.Specification
	tries    uint32 // this one included
	maxTries uint32 // when it was granted; used only without spec
}

// decide turns the end of a try into what the state machine is told. nowMs is the leader's wall clock.
func decide(nowMs int64, a attempt, e ending) command.Finish {
	switch e.outcome {
	case wire.TryOutcome_TRY_OUTCOME_RELEASED:
		return command.Finish{Outcome: command.OutcomeReleased, Error: e.text}
	case wire.TryOutcome_TRY_OUTCOME_ANSWERED:
		switch {
		case e.status == statusAccepted:
			return command.Finish{Outcome: command.OutcomeAwaiting, Status: e.status}
		case a.retries(e.status):
			return a.again(nowMs, e.status, fmt.Sprintf("status %d", e.status))
		case e.status < 400:
			return command.Finish{Outcome: command.OutcomeSucceeded, Status: e.status}
		default:
			return command.Finish{
				Outcome: command.OutcomeDead, Status: e.status, Error: fmt.Sprintf("status %d is not retried", e.status),
			}
		}
	default:
		text := e.text
		if text == "" {
			text = "no answer"
		}
		return a.again(nowMs, 0, text)
	}
}

func (a attempt) retries(status uint32) bool {
	return a.spec != nil && slices.Contains(a.spec.Configuration.DefaultAsync.HttpStatusRetries, int(status))
}

// again is a retry after the function's next delay, or the end after the last try.
func (a attempt) again(nowMs int64, status uint32, text string) command.Finish {
	f := command.Finish{Outcome: command.OutcomeRetry, Status: status, Error: text, NextTryUnixMs: nowMs}
	if a.spec == nil {
		if a.tries >= a.maxTries {
			f.Outcome, f.NextTryUnixMs = command.OutcomeDead, 0
		}
		return f
	}
	delays := a.spec.Configuration.DefaultAsync.TimeoutRetries
	if int(a.tries) > len(delays) {
		f.Outcome, f.NextTryUnixMs = command.OutcomeDead, 0
		return f
	}
	f.NextTryUnixMs += int64(max(0, delays[a.tries-1])) * 1000
	return f
}

// maxTries of a function: the first and one per delay.
func maxTries(spec *function.Specification) uint32 {
	if spec == nil {
		return 1
	}
	return uint32(1 + len(spec.Configuration.DefaultAsync.TimeoutRetries))
}

// timeout of one try.
func timeout(spec *function.Specification) time.Duration {
	if spec == nil || spec.Configuration.DefaultAsync.HttpTimeout <= 0 {
		return unknownTimeout
	}
	return time.Duration(spec.Configuration.DefaultAsync.HttpTimeout) * time.Second
}
