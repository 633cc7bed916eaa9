package settings

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
)

// alias finds the value of an original name, and the spelling it was given under, with its value in our notation: lists of
// the original are A__0, A__1, …; durations are numbers whose unit is in the name, or hh:mm:ss.
func (e environment) alias(alias string, t reflect.Type) (value, name string) {
	key := canonical(alias)
	if names := e.canonical[key]; len(names) > 0 {
		name = names[0]
		if slices.Contains(names, alias) {
			name = alias
		}
		value = e.exact[name]
	}
	if t.Kind() == reflect.Slice {
		var items []string
		for i := 0; ; i++ {
			names := e.canonical[key+":"+strconv.Itoa(i)]
			if len(names) == 0 {
				break
			}
			name = alias
			items = append(items, e.exact[names[0]])
		}
		if len(items) > 0 {
			value = strings.Join(items, ",")
		}
		value = tidyList(t, "", value)
	}
	if t == reflect.TypeFor[time.Duration]() {
		value = duration(alias, value)
	}
	return value, name
}

// duration rewrites a number with its unit in the name, and hh:mm:ss, as Go writes durations; all else stays as it is.
func duration(name, value string) string {
	value = strings.TrimSpace(value)
	if _, err := strconv.ParseInt(value, 10, 64); err == nil {
		for suffix, unit := range map[string]string{"milliseconds": "ms", "seconds": "s", "minutes": "m"} {
			lower := strings.ToLower(name)
			if strings.HasSuffix(lower, suffix) && !(unit == "s" && strings.HasSuffix(lower, "milliseconds")) {
				return value + unit
			}
		}
	}
	if parts := strings.Split(value, ":"); len(parts) == 3 {
		return parts[0] + "h" + parts[1] + "m" + parts[2] + "s"
	}
	return value
}

// tidyList takes the blanks and the empty items out of a list's text, so that "a, b," reads as "a,b".
func tidyList(t reflect.Type, separator, value string) string {
	if t.Kind() != reflect.Slice {
		return value
	}
	if separator == "" {
		separator = ","
	}
	items := strings.Split(value, separator)
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return strings.Join(slices.DeleteFunc(items, func(item string) bool { return item == "" }), separator)
}

// unused warns about variables that look as if they were meant for this program and are not read: names under its prefix
// that it does not have, and settings of the original without a meaning here.
func (e environment) unused(prefix string, groups []group, used map[string]bool) []string {
	var own []string
	for _, g := range groups {
		for _, f := range g.fields {
			own = append(own, f.name)
		}
	}
	var warnings []string
	for name := range e.exact {
		key := canonical(name)
		switch {
		case slices.Contains(own, name) || used[key] || used[withoutIndex(key)]:
		case prefix != "" && strings.HasPrefix(name, prefix) && !serviceLink(name):
			warning := fmt.Sprintf("%s is not a setting of this program", name)
			if near := function.Nearest(name, own); near != "" {
				warning += fmt.Sprintf("; did you mean %s?", near)
			}
			warnings = append(warnings, warning)
		default:
			if note, ok := upstreamNote(key, name); ok {
				warnings = append(warnings, fmt.Sprintf("%s is set and has no meaning for this program: %s", name, note))
			}
		}
	}
	return warnings
}

func withoutIndex(key string) string {
	i := strings.LastIndexByte(key, ':')
	if i < 0 {
		return key
	}
	if _, err := strconv.Atoi(key[i+1:]); err != nil {
		return key
	}
	return key[:i]
}

// serviceLink recognises what Kubernetes puts into the environment for a Service that happens to be called like a program.
func serviceLink(name string) bool {
	return strings.Contains(name, "_SERVICE_HOST") || strings.Contains(name, "_SERVICE_PORT") ||
		strings.HasSuffix(name, "_PORT") || strings.Contains(name, "_TCP") || strings.Contains(name, "_UDP")
}
