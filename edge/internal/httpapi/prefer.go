package httpapi

import (
	"strconv"
	"strings"
	"time"
)

// maxPreferredWait is as long a wait as a caller may name; nothing here waits longer anyway.
const maxPreferredWait = 24 * time.Hour

// Preferences are what of a caller's Prefer header (RFC 7240) an edge honours. What it does not understand is ignored, as the
// RFC asks.
type Preferences struct {
	// Representation: return=representation.
	Representation bool
	// Async: respond-async.
	Async bool
	// Wait is that of wait=N, and Limited says that there is one.
	Wait    time.Duration
	Limited bool
}

// PreferencesOf reads the lines of a Prefer header. Of a preference that is given twice the first counts.
func PreferencesOf(lines []string) Preferences {
	var p Preferences
	returned := false
	for _, line := range lines {
		for preference := range strings.SplitSeq(line, ",") {
			preference, _, _ = strings.Cut(preference, ";") // parameters
			name, value, _ := strings.Cut(preference, "=")
			value = strings.Trim(strings.TrimSpace(value), `"`)
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "return":
				p.Representation = p.Representation || !returned && strings.EqualFold(value, "representation")
				returned = true
			case "respond-async":
				p.Async = true
			case "wait":
				if seconds, err := strconv.ParseUint(value, 10, 31); err == nil && !p.Limited {
					p.Wait, p.Limited = min(time.Duration(seconds)*time.Second, maxPreferredWait), true
				}
			}
		}
	}
	return p
}
