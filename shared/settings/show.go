package settings

import (
	"encoding"
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"strings"
	"time"
)

// Effective returns the configuration as attributes for one log line: names without the program's prefix, secrets as
// "(set)", passwords in URLs hidden. cfg is the struct or a pointer to it.
func Effective(cfg any) []any {
	groups, err := walk("", structOf(cfg))
	if err != nil {
		return []any{slog.String("settings", err.Error())}
	}
	var attrs []any
	for _, f := range declared(groups) {
		attrs = append(attrs, slog.String(f.name, f.shown()))
	}
	return attrs
}

// structOf makes an addressable copy, so that the struct itself and a pointer to it are treated alike.
func structOf(cfg any) reflect.Value {
	v := reflect.Indirect(reflect.ValueOf(cfg))
	if v.Kind() != reflect.Struct {
		return reflect.ValueOf(struct{}{})
	}
	addressable := reflect.New(v.Type()).Elem()
	addressable.Set(v)
	return addressable
}

func (f field) shown() string {
	if f.secret {
		if f.value.IsZero() {
			return ""
		}
		return "(set)"
	}
	return text(f.value)
}

func text(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		items := make([]string, v.Len())
		for i := range items {
			items[i] = text(v.Index(i))
		}
		return strings.Join(items, ",")
	}
	if v.Kind() == reflect.Pointer && v.IsNil() {
		return ""
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if b, err := m.MarshalText(); err == nil {
			return string(b)
		}
	}
	s := fmt.Sprint(v.Interface())
	if strings.Contains(s, "://") && strings.Contains(s, "@") {
		if u, err := url.Parse(s); err == nil {
			return u.Redacted()
		}
		return "(hidden: looks like an address with a password)"
	}
	return s
}

// Markdown renders the configuration as a table, one row per variable, for docs/configuration.md.
func Markdown(prefix string, cfg any) string {
	groups, err := walk(prefix, structOf(cfg))
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	b.WriteString("| name | type | default | meaning | also read |\n|---|---|---|---|---|\n")
	for _, f := range declared(groups) {
		def := "–"
		if value, ok := f.tags.Tag.Lookup("envDefault"); ok && value != "" {
			def = "`" + cell(value) + "`"
		}
		aliases := make([]string, len(f.aliases))
		for i, alias := range f.aliases {
			aliases[i] = "`" + cell(alias) + "`"
		}
		doc := f.tags.Tag.Get("doc")
		if f.secret {
			doc += " Never shown."
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.name, typeName(f.tags.Type), def, cell(doc), strings.Join(aliases, ", "))
	}
	return b.String()
}

func cell(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "|", `\|`), "\n", " ")
}

// typeName is what a person calls the type.
func typeName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t == reflect.TypeFor[Level]() || t == reflect.TypeFor[slog.Level]():
		return "log level"
	case t.Kind() == reflect.Slice:
		return "comma list of " + typeName(t.Elem()) + "s"
	case t.PkgPath() == "net/netip" && t.Name() == "Prefix":
		return "network"
	case t.PkgPath() == "net/netip":
		return "address"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true/false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "number"
	case reflect.Float32, reflect.Float64:
		return "decimal"
	case reflect.String:
		return "text"
	case reflect.Pointer:
		return typeName(t.Elem())
	}
	return t.Name()
}
