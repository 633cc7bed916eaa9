package function

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // images have no zone files, and a laptop's may differ
)

func readSchedule(text string, r *report) Schedule {
	schedule := Default().Schedule
	root, ok := document(AnnotationSchedule, text, r)
	if !ok {
		return schedule
	}
	if zone := strings.TrimSpace(root.text("TimeZoneID", defaultZone)); zone != "" {
		schedule.TimeZoneID = zone
	}
	if _, err := loadZone(schedule.TimeZoneID); err != nil {
		r.problem(AnnotationSchedule+".TimeZoneID", schedule.TimeZoneID, "a time zone of the IANA database, such as Europe/Paris")
		schedule.TimeZoneID = defaultZone
	}
	rules, _ := root.section("Default")
	wakeUps, _ := rules.list("WakeUp")
	for i, item := range wakeUps {
		at := fmt.Sprintf("WakeUp[%d]", i)
		if word, ok := item.(string); !ok {
			rules.wrong(at, item, "a local time HH:mm in quotes")
		} else if minute, ok := minuteOfDay(word); !ok {
			rules.wrong(at, item, "a local time from 00:00 to 23:59")
		} else {
			schedule.Default.WakeUp = append(schedule.Default.WakeUp, clock(minute))
		}
	}
	for _, s := range rules.sections("ScaleDownTimeout") {
		word := s.text("Time", "00:00")
		value := s.whole("Value", 0, atLeast(0, "seconds"))
		s.done()
		minute, ok := minuteOfDay(word)
		if !ok {
			s.wrong("Time", word, "a local time from 00:00 to 23:59")
			continue
		}
		schedule.Default.ScaleDownTimeout = append(schedule.Default.ScaleDownTimeout, ScaleDownTimeout{Time: clock(minute), Value: value})
	}
	rules.done()
	root.done()
	return schedule.located()
}

// minuteOfDay reads H:mm, blanks allowed around both numbers.
func minuteOfDay(text string) (int, bool) {
	hours, minutes, ok := strings.Cut(text, ":")
	h, errH := strconv.ParseUint(strings.TrimSpace(hours), 10, 8)
	m, errM := strconv.ParseUint(strings.TrimSpace(minutes), 10, 8)
	if !ok || errH != nil || errM != nil || h > 23 || m > 59 {
		return 0, false
	}
	return int(h)*60 + int(m), true
}

func clock(minute int) string { return fmt.Sprintf("%02d:%02d", minute/60, minute%60) }

// loadZone refuses "Local", which differs from machine to machine.
func loadZone(id string) (*time.Location, error) {
	if id == "Local" || id == "" {
		return nil, fmt.Errorf("zone %q is not a place", id)
	}
	return time.LoadLocation(id)
}

// located has the zone at hand; without it every question would load it again.
func (s Schedule) located() Schedule {
	s.zone = nil
	if len(s.Default.WakeUp) > 0 || len(s.Default.ScaleDownTimeout) > 0 {
		s.zone, _ = loadZone(s.TimeZoneID)
	}
	return s
}

// location is UTC for a zone this machine does not know, which Parse would have refused.
func (s Schedule) location() *time.Location {
	if s.zone != nil && s.zone.String() == s.TimeZoneID {
		return s.zone
	}
	if zone, err := loadZone(s.TimeZoneID); err == nil {
		return zone
	}
	return time.UTC
}

// LastWake is the latest scheduled wake at or before now; false when none is scheduled.
func (s Specification) LastWake(now time.Time) (time.Time, bool) {
	rules := s.Schedule.Default.WakeUp
	if len(rules) == 0 {
		return time.Time{}, false
	}
	var last time.Time
	zone := s.Schedule.location()
	for _, rule := range rules {
		for _, at := range around(now, rule, zone) {
			if !at.After(now) && at.After(last) {
				last = at
			}
		}
	}
	return last, !last.IsZero()
}

// IdleTimeout is how long the function may be idle before it goes to ReplicasMin, at this time of day. A single
// ScaleDownTimeout holds from its time until midnight; of several, each holds until the next one, over midnight too.
func (s Specification) IdleTimeout(now time.Time) time.Duration {
	value := s.TimeoutSecondBeforeSetReplicasMin
	rules := s.Schedule.Default.ScaleDownTimeout
	if len(rules) > 0 {
		zone := s.Schedule.location()
		var last time.Time
		for _, rule := range rules {
			for _, at := range around(now, rule.Time, zone) {
				today := sameDay(at, now, zone)
				if at.Before(now) && at.After(last) && (today || len(rules) > 1) {
					last, value = at, rule.Value
				}
			}
		}
	}
	return time.Duration(value) * time.Second
}

// NextScheduled is the first instant after now at which LastWake or IdleTimeout may answer differently; false: never.
func (s Specification) NextScheduled(now time.Time) (time.Time, bool) {
	var next time.Time
	zone := s.Schedule.location()
	consider := func(rule string, after time.Duration) {
		for _, at := range around(now, rule, zone) {
			if at = at.Add(after); at.After(now) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	for _, rule := range s.Schedule.Default.WakeUp {
		consider(rule, 0)
	}
	timeouts := s.Schedule.Default.ScaleDownTimeout
	for _, rule := range timeouts {
		consider(rule.Time, 1) // it holds after its time, not at it
	}
	if len(timeouts) == 1 {
		consider("00:00", 0)
	}
	return next, !next.IsZero()
}

func sameDay(a, b time.Time, zone *time.Location) bool {
	ya, ma, da := a.In(zone).Date()
	yb, mb, db := b.In(zone).Date()
	return ya == yb && ma == mb && da == db
}

// around lists the instants of a local time on the local calendar days near now: two back, because a clock change can make a
// day's instant fall on the next, and one ahead. Upstream takes the UTC day, which is wrong around midnight far from Greenwich.
func around(now time.Time, rule string, zone *time.Location) []time.Time {
	minute, ok := minuteOfDay(rule)
	if !ok {
		return nil
	}
	year, month, day := now.In(zone).Date()
	instants := make([]time.Time, 0, 4)
	for offset := -2; offset <= 1; offset++ {
		instants = append(instants, lenient(year, month, day+offset, minute, zone))
	}
	return instants
}

// lenient turns a local time into an instant: of a doubled local time the earlier, a skipped one moves forward by the gap.
// time.Date leaves open which it takes.
func lenient(year int, month time.Month, day, minute int, zone *time.Location) time.Time {
	wall := time.Date(year, month, day, minute/60, minute%60, 0, 0, time.UTC)
	_, before := wall.AddDate(0, 0, -1).In(zone).Zone()
	_, after := wall.AddDate(0, 0, 1).In(zone).Zone()
	first := wall.Add(-time.Duration(before) * time.Second)
	second := wall.Add(-time.Duration(after) * time.Second)
	if shows(first, wall, zone) || !shows(second, wall, zone) {
		return first
	}
	return second
}

// shows reports whether a clock on the zone's wall reads wall at that instant.
func shows(instant, wall time.Time, zone *time.Location) bool {
	_, offset := instant.In(zone).Zone()
	return instant.Add(time.Duration(offset) * time.Second).Equal(wall)
}
