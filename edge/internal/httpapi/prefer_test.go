package httpapi

import (
	"testing"
	"time"
)

func TestPreferences(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lines []string
		want  Preferences
	}{
		{nil, Preferences{}},
		{[]string{"return=representation"}, Preferences{Representation: true}},
		{[]string{`Return = "Representation"; x=1`}, Preferences{Representation: true}},
		{[]string{"return=minimal, return=representation"}, Preferences{}},
		{[]string{"return=minimal"}, Preferences{}},
		{[]string{"respond-async, wait=10"}, Preferences{Async: true, Wait: 10 * time.Second, Limited: true}},
		{[]string{"handling=lenient", "RESPOND-ASYNC"}, Preferences{Async: true}},
		{[]string{"wait=0"}, Preferences{Limited: true}},
		{[]string{"wait=2, wait=7"}, Preferences{Wait: 2 * time.Second, Limited: true}},
		{[]string{"wait=-1, wait=1.5, wait=soon, wait", "wait=99999999999"}, Preferences{}},
		{[]string{"wait=2000000000"}, Preferences{Wait: maxPreferredWait, Limited: true}},
	} {
		if got := PreferencesOf(c.lines); got != c.want {
			t.Errorf("%q: %+v, want %+v", c.lines, got, c.want)
		}
	}
}
