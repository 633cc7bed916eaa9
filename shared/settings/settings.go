// Package settings reads a program's configuration from environment variables into one struct per concern. It knows the
// names that deployments of the original SlimFaas set, explains the result once for the log, and renders the documentation.
//
// A leaf field carries `env:"NAME"` and these tags, all optional but doc:
//
//	envDefault:"30s"     value when the variable is missing or empty
//	doc:"…"              meaning, with its unit and what zero means
//	alias:"A__B,C:D"     names of the original; matched without case, `__` and `:` alike. The own name wins
//	shared:"true"        the name stands without the program's prefix (LOG_LEVEL)
//	secret:"true"        the value is never shown
//
// Fields without an env tag are nested structs, one per concern, with an optional envPrefix.
package settings

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Validator is implemented by a configuration struct whose fields depend on one another. It is asked only when all of the
// struct's own fields could be read.
type Validator interface {
	Validate() error
}

// Load fills cfg, a pointer to a struct, from environ (lines NAME=value, as os.Environ gives them). prefix, such as "EDGE_",
// stands before every name that is not shared. All errors are joined; warnings are for the caller to log, one line each, and
// are complete whether or not there is an error.
func Load(prefix string, cfg any, environ []string) (warnings []string, err error) {
	root := reflect.ValueOf(cfg)
	if root.Kind() != reflect.Pointer || root.IsNil() || root.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("loading settings: %T is not a pointer to a struct", cfg)
	}
	groups, err := walk(prefix, root.Elem())
	if err != nil {
		return nil, fmt.Errorf("loading settings: %w", err)
	}
	known := newEnvironment(environ)

	var errs []error
	used := map[string]bool{}
	for _, g := range groups {
		complete := true
		for _, f := range g.fields {
			values, notes := known.lookup(f)
			warnings = append(warnings, notes...)
			for _, name := range f.aliases {
				used[canonical(name)] = true
			}
			if err := f.parse(values); err != nil {
				complete = false
				errs = append(errs, err)
			}
		}
		if complete {
			errs = append(errs, validate(g.value))
		}
	}
	warnings = append(warnings, known.unused(prefix, groups, used)...)
	slices.Sort(warnings)
	return slices.Compact(warnings), errors.Join(errs...)
}

func validate(v reflect.Value) error {
	if v.CanAddr() {
		v = v.Addr()
	}
	if !v.CanInterface() {
		return nil
	}
	if checked, ok := v.Interface().(Validator); ok {
		return checked.Validate()
	}
	return nil
}

// field is one leaf of a configuration struct.
type field struct {
	value   reflect.Value
	tags    reflect.StructField
	name    string // of the environment variable, prefix included
	own     string // the same as the env tag says it
	aliases []string
	secret  bool
	order   int // of declaration, over all structs
}

// group is one struct and the leaves directly in it.
type group struct {
	value  reflect.Value
	fields []field
}

// walk lists structs, inner ones before the one that holds them, so that an outer Validate sees validated parts.
func walk(prefix string, v reflect.Value) ([]group, error) {
	seen := map[string]string{}
	var count int
	groups, err := walkStruct(prefix, prefix, v, &count)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		for _, f := range g.fields {
			if other, twice := seen[f.name]; twice {
				return nil, fmt.Errorf("%s is read by two fields, %s and %s", f.name, other, f.tags.Name)
			}
			seen[f.name] = f.tags.Name
		}
	}
	return groups, nil
}

