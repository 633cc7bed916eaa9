package function

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// maxItems bounds every list of an annotation.
const maxItems = 1000

// section reads one JSON object by the rules of the original: member names are PascalCase and case-sensitive (encoding/json
// matches them without case, so it only makes the tree here), the last of a doubled name counts, unknown ones are ignored with
// a warning, null is absent for sections, lists and texts, and a number is a JSON number.
type section struct {
	at      string // annotation and path, for problems
	members map[string]any
	asked   map[string]bool
	report  *report
}

// document parses the text of a JSON annotation. False: absent, null, or not an object, which is then reported.
func document(key, text string, r *report) (section, bool) {
	s := section{at: key, asked: map[string]bool{}, report: r}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var tree any
	err := decoder.Decode(&tree)
	if err == nil {
		if _, err = decoder.Token(); err == nil {
			err = fmt.Errorf("something follows the JSON value at byte %d", decoder.InputOffset())
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		r.problem(key, text, "JSON without comments and trailing commas (%s)", cause(err))
		return s, false
	}
	if tree == nil {
		return s, false
	}
	members, ok := tree.(map[string]any)
	if !ok {
		r.problem(key, text, "a JSON object")
		return s, false
	}
	s.members = members
	return s, true
}

func cause(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf("%v, byte %d", err, syntax.Offset)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "it ends too early"
	}
	return err.Error()
}

func (s section) get(name string) (any, bool) {
	s.asked[name] = true
	value, ok := s.members[name]
	return value, ok
}

// done warns about members nobody asked for.
func (s section) done() {
	known := slices.Sorted(maps.Keys(s.asked))
	for _, name := range slices.Sorted(maps.Keys(s.members)) {
		if s.asked[name] {
			continue
		}
		if near := Nearest(name, known); near != "" {
			s.report.warn("%s.%s is not known and ignored; did you mean %s?", s.at, shorten(name), near)
		} else {
			s.report.warn("%s.%s is not known and ignored", s.at, shorten(name))
		}
	}
}

func (s section) wrong(name string, value any, want string, args ...any) {
	text, err := json.Marshal(value)
	if err != nil {
		text = fmt.Append(nil, value)
	}
	s.report.problem(s.at+"."+name, string(text), want, args...)
}

// section is the object under name, empty when it is absent or null.
func (s section) section(name string) (section, bool) {
	inner := section{at: s.at + "." + name, asked: map[string]bool{}, report: s.report}
	value, ok := s.get(name)
	if !ok || value == nil {
		return inner, false
	}
	if inner.members, ok = value.(map[string]any); !ok {
		s.wrong(name, value, "a JSON object")
		return inner, false
	}
	return inner, true
}

// list is the array under name; nil when it is absent or null.
func (s section) list(name string) ([]any, bool) {
	value, ok := s.get(name)
	if !ok || value == nil {
		return nil, false
	}
	items, ok := value.([]any)
	if !ok {
		s.wrong(name, value, "a JSON array")
		return nil, false
	}
	if len(items) > maxItems {
		s.report.problem(s.at+"."+name, fmt.Sprintf("%d items", len(items)), "at most %d items", maxItems)
		items = items[:maxItems]
	}
	return items, true
}

// sections are the objects of the array under name.
func (s section) sections(name string) []section {
	items, _ := s.list(name)
	var objects []section
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", name, i)
		members, ok := item.(map[string]any)
		if !ok {
			s.wrong(at, item, "a JSON object")
			continue
		}
		objects = append(objects, section{at: s.at + "." + at, members: members, asked: map[string]bool{}, report: s.report})
	}
	return objects
}

// bounds of a whole number, both included, with what it counts.
type bounds struct {
	least, most int
	unit        string
}

func (b bounds) String() string {
	what := "a whole number"
	if b.unit != "" {
		what += " of " + b.unit
	}
	if b.most == math.MaxInt32 {
		return fmt.Sprintf("%s, at least %d", what, b.least)
	}
	return fmt.Sprintf("%s from %d to %d", what, b.least, b.most)
}

func (b bounds) hold(n int) bool { return n >= b.least && n <= b.most }

func atLeast(least int, unit string) bounds { return bounds{least, math.MaxInt32, unit} }

func wholeOf(value any, b bounds) (int, bool) {
	number, ok := value.(json.Number)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(number.String(), 10, 32)
	return int(n), err == nil && b.hold(int(n))
}

func (s section) whole(name string, def int, b bounds) int {
	value, ok := s.get(name)
	if !ok {
		return def
	}
	n, ok := wholeOf(value, b)
	if !ok {
		s.wrong(name, value, "%v", b)
		return def
	}
	return n
}

// optionalWhole is nil when the member is absent or null.
func (s section) optionalWhole(name string, b bounds) *int {
	value, ok := s.get(name)
	if !ok || value == nil {
		return nil
	}
	n, ok := wholeOf(value, b)
	if !ok {
		s.wrong(name, value, "%v, or null", b)
		return nil
	}
	return &n
}

// wholes is def when the member is absent, null or not entirely right.
func (s section) wholes(name string, def []int, b bounds) []int {
	items, ok := s.list(name)
	if !ok {
		return def
	}
	numbers, right := make([]int, 0, len(items)), true
	for i, item := range items {
		n, ok := wholeOf(item, b)
		if !ok {
			s.wrong(fmt.Sprintf("%s[%d]", name, i), item, "%v", b)
			right = false
		}
		numbers = append(numbers, n)
	}
	if !right {
		return def
	}
	return numbers
}

func (s section) decimal(name string) float64 {
	value, ok := s.get(name)
	if !ok {
		return 0
	}
	number, ok := value.(json.Number)
	if ok {
		if f, err := number.Float64(); err == nil {
			return f
		}
	}
	s.wrong(name, value, "a number")
	return 0
}

func (s section) text(name, def string) string {
	value, ok := s.get(name)
	if !ok || value == nil {
		return def
	}
	text, ok := value.(string)
	if !ok {
		s.wrong(name, value, "a text in quotes")
		return def
	}
	return text
}

// word is one of words, by name without case or by number; the first is the default.
func (s section) word(name string, words ...string) string {
	value, ok := s.get(name)
	if !ok {
		return words[0]
	}
	given := ""
	switch v := value.(type) {
	case string:
		given = v
	case json.Number:
		given = v.String()
	}
	for i, word := range words {
		if strings.EqualFold(strings.TrimSpace(given), word) || given == strconv.Itoa(i) {
			return word
		}
	}
	s.wrong(name, value, "%s", strings.Join(words, " or "))
	return words[0]
}
