package dispatch

import (
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func specification(delays []int, statuses ...int) *function.Specification {
	s := function.Default()
	s.Configuration.DefaultAsync = function.RetryConfiguration{HttpTimeout: 30, TimeoutRetries: delays, HttpStatusRetries: statuses}
	return &s
}

func TestHowATryEnds(t *testing.T) {
	t.Parallel()
	const now = 1_000_000
	two := specification([]int{2, 4}, 500, 202, 302)
	answered := func(status uint32) ending {
		return ending{outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, status: status}
	}
	for name, x := range map[string]struct {
		spec     *function.Specification
		tries    uint32
		ending   ending
		outcome  command.Outcome
		status   uint32
		next     int64
		text     string
		maxTries uint32
	}{
		"200":                           {spec: two, tries: 1, ending: answered(200), outcome: command.OutcomeSucceeded, status: 200},
		"204 on the last try":           {spec: two, tries: 3, ending: answered(204), outcome: command.OutcomeSucceeded, status: 204},
		"304 is an answer":              {spec: two, tries: 1, ending: answered(304), outcome: command.OutcomeSucceeded, status: 304},
		"202 awaits, even if listed":    {spec: two, tries: 3, ending: answered(202), outcome: command.OutcomeAwaiting, status: 202},
		"listed below 400 is retried":   {spec: two, tries: 1, ending: answered(302), outcome: command.OutcomeRetry, status: 302, next: now + 2000, text: "status 302"},
		"listed, first try":             {spec: two, tries: 1, ending: answered(500), outcome: command.OutcomeRetry, status: 500, next: now + 2000, text: "status 500"},
		"listed, second try":            {spec: two, tries: 2, ending: answered(500), outcome: command.OutcomeRetry, status: 500, next: now + 4000, text: "status 500"},
		"listed, last try":              {spec: two, tries: 3, ending: answered(500), outcome: command.OutcomeDead, status: 500, text: "status 500"},
		"settings were shortened":       {spec: two, tries: 9, ending: answered(500), outcome: command.OutcomeDead, status: 500, text: "status 500"},
		"not listed":                    {spec: two, tries: 1, ending: answered(503), outcome: command.OutcomeDead, status: 503, text: "status 503 is not retried"},
		"no answer, nothing listed":     {spec: specification([]int{1}), tries: 1, ending: noAnswer("cut"), outcome: command.OutcomeRetry, next: now + 1000, text: "cut"},
		"no answer, no word":            {spec: specification(nil), tries: 1, ending: noAnswer(""), outcome: command.OutcomeDead, text: "no answer"},
		"unspecified counts as none":    {spec: two, tries: 1, ending: ending{}, outcome: command.OutcomeRetry, next: now + 2000, text: "no answer"},
		"released":                      {spec: two, tries: 3, ending: released("gone"), outcome: command.OutcomeReleased, text: "gone"},
		"unknown function, 200":         {tries: 1, maxTries: 3, ending: answered(200), outcome: command.OutcomeSucceeded, status: 200},
		"unknown function, 500":         {tries: 1, maxTries: 3, ending: answered(500), outcome: command.OutcomeDead, status: 500, text: "status 500 is not retried"},
		"unknown function, no answer":   {tries: 1, maxTries: 3, ending: noAnswer("x"), outcome: command.OutcomeRetry, next: now, text: "x"},
		"unknown function, last answer": {tries: 3, maxTries: 3, ending: noAnswer("x"), outcome: command.OutcomeDead, text: "x"},
	} {
		got := decide(now, attempt{spec: x.spec, tries: x.tries, maxTries: x.maxTries}, x.ending)
		want := command.Finish{Outcome: x.outcome, Status: x.status, NextTryUnixMs: x.next, Error: x.text}
		if got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}
