package function

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Annotations of a function. Names are case-sensitive.
const (
	AnnotationFunction                          = "SlimFaas/Function"
	AnnotationReplicasMin                       = "SlimFaas/ReplicasMin"
	AnnotationReplicasAtStart                   = "SlimFaas/ReplicasAtStart"
	AnnotationTimeoutSecondBeforeSetReplicasMin = "SlimFaas/TimeoutSecondBeforeSetReplicasMin"
	AnnotationNumberParallelRequest             = "SlimFaas/NumberParallelRequest"
	AnnotationNumberParallelRequestPerPod       = "SlimFaas/NumberParallelRequestPerPod"
	AnnotationReplicasStartAsSoonAsOne          = "SlimFaas/ReplicasStartAsSoonAsOneFunctionRetrieveARequest"
	AnnotationDependsOn                         = "SlimFaas/DependsOn"
	AnnotationSubscribeEvents                   = "SlimFaas/SubscribeEvents"
	AnnotationDefaultVisibility                 = "SlimFaas/DefaultVisibility"
	AnnotationPathsStartWithVisibility          = "SlimFaas/PathsStartWithVisibility"
	AnnotationDefaultTrust                      = "SlimFaas/DefaultTrust"
	AnnotationConfiguration                     = "SlimFaas/Configuration"
	AnnotationSchedule                          = "SlimFaas/Schedule"
	AnnotationScale                             = "SlimFaas/Scale"
	// Ours.
	AnnotationProbeEarly       = "SlimFaas/ProbeEarly"
	AnnotationPort             = "SlimFaas/Port"
	AnnotationWaitingPage      = "SlimFaas/WaitingPage"
	AnnotationNoWakePaths      = "SlimFaas/NoWakePaths"
	AnnotationNoWakeUserAgents = "SlimFaas/NoWakeUserAgents"
	AnnotationHost             = "SlimFaas/Host"
	AnnotationRequireKey       = "SlimFaas/RequireKey"
	AnnotationEventsWake       = "SlimFaas/EventsWake"

	AnnotationNumberParallelRequestSync       = "SlimFaas/NumberParallelRequestSync"
	AnnotationNumberParallelRequestPerPodSync = "SlimFaas/NumberParallelRequestPerPodSync"

	annotationPrefix = "SlimFaas/"
)

// functionKeys can be meant by a key that is not known; otherKeys are read elsewhere (jobs, Docker) and no reason to warn.
var (
	functionKeys = []string{
		AnnotationFunction, AnnotationReplicasMin, AnnotationReplicasAtStart, AnnotationTimeoutSecondBeforeSetReplicasMin,
		AnnotationNumberParallelRequest, AnnotationNumberParallelRequestPerPod, AnnotationReplicasStartAsSoonAsOne,
		AnnotationDependsOn, AnnotationSubscribeEvents, AnnotationDefaultVisibility, AnnotationPathsStartWithVisibility,
		AnnotationDefaultTrust, AnnotationConfiguration, AnnotationSchedule, AnnotationScale, AnnotationProbeEarly, AnnotationPort,
		AnnotationWaitingPage, AnnotationNoWakePaths, AnnotationNoWakeUserAgents, AnnotationHost, AnnotationRequireKey, AnnotationEventsWake,
		AnnotationNumberParallelRequestSync, AnnotationNumberParallelRequestPerPodSync,
	}
	otherKeys = []string{
		"SlimFaas/Job", "SlimFaas/JobImagesWhitelist", "SlimFaas/NumberParallelJob", "SlimFaas/Schedules",
		"SlimFaas/Namespace", "SlimFaas/template", "SlimFaas/PublishedPorts", "SlimFaas/TtlSecondsAfterFinished",
	}
)

// IsFunction reports whether the annotations declare a function at all.
func IsFunction(annotations map[string]string) bool {
	return strings.EqualFold(strings.TrimSpace(annotations[AnnotationFunction]), "true")
}

// Parse reads every annotation of the function called name and reports all problems at once. The specification is usable even
// then: what cannot be read has its default, except that an unreadable visibility is Private and an unreadable trust is
// Untrusted: a typo must not open a door. Keys that are no annotation of ours are ignored (see Warnings).
func Parse(name string, annotations map[string]string) (Specification, Problems) {
	var r report
	spec := read(name, annotations, &r)
	return spec, r.all()
}

// Warnings is what is odd about the annotations of the function called name and stops nothing, one line each: keys and members
// that are not known (with the one that was probably meant), removed ones, what is parsed and not active yet.
func Warnings(name string, annotations map[string]string) []string {
	var r report
	spec := read(name, annotations, &r)
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		switch {
		case len(key) < len(annotationPrefix) || !strings.EqualFold(key[:len(annotationPrefix)], annotationPrefix):
		case slices.Contains(functionKeys, key) || slices.Contains(otherKeys, key):
		case key == "SlimFaas/ExcludeDeploymentsFromVisibilityPrivate":
			r.warn("%s was removed from SlimFaas and is ignored; put %s: Untrusted on the deployments it lists", key, AnnotationDefaultTrust)
		default:
			if near := Nearest(key, functionKeys); near != "" {
				r.warn("%s is not known and ignored; did you mean %s?", shorten(key), near)
			} else {
				r.warn("%s is not known and ignored", shorten(key))
			}
		}
	}
	return append(r.warnings, spec.NotActive()...)
}

