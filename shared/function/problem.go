package function

import (
	"fmt"
	"strings"
)

// maxProblems bounds what is reported of one function; the rest is counted.
const maxProblems = 32

// Problem is one value of one annotation that cannot be used.
type Problem struct {
	Key   string // the annotation; a member of a JSON annotation follows after a dot
	Value string // as written, shortened
	Want  string // what was expected, in words
}

// String is the problem as one line.
func (p Problem) String() string {
	return fmt.Sprintf("%s=%q: expected %s", p.Key, p.Value, p.Want)
}

// Problems are all that is wrong with one function. Nil: nothing is.
type Problems []Problem

// Strings is one line per problem.
func (p Problems) Strings() []string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return lines
}

// Error implements error; use Err where nil must mean no problem.
func (p Problems) Error() string {
	return strings.Join(p.Strings(), "; ")
}

// Err is the problems as an error; nil when there are none.
func (p Problems) Err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// report gathers while one function is parsed.
type report struct {
	problems Problems
	more     int // problems over maxProblems
	warnings []string
}

func (r *report) problem(key, value, want string, args ...any) {
	if len(r.problems) >= maxProblems {
		r.more++
		return
	}
	r.problems = append(r.problems, Problem{Key: key, Value: shorten(value), Want: fmt.Sprintf(want, args...)})
}

func (r *report) warn(text string, args ...any) {
	if len(r.warnings) < maxProblems {
		r.warnings = append(r.warnings, fmt.Sprintf(text, args...))
	}
}

func (r *report) all() Problems {
	if r.more > 0 {
		return append(r.problems, Problem{Key: "SlimFaas/*", Value: fmt.Sprintf("%d more", r.more), Want: "fewer problems than can be listed"})
	}
	return r.problems
}

// shorten keeps a value readable in a log line and small in a table record.
func shorten(value string) string {
	const limit = 80
	runes := 0
	for i := range value {
		if runes++; runes > limit {
			return value[:i] + "…"
		}
	}
	return value
}
