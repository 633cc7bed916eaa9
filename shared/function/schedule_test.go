package function_test

import (
	"slices"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
)

func TestScheduleIsChecked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		zone       string
		wakeUp     []string
		timeouts   []function.ScaleDownTimeout
		problem    string
	}{
		{"example of the contract", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00","21:00"],"ScaleDownTimeout":[{"Time":"07:00","Value":20},{"Time":"21:00","Value":10}]}}`,
			"Europe/Paris", []string{"07:00", "21:00"}, []function.ScaleDownTimeout{{"07:00", 20}, {"21:00", 10}}, ""},
		{"default zone", `{"Default":{"WakeUp":["7:5"," 08 : 00 "]}}`, "GB", []string{"07:05", "08:00"}, nil, ""},
		{"nulls", `{"TimeZoneID":null,"Default":null}`, "GB", nil, nil, ""},
		{"null lists", `{"TimeZoneID":"","Default":{"WakeUp":null,"ScaleDownTimeout":null}}`, "GB", nil, nil, ""},
		{"defaults of a timeout", `{"Default":{"ScaleDownTimeout":[{}]}}`, "GB", nil, []function.ScaleDownTimeout{{"00:00", 0}}, ""},
		{"unknown zone", `{"TimeZoneID":"Europe/Pariss"}`, "GB", nil, nil, `SlimFaas/Schedule.TimeZoneID="Europe/Pariss": expected a time zone`},
		{"zone of this machine", `{"TimeZoneID":"Local"}`, "GB", nil, nil, "a time zone"},
		{"zone outside the database", `{"TimeZoneID":"../../etc/passwd"}`, "GB", nil, nil, "a time zone"},
		{"hour out of range", `{"Default":{"WakeUp":["24:00","06:00"]}}`, "GB", []string{"06:00"}, nil, `Default.WakeUp[0]="\"24:00\""`},
		{"no time", `{"Default":{"WakeUp":["dawn"]}}`, "GB", nil, nil, "from 00:00 to 23:59"},
		{"seconds", `{"Default":{"WakeUp":["07:00:00"]}}`, "GB", nil, nil, "from 00:00 to 23:59"},
		{"number for a time", `{"Default":{"WakeUp":[7]}}`, "GB", nil, nil, "HH:mm in quotes"},
		{"minute out of range", `{"Default":{"ScaleDownTimeout":[{"Time":"07:60","Value":1}]}}`, "GB", nil, nil, "ScaleDownTimeout[0].Time"},
		{"negative value", `{"Default":{"ScaleDownTimeout":[{"Time":"07:00","Value":-1}]}}`, "GB", nil, []function.ScaleDownTimeout{{"07:00", 0}}, "seconds, at least 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec, problems := function.Parse("f", map[string]string{"SlimFaas/Schedule": tt.text})
			s := spec.Schedule
			if s.TimeZoneID != tt.zone || !slices.Equal(s.Default.WakeUp, tt.wakeUp) || !slices.Equal(s.Default.ScaleDownTimeout, tt.timeouts) {
				t.Errorf("schedule %+v", s)
			}
			checkProblem(t, problems, tt.problem)
		})
	}
}

func at(t testing.TB, text string) time.Time {
	t.Helper()
	instant, err := time.Parse("2006-01-02 15:04Z07:00", text)
	if err != nil {
		t.Fatal(err)
	}
	return instant
}

