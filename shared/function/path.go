package function

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// NormalizePath is the one reading of a path for comparing it with a rule, for sync, async and callback alike: percent-decoded
// once, slashes collapsed, dot segments resolved, without leading slashes, in lower case. It takes the path as it stands in the
// request line, after the function's name, without the query. It is for comparing only; what is forwarded stays as it came.
func NormalizePath(path string) string {
	if plain(path) {
		return strings.TrimLeft(path, "/")
	}
	decoded, _ := decode(path, false)
	return trim(resolve(collapse(fold(decoded)), false))
}

// PathVisibility is who may call path, given as for NormalizePath: the first rule the path starts with decides, else the
// function's default. A path that the function could read in more than one way is Private when it is in any of them: servers
// disagree about encoded slashes, backslashes, dot segments between doubled slashes, `;` parameters and second decodings, and
// each of these has opened a door somewhere (for one, istio/istio#27409).
func (s Specification) PathVisibility(path string) Visibility {
	if !s.hasPrivate() {
		return Public
	}
	if len(s.PathsStartWithVisibility) == 0 {
		return Private
	}
	if plain(path) {
		if s.match(strings.TrimLeft(path, "/")) != Public {
			return Private
		}
		return Public
	}
	readings, ok := readingsOf(path)
	if !ok {
		return Private
	}
	for _, reading := range readings {
		if s.match(reading) != Public {
			return Private
		}
	}
	return Public
}

// Wakes says whether a request for path (given as for NormalizePath) by this User-Agent wakes the function and keeps it awake.
func (s *Specification) Wakes(path, userAgent string) bool {
	if len(s.NoWakePaths) > 0 {
		path = NormalizePath(path)
		for _, start := range s.NoWakePaths {
			if strings.HasPrefix(path, start) {
				return false
			}
		}
	}
	if len(s.NoWakeUserAgents) > 0 {
		userAgent = strings.ToLower(userAgent)
		for _, part := range s.NoWakeUserAgents {
			if strings.Contains(userAgent, strings.ToLower(part)) {
				return false
			}
		}
	}
	return true
}

func (s *Specification) hasPrivate() bool {
	if s.DefaultVisibility != Public {
		return true
	}
	for i := range s.PathsStartWithVisibility {
		if s.PathsStartWithVisibility[i].Visibility != Public {
			return true
		}
	}
	return false
}

// match compares a normalised path with the rules. A Private rule for `admin/` holds for `admin` too: many servers take them
// for the same.
func (s *Specification) match(path string) Visibility {
	for i := range s.PathsStartWithVisibility {
		rule := &s.PathsStartWithVisibility[i]
		prefix := NormalizePath(rule.Path)
		if strings.HasPrefix(path, prefix) {
			return rule.Visibility
		}
		if rule.Visibility != Public && len(prefix) == len(path)+1 && prefix[len(path)] == '/' && prefix[:len(path)] == path {
			return rule.Visibility
		}
	}
	return s.DefaultVisibility
}

// plain reports whether every server reads the path the same way: lower-case ASCII that needs no decoding, one slash at a time
// (several lead in nobody's reading), no segment that begins or ends with a dot, no parameters. Then it costs nothing.
func plain(path string) bool {
	path = strings.TrimLeft(path, "/")
	previous := byte('/')
	for i := range len(path) {
		c := path[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '~':
		case c == '.' || c == '/':
			if previous == '/' || c == '/' && previous == '.' {
				return false
			}
		case c == '@' || c == ':' || c == '!' || c == '$' || c == '&' || c == '\'' || c == '(' || c == ')' || c == '*' || c == '+' || c == ',' || c == '=':
		default:
			return false
		}
		previous = c
	}
	return previous != '.'
}

// maxReadings and maxReadingBytes bound how many ways to read one path are followed, so that a strange path costs little; one
// with more is refused.
const (
	maxReadings     = 64
	maxReadingBytes = 32 << 10 // over all readings of one path
)

// readingsOf lists how servers may read the path, each collapsed and trimmed: everything that comes of the rewrites below in
// any order. False: the path has a broken escape, or too many readings to say.
func readingsOf(path string) ([]string, bool) {
	start, ok := decode(path, true)
	if !ok {
		return nil, false
	}
	found := []string{fold(start)}
	size := len(start)
	for i := 0; i < len(found); i++ {
		for _, rewrite := range rewrites {
			next := rewrite(found[i])
			if slices.Contains(found, next) {
				continue
			}
			if size += len(next); len(found) == maxReadings || size > maxReadingBytes {
				return nil, false
			}
			found = append(found, next)
		}
	}
	for i := range found {
		found[i] = trim(collapse(found[i]))
	}
	return found, true
}

