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

	// maxPause bounds what a function may ask for with Retry-After, minPause what is taken for an answer to "when".
	maxPause = 10 * time.Minute
	minPause = time.Second

	statusAccepted      = 202
	statusTooMany       = 429
	statusUnavailable   = 503
	statusCallbackOK    = 200
	statusCallbackError = 500
)

// ending is how one try ended, as the edge, a callback or a timer says.
type ending struct {
	outcome wire.TryOutcome
	status  uint32 // with ANSWERED
	text    string // why, for people
	// later is what the function asked for with Retry-After, with ANSWERED; 0: nothing.
	later  time.Duration
	answer []byte // what it answered, when the caller asked to keep it
}

// pause is how long the function asked to be left alone: 429 or 503 with Retry-After. 0: it did not.
func (e ending) pause() time.Duration {
	if e.outcome != wire.TryOutcome_TRY_OUTCOME_ANSWERED || e.later <= 0 || e.status != statusTooMany && e.status != statusUnavailable {
		return 0
	}
	return min(max(e.later, minPause), maxPause)
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
	expire   int64  // no try begins later, UTC milliseconds; 0: never
	keep     bool   // the caller asked to keep the answer
}

// decide turns the end of a try into what the state machine is told. nowMs is the leader's wall clock.
func decide(nowMs int64, a attempt, e ending) command.Finish {
	switch e.outcome {
	case wire.TryOutcome_TRY_OUTCOME_RELEASED:
		return command.Finish{Outcome: command.OutcomeReleased, Error: e.text}
	case wire.TryOutcome_TRY_OUTCOME_ANSWERED:
		f := a.answered(nowMs, e)
		if a.keep && f.Outcome != command.OutcomeRetry && f.Outcome != command.OutcomePostponed {
			f.Answer = e.answer
		}
		return f
	default:
		text := e.text
		if text == "" {
			text = "no answer"
		}
		return a.again(nowMs, 0, text)
	}
}

func (a attempt) answered(nowMs int64, e ending) command.Finish {
	switch pause := e.pause(); {
	case pause > 0:
		text := fmt.Sprintf("status %d, to be tried again after %s", e.status, pause)
		return a.unlessExpired(command.Finish{
			Outcome: command.OutcomePostponed, Status: e.status, Error: text, NextTryUnixMs: nowMs + pause.Milliseconds(),
		})
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
		return a.unlessExpired(f)
	}
	delays := a.spec.Configuration.DefaultAsync.TimeoutRetries
	if int(a.tries) > len(delays) {
		f.Outcome, f.NextTryUnixMs = command.OutcomeDead, 0
		return f
	}
	f.NextTryUnixMs += int64(max(0, delays[a.tries-1])) * 1000
	return a.unlessExpired(f)
}

// expired is the beginning of the last error of a call over its maximum age.
const expired = "expired: over its maximum age"

// unlessExpired turns a try to come into the end of the call, when it would begin too late.
func (a attempt) unlessExpired(f command.Finish) command.Finish {
	if a.expire != 0 && f.NextTryUnixMs > a.expire {
		return command.Finish{
			Outcome: command.OutcomeDead, Status: f.Status, Error: fmt.Sprintf("%s before its next try (%s)", expired, f.Error),
		}
	}
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