func TestLastWake(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, schedule, now, want string }{
		{"nothing scheduled", `{}`, "2026-06-10 12:00Z", ""},
		{"latest of today", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00","21:00","09:00"]}}`, "2026-06-10 12:00Z", "2026-06-10 07:00Z"},
		{"at the instant", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00"]}}`, "2026-06-10 05:00Z", "2026-06-10 05:00Z"},
		{"just before", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00"]}}`, "2026-06-10 04:59Z", "2026-06-09 05:00Z"},
		{"latest of yesterday", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00","21:00"]}}`, "2026-06-10 03:00Z", "2026-06-09 19:00Z"},
		{"local day ahead of UTC", `{"TimeZoneID":"Pacific/Auckland","Default":{"WakeUp":["07:00"]}}`, "2026-06-09 20:00Z", "2026-06-09 19:00Z"},
		{"local day behind UTC", `{"TimeZoneID":"Pacific/Honolulu","Default":{"WakeUp":["20:00"]}}`, "2026-06-10 07:00Z", "2026-06-10 06:00Z"},
		{"yesterday was in winter time", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00"]}}`, "2026-03-29 04:00Z", "2026-03-28 06:00Z"},
		{"skipped hour", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["02:30"]}}`, "2026-03-29 12:00Z", "2026-03-29 01:30Z"},
		{"doubled hour", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["02:30"]}}`, "2026-10-25 12:00Z", "2026-10-25 00:30Z"},
		{"skipped hour in the west", `{"TimeZoneID":"America/New_York","Default":{"WakeUp":["02:30"]}}`, "2026-03-08 12:00Z", "2026-03-08 07:30Z"},
		{"skipped midnight", `{"TimeZoneID":"America/Santiago","Default":{"WakeUp":["00:00"]}}`, "2026-09-06 12:00Z", "2026-09-06 04:00Z"},
		{"skipped day", `{"TimeZoneID":"Pacific/Apia","Default":{"WakeUp":["12:00"]}}`, "2011-12-30 12:00Z", "2011-12-29 22:00Z"},
		{"default zone in summer", `{"Default":{"WakeUp":["07:00"]}}`, "2026-06-10 12:00Z", "2026-06-10 06:00Z"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := withRules(t, "Schedule", tt.schedule)
			last, ok := spec.LastWake(at(t, tt.now))
			if ok != (tt.want != "") || ok && !last.Equal(at(t, tt.want)) {
				t.Errorf("LastWake = %v, %v; want %q", last.UTC(), ok, tt.want)
			}
			decoded, err := function.Decode(function.Encode(spec))
			if err != nil {
				t.Fatal(err)
			}
			if again, _ := decoded.LastWake(at(t, tt.now)); !again.Equal(last) {
				t.Errorf("after Decode it is %v", again)
			}
		})
	}
}

func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	const (
		two = `{"TimeZoneID":"Europe/Paris","Default":{"ScaleDownTimeout":[{"Time":"8:00","Value":60},{"Time":"21:00","Value":10}]}}`
		one = `{"TimeZoneID":"Europe/Paris","Default":{"ScaleDownTimeout":[{"Time":"8:00","Value":60}]}}`
	)
	for _, tt := range []struct {
		name, schedule, now string
		want                time.Duration
	}{
		{"none", `{}`, "2026-06-10 12:00Z", 77 * time.Second},
		{"two, by day", two, "2026-06-10 09:30Z", 60 * time.Second},
		{"two, by night", two, "2026-06-10 22:30Z", 10 * time.Second},
		{"two, at the instant", two, "2026-06-10 06:00Z", 10 * time.Second},
		{"two, just after", two, "2026-06-10 06:01Z", 60 * time.Second},
		{"one, before it", one, "2026-06-10 05:00Z", 77 * time.Second},
		{"one, after it", one, "2026-06-10 07:00Z", 60 * time.Second},
		{"one, after local midnight", one, "2026-06-10 22:01Z", 77 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := withRules(t, "Schedule", tt.schedule, "TimeoutSecondBeforeSetReplicasMin", "77")
			if got := spec.IdleTimeout(at(t, tt.now)); got != tt.want {
				t.Errorf("IdleTimeout = %v, want %v", got, tt.want)
			}
		})
	}
}

// Between now and NextScheduled nothing changes; walking from one to the next therefore sees every change.
func TestNextScheduledMissesNoChange(t *testing.T) {
	t.Parallel()
	for _, schedule := range []string{
		`{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["02:30","07:00"],"ScaleDownTimeout":[{"Time":"8:00","Value":60},{"Time":"21:00","Value":10}]}}`,
		`{"TimeZoneID":"Pacific/Auckland","Default":{"ScaleDownTimeout":[{"Time":"8:00","Value":60}]}}`,
		`{"TimeZoneID":"America/Santiago","Default":{"WakeUp":["00:00"]}}`,
	} {
		spec := withRules(t, "Schedule", schedule)
		for _, start := range []string{"2026-03-27 00:00Z", "2026-10-23 00:00Z", "2026-09-04 00:00Z"} {
			now := at(t, start)
			next, _ := spec.NextScheduled(now)
			for range 4 * 24 * 60 {
				later := now.Add(time.Minute)
				wakeA, _ := spec.LastWake(now)
				wakeB, _ := spec.LastWake(later)
				changed := !wakeA.Equal(wakeB) || spec.IdleTimeout(now) != spec.IdleTimeout(later)
				if passed := !next.After(later); changed && !passed {
					t.Fatalf("%s: a change at %v, next was %v", schedule, later, next)
				}
				if !next.After(later) {
					next, _ = spec.NextScheduled(later)
				}
				now = later
			}
		}
	}
	if next, ok := function.Default().NextScheduled(time.Unix(0, 0)); ok {
		t.Errorf("next %v without a schedule", next)
	}
}

func BenchmarkLastWake(b *testing.B) {
	spec := withRules(b, "Schedule", `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00","21:00"]}}`)
	now := at(b, "2026-06-10 09:30Z")
	for b.Loop() {
		spec.LastWake(now)
	}
}