// rewrites are what some server does to a path before it routes.
var rewrites = []func(string) string{
	func(s string) string { s, _ = decode(s, false); return fold(s) },
	func(s string) string { return strings.ReplaceAll(s, `\`, "/") },
	func(s string) string { return resolve(s, true) },
	func(s string) string { return resolve(collapse(s), false) },
	withoutParameters,
	withoutControls,
	withoutTails,
	lookAlikes,
	func(s string) string {
		if i := strings.IndexAny(s, "?#\x00"); i >= 0 {
			return s[:i]
		}
		return s
	},
}

// decode undoes percent-encoding once. keepSeparators leaves encoded slashes and backslashes as they are, in lower case. False:
// there is an escape that is none; it stays as it is.
func decode(s string, keepSeparators bool) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, true
	}
	ok := true
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
			ok = false
			b = append(b, '%')
			continue
		}
		c := unhex(s[i+1])<<4 | unhex(s[i+2])
		if keepSeparators && (c == '/' || c == '\\') {
			b = append(b, '%', s[i+1]|0x20, s[i+2]|0x20)
		} else {
			b = append(b, c)
		}
		i += 2
	}
	return string(b), ok
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return (c | 0x20) - 'a' + 10
}

// collapse makes one slash of several.
func collapse(s string) string {
	for strings.Contains(s, "//") {
		s = strings.ReplaceAll(s, "//", "/")
	}
	return s
}

func trim(s string) string { return strings.TrimLeft(s, "/") }

// resolve takes out `.` and `..` segments; `..` at the top goes nowhere. keepEmpty counts the empty segment between two slashes
// as one that `..` takes away (RFC 3986), else it is no segment.
func resolve(s string, keepEmpty bool) string {
	if !strings.Contains(s, ".") {
		return s
	}
	s = trim(s)
	var kept []string
	ended := false // by a dot segment: then a slash remains
	for segment := range strings.SplitSeq(s, "/") {
		ended = segment == "." || segment == ".."
		switch {
		case segment == ".":
		case segment == "..":
			kept = kept[:max(0, len(kept)-1)]
		case segment == "" && !keepEmpty && len(kept) == 0:
		default:
			kept = append(kept, segment)
		}
	}
	resolved := strings.Join(kept, "/")
	if ended && resolved != "" && !strings.HasSuffix(resolved, "/") {
		resolved += "/"
	}
	return resolved
}

// withoutParameters cuts each segment at its first `;`, as servlet containers do.
func withoutParameters(s string) string {
	if strings.IndexByte(s, ';') < 0 {
		return s
	}
	segments := strings.Split(s, "/")
	for i := range segments {
		segments[i], _, _ = strings.Cut(segments[i], ";")
	}
	return strings.Join(segments, "/")
}

// withoutControls drops control characters, as URL parsers of browsers do.
func withoutControls(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// withoutTails drops dots and blanks at the end of segments, as Windows does with file names.
func withoutTails(s string) string {
	segments := strings.Split(s, "/")
	for i, segment := range segments {
		if segment = strings.TrimRight(segment, " "); segment != "." && segment != ".." {
			segment = strings.TrimRight(segment, " .")
		}
		segments[i] = segment
	}
	return strings.Join(segments, "/")
}

// lookAlikes reads characters written in too many bytes (%c0%af), and the full-width and fraction forms that compatibility
// mappings turn into ASCII.
func lookAlikes(s string) string {
	if isASCII(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			if c, n := overlong(s[i:]); n > 0 {
				b.WriteByte(c)
				i += n
				continue
			}
			b.WriteByte(s[i])
			i++
			continue
		}
		i += size
		switch {
		case r >= 0xFF01 && r <= 0xFF5E:
			r += '!' - 0xFF01
		case r == 0x2044 || r == 0x2215:
			r = '/'
		case r == 0x2024:
			r = '.'
		}
		b.WriteRune(r)
	}
	return fold(b.String())
}

// overlong reads an ASCII character in two to four bytes; 0: there is none.
func overlong(s string) (byte, int) {
	follows := func(i int) bool { return i < len(s) && s[i]&0xC0 == 0x80 }
	switch {
	case s[0]&0xFE == 0xC0 && follows(1):
		return (s[0]&1)<<6 | s[1]&0x3F, 2
	case s[0] == 0xE0 && follows(1) && follows(2) && s[1] <= 0x81:
		return (s[1]&1)<<6 | s[2]&0x3F, 3
	case s[0] == 0xF0 && follows(1) && follows(2) && follows(3) && s[1] == 0x80 && s[2] <= 0x81:
		return (s[2]&1)<<6 | s[3]&0x3F, 4
	}
	return 0, 0
}

// fold makes spellings that differ in case equal, also where Unicode has more than two of a letter (the Kelvin sign is a k).
func fold(s string) string {
	if isASCII(s) {
		return strings.ToLower(s)
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			b.WriteByte(s[i]) // not text; it must stay what it is
			i++
			continue
		}
		i += size
		least := r
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			least = min(least, other)
		}
		b.WriteRune(unicode.ToLower(least))
	}
	return b.String()
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
