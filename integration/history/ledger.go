// Package history decides after a fault test whether the promises were kept. It keeps what clients asked and were told (the
// ledger), what was seen of it, and the invocations and returns of register-like operations, outside everything that is
// being harmed. It knows nothing of processes: package cluster does the harm.
package history

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Outcome is what a client was told about one request.
type Outcome string

// Outcomes. The zero value is none of them and is reported as untrue.
const (
	OK      Outcome = "ok"      // accepted: it must be seen
	None    Outcome = "none"    // nothing was handed over: it must not be seen
	Unknown Outcome = "unknown" // either
)

// Attempt is one line of the ledger: one key, which is never used for two requests, and the answer.
type Attempt struct {
	Key     string
	ID      string // SlimFaas-Element-Id of a 202, or of an unknown outcome; for messages
	Outcome Outcome
}

// Ledger is an append-only list of attempts, safe for concurrent use. The zero value is empty.
type Ledger struct {
	mu       sync.Mutex
	attempts []Attempt // guarded by mu
}

// Add one attempt, once its outcome is known.
func (l *Ledger) Add(a Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempts = append(l.attempts, a)
}

// Attempts so far.
func (l *Ledger) Attempts() []Attempt {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.attempts)
}

// Report says how a ledger and what was seen fit together.
type Report struct {
	OK, None, Unknown int
	// UnknownSeen are those of the unknown ones that happened.
	UnknownSeen int
	// Again counts sightings beyond the first of each key: deliveries repeated, not records (of which there is one per key).
	Again int

	Lost       []string // answered ok and never seen
	Untrue     []string // answered none and seen
	Unexpected []string // seen and never asked for
}

// Check holds a ledger against what was seen: how often each key was. Duplicates are counted, not judged: how many a test
// allows depends on what it killed.
func Check(attempts []Attempt, seen map[string]int) Report {
	var r Report
	asked := make(map[string]bool, len(attempts))
	for _, a := range attempts {
		asked[a.Key] = true
		n := seen[a.Key]
		switch a.Outcome {
		case OK:
			r.OK++
			if n == 0 {
				r.Lost = append(r.Lost, a.Key+" (id "+a.ID+")")
			}
		case None:
			r.None++
			if n > 0 {
				r.Untrue = append(r.Untrue, a.Key)
			}
		case Unknown:
			r.Unknown++
			if n > 0 {
				r.UnknownSeen++
			}
		default:
			r.Untrue = append(r.Untrue, fmt.Sprintf("%s (outcome %q)", a.Key, a.Outcome))
		}
	}
	for key, n := range seen {
		if !asked[key] {
			r.Unexpected = append(r.Unexpected, key)
		}
		r.Again += max(0, n-1)
	}
	slices.Sort(r.Unexpected)
	return r
}

// Err is nil when nothing was lost, untrue or unexpected.
func (r Report) Err() error {
	if len(r.Lost)+len(r.Untrue)+len(r.Unexpected) == 0 {
		return nil
	}
	return fmt.Errorf("%s: lost %s; answered `none` and done %s; never asked for %s", r, some(r.Lost), some(r.Untrue), some(r.Unexpected))
}

// String is one line of figures.
func (r Report) String() string {
	return fmt.Sprintf("ledger: %d ok, %d refused, %d unknown (%d of them done); lost %d, untrue %d, unexpected %d, again %d",
		r.OK, r.None, r.Unknown, r.UnknownSeen, len(r.Lost), len(r.Untrue), len(r.Unexpected), r.Again)
}

// some of a list, so that a message about thousands can be read.
func some(list []string) string {
	const most = 5
	if len(list) <= most {
		return "[" + strings.Join(list, " ") + "]"
	}
	return fmt.Sprintf("[%s … %d more]", strings.Join(list[:most], " "), len(list)-most)
}