func read(name string, annotations map[string]string, r *report) Specification {
	if !ValidName(name) {
		r.problem("name", name, "lower-case letters, digits, '_', '.' and '-', beginning and ending with a letter, digit or '_', at most 253 characters; on Docker, add a label app with such a name")
	}
	a := annotationSet{annotations, r}
	spec := Default()
	spec.ReplicasMin = a.whole(AnnotationReplicasMin, spec.ReplicasMin, atLeast(0, ""))
	spec.ReplicasAtStart = a.whole(AnnotationReplicasAtStart, spec.ReplicasAtStart, atLeast(0, ""))
	spec.TimeoutSecondBeforeSetReplicasMin = a.whole(AnnotationTimeoutSecondBeforeSetReplicasMin, spec.TimeoutSecondBeforeSetReplicasMin, atLeast(0, "seconds"))
	spec.NumberParallelRequest = a.whole(AnnotationNumberParallelRequest, spec.NumberParallelRequest, atLeast(1, ""))
	spec.NumberParallelRequestPerPod = a.whole(AnnotationNumberParallelRequestPerPod, spec.NumberParallelRequestPerPod, atLeast(1, ""))
	spec.NumberParallelRequestSync = a.whole(AnnotationNumberParallelRequestSync, 0, atLeast(0, ""))
	spec.NumberParallelRequestPerPodSync = a.whole(AnnotationNumberParallelRequestPerPodSync, 0, atLeast(0, ""))
	spec.ReplicasStartAsSoonAsOneFunctionRetrieveARequest = a.boolean(AnnotationReplicasStartAsSoonAsOne, false)
	spec.DependsOn = a.names(AnnotationDependsOn)
	spec.DefaultVisibility = Visibility(a.word(AnnotationDefaultVisibility, int(Public), int(Private), "Public", "Private"))
	spec.DefaultTrust = Trust(a.word(AnnotationDefaultTrust, int(Trusted), int(Untrusted), "Trusted", "Untrusted"))
	spec.SubscribeEvents = a.subscriptions(spec.DefaultVisibility)
	var whole bool
	if spec.PathsStartWithVisibility, whole = a.pathRules(); !whole {
		spec.DefaultVisibility = Private
	}
	spec.ProbeEarly = a.boolean(AnnotationProbeEarly, true)
	spec.Port = a.whole(AnnotationPort, 0, bounds{1, 65535, ""})
	spec.WaitingPage = a.boolean(AnnotationWaitingPage, false)
	spec.NoWakePaths = a.noWakePaths()
	spec.NoWakeUserAgents = a.names(AnnotationNoWakeUserAgents)
	spec.Hosts = a.hosts()
	spec.EventsWake = a.boolean(AnnotationEventsWake, false)
	spec.RequireKey, spec.KeyHolders = a.requireKey()
	if text, ok := a.text(AnnotationConfiguration); ok {
		spec.Configuration = readConfiguration(text, r)
	}
	if text, ok := a.text(AnnotationSchedule); ok {
		spec.Schedule = readSchedule(text, r)
	}
	if text, ok := a.text(AnnotationScale); ok {
		spec.Scale = readScale(text, r)
	}
	return spec
}

// annotationSet reads single values. A blank value is an absent one.
type annotationSet struct {
	values map[string]string
	report *report
}

func (a annotationSet) text(key string) (string, bool) {
	value := strings.ToValidUTF8(a.values[key], "\uFFFD")
	return value, strings.TrimSpace(value) != ""
}

// whole reads as .NET does: blanks around and a sign are allowed, 32 bits.
func (a annotationSet) whole(key string, def int, b bounds) int {
	text, ok := a.text(key)
	if !ok {
		return def
	}
	n, err := strconv.ParseInt(strings.Trim(text, "\t\n\v\f\r "), 10, 32)
	if err != nil || !b.hold(int(n)) {
		a.report.problem(key, text, "%v", b)
		return def
	}
	return int(n)
}

func (a annotationSet) boolean(key string, def bool) bool {
	text, ok := a.text(key)
	switch word := strings.TrimSpace(text); {
	case !ok:
	case strings.EqualFold(word, "true"):
		return true
	case strings.EqualFold(word, "false"):
		return false
	default:
		a.report.problem(key, text, "true or false")
	}
	return def
}

// word is the index of the word, or of the number, that the annotation gives; closed when it is neither.
func (a annotationSet) word(key string, def, closed int, words ...string) int {
	text, ok := a.text(key)
	if !ok {
		return def
	}
	if i := wordIndex(text, words...); i >= 0 {
		return i
	}
	a.report.problem(key, text, "%s", strings.Join(words, " or "))
	return closed
}