func walkStruct(program, prefix string, v reflect.Value, count *int) ([]group, error) {
	var groups []group
	own := group{value: v}
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if !sf.IsExported() {
			continue
		}
		name, _, _ := strings.Cut(sf.Tag.Get("env"), ",")
		switch {
		case name == "-":
		case name != "":
			f := field{value: v.Field(i), tags: sf, own: name, name: prefix + name, secret: sf.Tag.Get("secret") == "true", order: *count}
			*count++
			if sf.Tag.Get("shared") == "true" {
				f.name = strings.TrimPrefix(prefix, program) + name
			}
			for alias := range strings.SplitSeq(sf.Tag.Get("alias"), ",") {
				if alias = strings.TrimSpace(alias); alias != "" {
					f.aliases = append(f.aliases, alias)
				}
			}
			own.fields = append(own.fields, f)
		case sf.Type.Kind() == reflect.Struct:
			inner, err := walkStruct(program, prefix+sf.Tag.Get("envPrefix"), v.Field(i), count)
			if err != nil {
				return nil, err
			}
			groups = append(groups, inner...)
		default:
			return nil, fmt.Errorf("field %s of %s has no env tag (env:\"-\" leaves it out)", sf.Name, v.Type())
		}
	}
	return append(groups, own), nil
}

// declared lists the leaves in the order in which the structs declare them.
func declared(groups []group) []field {
	var fields []field
	for _, g := range groups {
		fields = append(fields, g.fields...)
	}
	slices.SortFunc(fields, func(a, b field) int { return a.order - b.order })
	return fields
}

// parse gives the one field to caarlos0/env in a struct of its own: only so does an error name the variable that is wrong.
func (f field) parse(values map[string]string) error {
	holder := reflect.New(reflect.StructOf([]reflect.StructField{{Name: f.tags.Name, Type: f.tags.Type, Tag: f.tags.Tag}}))
	holder.Elem().Field(0).Set(f.value)
	err := env.ParseWithOptions(holder.Interface(), env.Options{
		Environment: values,
		Prefix:      strings.TrimSuffix(f.name, f.own),
	})
	if err == nil {
		f.value.Set(holder.Elem().Field(0))
		return nil
	}
	value, given := values[f.name]
	var parsing env.ParseError
	switch {
	case !errors.As(err, &parsing):
		return fmt.Errorf("reading %s: %w", f.name, err)
	case f.secret:
		return fmt.Errorf("reading %s: expected %s (the value is secret)", f.name, typeName(f.tags.Type))
	case !given || value == "":
		return fmt.Errorf("reading %s: its default %q is no %s: %w", f.name, f.tags.Tag.Get("envDefault"), typeName(f.tags.Type), parsing.Err)
	default:
		return fmt.Errorf("reading %s=%q: expected %s: %w", f.name, value, typeName(f.tags.Type), parsing.Err)
	}
}

// environment is what a program was started with, also by canonical name.
type environment struct {
	exact     map[string]string
	canonical map[string][]string // canonical name → names as given, sorted
}

func newEnvironment(environ []string) environment {
	e := environment{exact: map[string]string{}, canonical: map[string][]string{}}
	for _, line := range environ {
		if name, value, ok := strings.Cut(line, "="); ok && name != "" {
			e.exact[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.exact)) {
		e.canonical[canonical(name)] = append(e.canonical[canonical(name)], name)
	}
	return e
}

// canonical makes the spellings of a .NET configuration key equal: A__B, a__b and A:B are one.
func canonical(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "__", ":"))
}

// lookup returns the environment as this one field sees it: its own name only, with the value of the own name or else of the
// first alias that is set.
func (e environment) lookup(f field) (values map[string]string, warnings []string) {
	value := tidyList(f.tags.Type, f.tags.Tag.Get("envSeparator"), e.exact[f.name])
	from := f.name
	for _, alias := range f.aliases {
		given, name := e.alias(alias, f.tags.Type)
		switch {
		case given == "":
		case value == "":
			value, from = given, name
		case given != value && f.secret:
			warnings = append(warnings, fmt.Sprintf("%s and %s are both set and differ; %s is used", from, name, from))
		case given != value:
			warnings = append(warnings, fmt.Sprintf("%s=%q and %s=%q are both set and differ; %s is used", from, value, name, given, from))
		}
	}
	if value == "" {
		return map[string]string{}, warnings
	}
	return map[string]string{f.name: value}, warnings
}
