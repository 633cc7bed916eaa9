// Package route reads the request target: which family of routes it is for, and the names in it. Pure. It works on the
// target as the caller sent it, so what follows a function's name reaches the function byte for byte; net/http's mux would
// redirect `//` and dot segments.
package route

import (
	"net/url"
	"slices"
	"strings"
)

// Family is one route of the HTTP surface.
type Family uint8

// The families. Unknown answers 404.
const (
	Unknown Family = iota
	Function
	AsyncFunction
	AsyncCallback
	WakeFunction
	WakeFunctions
	StatusFunction
	StatusFunctions
	StatusStream
	PublishEvent
	AsyncCall
	AsyncResult
	Explain
	Scale
	Cluster
	DeadLetters
	Health
	Ready
	Metrics
	Home
)

// Route is a target understood.
type Route struct {
	Family Family
	// Name is the function, the event or the id, decoded; empty where the family has none.
	Name string
	// Params are further segments, decoded: of a callback the id and the status.
	Params []string
	// Rest is the raw path behind the name, always with a leading slash: what the function sees.
	Rest string
	// Query is the raw query without the question mark; Mark says that there was one, also an empty one.
	Query string
	Mark  bool
	// Host says that the request came by a host name of the function's own.
	Host bool
}

// pattern describes a family: a literal, then params named segments, then, with tail, anything.
type pattern struct {
	family   Family
	literal  string
	params   int
	suffix   string // literal behind the params
	tail     bool
	exact    bool // no trailing slash tolerated
	methods  []string
	internal bool // internal callers only
	function bool // the name is a function's; access follows its path rules
	keyed    bool // callers that are not internal need a key, where keys are asked for
}

var (
	anyMethod = []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"}
	get       = []string{"GET"}
)

// patterns are tried in order; the first that fits decides.
var patterns = []pattern{
	{family: Function, literal: "function", params: 1, tail: true, methods: anyMethod, function: true},
	{family: AsyncFunction, literal: "async-function", params: 1, tail: true, methods: anyMethod, function: true},
	{family: AsyncCallback, literal: "async-function-callback", params: 3, methods: []string{"POST"}, function: true},
	{family: PublishEvent, literal: "publish-event", params: 1, tail: true, methods: anyMethod, keyed: true},
	{family: WakeFunction, literal: "wake-function", params: 1, methods: []string{"GET", "POST"}, keyed: true},
	{family: WakeFunctions, literal: "wake-functions", methods: []string{"GET", "POST"}, keyed: true},
	{family: StatusFunction, literal: "status-function", params: 1, methods: get},
	{family: StatusFunctions, literal: "status-functions", methods: get},
	{family: StatusStream, literal: "status-functions-stream", methods: get},
	{family: AsyncResult, literal: "async-calls", params: 1, suffix: "result", methods: get},
	{family: AsyncCall, literal: "async-calls", params: 1, methods: []string{"GET", "DELETE"}},
	{family: Explain, literal: "explain", params: 1, methods: get, internal: true},
	{family: Scale, literal: "scale", params: 1, methods: []string{"PUT"}, internal: true},
	{family: Cluster, literal: "cluster", methods: get, internal: true},
	{family: DeadLetters, literal: "dead-letters", params: 1, tail: true, methods: []string{"GET", "POST", "DELETE"}, internal: true},
	{family: Health, literal: "health", exact: true, methods: anyMethod},
	{family: Ready, literal: "ready", exact: true, methods: anyMethod},
	{family: Metrics, literal: "metrics", methods: get},
	{family: Home, literal: "", exact: true, methods: get},
}

// byFamily has each family's pattern; that of Unknown answers nothing.
var byFamily = func() (all [Home + 1]pattern) {
	for _, p := range patterns {
		all[p.family] = p
	}
	return all
}()

// Methods lists what the family answers; nil for Unknown.
func (f Family) Methods() []string { return byFamily[f].methods }

// Internal says that only internal callers are answered.
func (f Family) Internal() bool { return byFamily[f].internal }

// Keyed says that callers who are not internal need a key, where the edge has keys.
func (f Family) Keyed() bool { return byFamily[f].keyed }

// OfFunction says that Name is a function to call, so its path rules decide who may.
func (f Family) OfFunction() bool { return byFamily[f].function }

// Parse reads a request target: origin form or absolute form, as it stood in the request line. A target that fits nothing
// gives Unknown.
func Parse(target string) Route {
	path, query, mark := strings.Cut(origin(target), "?")
	if !strings.HasPrefix(path, "/") {
		return Route{}
	}
	literal, rest, _ := cutSegment(path[1:])
	for i := range patterns {
		p := &patterns[i]
		if !strings.EqualFold(literal, p.literal) {
			continue
		}
		r, ok := p.match(path, rest)
		if !ok {
			continue
		}
		r.Family, r.Query, r.Mark = p.family, query, mark
		return r
	}
	return Route{}
}

// Own reads a request target of a host name that is a function's own: all of the path is the function's. Unknown as in Parse.
func Own(function, target string) Route {
	path, query, mark := strings.Cut(origin(target), "?")
	if !strings.HasPrefix(path, "/") {
		return Route{}
	}
	return Route{Family: Function, Name: function, Rest: path, Query: query, Mark: mark, Host: true}
}

// Prefix is what stands before Rest on the way the caller came: X-Forwarded-Prefix.
func (r Route) Prefix() string {
	if r.Host {
		return "/"
	}
	return "/function/" + r.Name
}

// JoinPrefix is the X-Forwarded-Prefix of a path behind that of a proxy in front.
func JoinPrefix(before, prefix string) string {
	before = strings.TrimRight(before, "/")
	if before == "" || prefix == "" {
		return before + prefix
	}
	if prefix == "/" {
		return before
	}
	return before + prefix
}

// match reads what is behind the literal: rest is without the separating slash.
func (p *pattern) match(path, rest string) (Route, bool) {
	if p.exact {
		return Route{}, len(path) == len(p.literal)+1
	}
	var names [3]string
	for i := range p.params {
		segment, behind, more := cutSegment(rest)
		name, err := url.PathUnescape(segment)
		if err != nil || name == "" || strings.ContainsRune(name, 0) {
			return Route{}, false
		}
		names[i] = name
		if rest = behind; more {
			rest = "/" + behind
		}
		if i+1 < p.params || p.suffix != "" {
			rest = strings.TrimPrefix(rest, "/")
		}
	}
	var r Route
	if p.suffix != "" {
		var segment string
		segment, rest, _ = cutSegment(rest)
		if !strings.EqualFold(segment, p.suffix) {
			return Route{}, false
		}
	}
	r.Name = names[0]
	if p.params > 1 {
		r.Params = slices.Clone(names[1:p.params])
	}
	if p.tail {
		if r.Rest = rest; rest == "" {
			r.Rest = "/"
		}
		return r, true
	}
	return r, rest == "" || rest == "/"
}

// cutSegment splits at the first slash; more says that there was one.
func cutSegment(s string) (segment, behind string, more bool) { return strings.Cut(s, "/") }

// origin turns `http://host/path` into `/path`.
func origin(target string) string {
	if strings.HasPrefix(target, "/") {
		return target
	}
	_, behind, ok := strings.Cut(target, "://")
	if !ok {
		return target
	}
	i := strings.IndexAny(behind, "/?")
	switch {
	case i < 0:
		return "/"
	case behind[i] == '?':
		return "/" + behind[i:]
	}
	return behind[i:]
}