// wordIndex matches without case, or a number as the original's enums do; -1: neither.
func wordIndex(text string, words ...string) int {
	text = strings.TrimSpace(text)
	for i, word := range words {
		if strings.EqualFold(text, word) {
			return i
		}
	}
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 0 && int(n) < len(words) {
		return int(n)
	}
	return -1
}

// items splits a comma list; blanks around items and empty items go. False: there were too many, and some are left out.
func (a annotationSet) items(key string) ([]string, bool) {
	text, _ := a.text(key)
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		if len(items) == maxItems {
			a.report.problem(key, text, "at most %d items", maxItems)
			return items, false
		}
		items = append(items, item)
	}
	return items, true
}

func (a annotationSet) names(key string) []string {
	names, _ := a.items(key)
	if len(names) > 0 && strings.HasPrefix(names[0], "[") {
		a.report.warn("%s is a comma list, not JSON: write name,name", key)
	}
	return names
}

// split takes the visibility off an item `[Prefix:]name`. Anything before the first colon that is no visibility is dropped, as
// upstream does; known is then false.
func split(item string, def Visibility) (name string, v Visibility, known bool) {
	prefix, rest, found := strings.Cut(item, ":")
	if !found || prefix == "" {
		return item, def, true
	}
	if i := wordIndex(prefix, "Public", "Private"); i >= 0 {
		return strings.TrimSpace(rest), Visibility(i), true
	}
	return strings.TrimSpace(rest), def, false
}

func (a annotationSet) subscriptions(def Visibility) []Subscription {
	items, _ := a.items(AnnotationSubscribeEvents)
	var all []Subscription
	for _, item := range items {
		name, v, known := split(item, def)
		if name == "" {
			a.report.warn("%s: %q names no event", AnnotationSubscribeEvents, shorten(item))
			continue
		}
		if !known {
			a.report.warn("%s: what stands before the colon of %q is neither Public nor Private and is dropped; the event is %q, %v", AnnotationSubscribeEvents, shorten(item), shorten(name), v)
		}
		all = append(all, Subscription{Name: name, Visibility: v})
	}
	return all
}

// pathRules differs from upstream in two ways, both towards closed: a colon after a slash belongs to the path (`/v1/items:batch`),
// and a prefix that is no visibility (`Privat:/admin`) makes the rule Private instead of Public. False: rules are missing.
func (a annotationSet) pathRules() ([]PathRule, bool) {
	items, whole := a.items(AnnotationPathsStartWithVisibility)
	var rules []PathRule
	for _, item := range items {
		path, v, known := split(item, Public)
		if before, _, found := strings.Cut(item, ":"); found && strings.Contains(before, "/") {
			path, v, known = item, Public, true
		}
		if !known {
			v = Private
			a.report.warn("%s: what stands before the colon of %q is neither Public nor Private; the path is made Private", AnnotationPathsStartWithVisibility, shorten(item))
		}
		if path == "" {
			a.report.warn("%s: %q names no path", AnnotationPathsStartWithVisibility, shorten(item))
			continue
		}
		rules = append(rules, PathRule{Path: path, Visibility: v})
	}
	return rules, whole
}

// hosts are kept as they are compared: in lower case.
func (a annotationSet) hosts() []string {
	var hosts []string
	for _, item := range a.names(AnnotationHost) {
		host := strings.ToLower(item)
		if !validHost(host) {
			a.report.problem(AnnotationHost, item, "host names without scheme, port or wildcard, as in app.example.com")
			continue
		}
		hosts = append(hosts, host)
	}
	return hosts
}

// validHost: labels of letters, digits and inner hyphens, at most 63 bytes each and 253 together (RFC 1123).
func validHost(host string) bool {
	if len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

// requireKey is true, false, or the names of those whose keys open the function. What cannot be read closes it.
func (a annotationSet) requireKey() (required bool, holders []string) {
	holders = a.names(AnnotationRequireKey)
	if len(holders) != 1 {
		return len(holders) > 0, holders
	}
	switch strings.ToLower(holders[0]) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return true, holders
}

// noWakePaths are kept as they are compared: normalised.
func (a annotationSet) noWakePaths() []string {
	var paths []string
	for _, item := range a.names(AnnotationNoWakePaths) {
		path := NormalizePath(item)
		if path == "" && item != "/" {
			a.report.warn("%s: %q names no path; \"/\" is every path", AnnotationNoWakePaths, shorten(item))
			continue
		}
		paths = append(paths, path)
	}
	return paths
}

// ValidName reports whether name can be a function's key: ^[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?$.
func ValidName(name string) bool {
	if len(name) == 0 || len(name) > 253 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		inner := i > 0 && i < len(name)-1
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || inner && (c == '.' || c == '-')) {
			return false
		}
	}
	return true
}
