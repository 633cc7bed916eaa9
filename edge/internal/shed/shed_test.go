package shed

import (
	"slices"
	"testing"
	"time"
)

func TestItTurnsAtTheLimitsAndKeepsItsMindBetween(t *testing.T) {
	t.Parallel()
	var turns []float64
	s := New(Rule{High: 80, Low: 60, Every: time.Second, RetryAfter: 5 * time.Second, Excluded: []string{"/health"}},
		func(_ bool, percent float64) { turns = append(turns, percent) })
	for _, step := range []struct {
		percent float64
		refuses bool
	}{{79.9, false}, {80, true}, {70, true}, {60.1, true}, {60, false}, {70, false}, {100, true}, {0, false}} {
		s.sample(step.percent)
		after, refuses := s.Refuses("/function/f")
		if refuses != step.refuses || refuses && after != 5*time.Second {
			t.Errorf("at %v %%: %v, %v", step.percent, refuses, after)
		}
		if _, refuses := s.Refuses("/HEALTH"); refuses {
			t.Errorf("at %v %% an excluded path is refused", step.percent)
		}
	}
	if want := []float64{80, 60, 100, 0}; !slices.Equal(turns, want) {
		t.Errorf("it turned at %v, want %v", turns, want)
	}
	if s.Refused() != 4 {
		t.Errorf("%d were refused", s.Refused())
	}
	var none *Shedder
	if _, refuses := none.Refuses("/"); refuses || none.Refused() != 0 {
		t.Error("no shedder refuses")
	}
}

func TestRulesThatCannotBe(t *testing.T) {
	t.Parallel()
	good := Rule{High: 80, Low: 60, Every: time.Second}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Rule){
		"low over high": func(r *Rule) { r.Low = 90 },
		"equal":         func(r *Rule) { r.Low = 80 },
		"negative":      func(r *Rule) { r.Low = -1 },
		"over 100":      func(r *Rule) { r.High = 101 },
		"too often":     func(r *Rule) { r.Every = 99 * time.Millisecond },
		"retry":         func(r *Rule) { r.RetryAfter = -1 },
	} {
		bad := good
		if change(&bad); bad.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPercentIsOfAllProcessors(t *testing.T) {
	t.Parallel()
	if got := percent(time.Second, time.Second, 2); got != 50 {
		t.Error(got)
	}
	if got := percent(time.Second, 0, 2); got != 0 {
		t.Error(got)
	}
	if processTime() <= 0 {
		t.Error("this process has used nothing")
	}
}
