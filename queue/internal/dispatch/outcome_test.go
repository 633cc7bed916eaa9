package dispatch

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

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
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestAFunctionThatSaysLaterIsLeftAlone(t *testing.T) {
	t.Parallel()
	const now = 1_000_000
	spec := specification([]int{2}, 503)
	for name, x := range map[string]struct {
		status  uint32
		later   time.Duration
		expire  int64
		outcome command.Outcome
		next    int64
	}{
		"429":                          {status: 429, later: 7 * time.Second, outcome: command.OutcomePostponed, next: now + 7000},
		"503, also where it is listed": {status: 503, later: 7 * time.Second, outcome: command.OutcomePostponed, next: now + 7000},
		"at least a second":            {status: 503, later: time.Millisecond, outcome: command.OutcomePostponed, next: now + 1000},
		"at most ten minutes":          {status: 429, later: time.Hour, outcome: command.OutcomePostponed, next: now + 600_000},
		"429 without Retry-After":      {status: 429, outcome: command.OutcomeDead},
		"503 without Retry-After":      {status: 503, outcome: command.OutcomeRetry, next: now + 2000},
		"another status with it":       {status: 500, later: time.Second, outcome: command.OutcomeDead},
		"beyond its maximum age":       {status: 429, later: 7 * time.Second, expire: now + 6999, outcome: command.OutcomeDead},
		"just within it":               {status: 429, later: 7 * time.Second, expire: now + 7000, outcome: command.OutcomePostponed, next: now + 7000},
	} {
		f := decide(now, attempt{spec: spec, tries: 1, expire: x.expire}, ending{
			outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, status: x.status, later: x.later,
		})
		if f.Outcome != x.outcome || f.NextTryUnixMs != x.next || f.Status != x.status || f.Error == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestARetryBeyondTheMaximumAgeIsTheEnd(t *testing.T) {
	t.Parallel()
	a := attempt{spec: specification([]int{2}), tries: 1, expire: 2999}
	if f := decide(1000, a, noAnswer("cut")); f.Outcome != command.OutcomeDead || !strings.HasPrefix(f.Error, "expired") || !strings.Contains(f.Error, "cut") {
		t.Errorf("too late: %+v", f)
	}
	a.expire = 3000
	if f := decide(1000, a, noAnswer("cut")); f.Outcome != command.OutcomeRetry || f.NextTryUnixMs != 3000 {
		t.Errorf("in time: %+v", f)
	}
}

func TestAnAnswerIsKeptWhenItWasAskedForAndIsTheLast(t *testing.T) {
	t.Parallel()
	for status, want := range map[uint32]bool{200: true, 202: true, 404: true, 500: false, 429: false} {
		for _, keep := range []bool{true, false} {
			a := attempt{spec: specification([]int{2}, 500), tries: 1, keep: keep}
			f := decide(0, a, ending{outcome: wire.TryOutcome_TRY_OUTCOME_ANSWERED, status: status, later: time.Second, answer: []byte("x")})
			if got := bytes.Equal(f.Answer, []byte("x")); got != (want && keep) {
				t.Errorf("status %d, asked for %v: kept %v", status, keep, got)
			}
		}
	}
}
