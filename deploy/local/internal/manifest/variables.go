package manifest

import (
	"fmt"
	"strings"
)

// Variables are what ${NAME} may stand for.
type Variables map[string]string

// NewVariables takes an environment of `NAME=value` lines.
func NewVariables(environ []string) Variables {
	v := Variables{}
	for _, line := range environ {
		if name, value, ok := strings.Cut(line, "="); ok && name != "" {
			v[name] = value
		}
	}
	return v
}

// AddFile lays an env file on top: NAME=value lines, `#` comments, an optional `export`, optional quotes. The last word wins.
// Errors name the line and never its content.
func (v Variables) AddFile(path string) error {
	content, err := readBounded(path)
	if err != nil {
		return fmt.Errorf("reading env file %s: %w", path, err)
	}
	for i, line := range strings.Split(content, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "=")
		name = strings.TrimSpace(name)
		if !ok || !variableName(name) {
			return fmt.Errorf("reading env file %s: line %d is not NAME=value", path, i+1)
		}
		value = strings.TrimSpace(value)
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		v[name] = value
	}
	return nil
}

func variableName(name string) bool {
	for i, c := range name {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// expand replaces every ${NAME} in the tree; `$${` is a literal `${`. What was replaced is marked secret.
func (v Variables) expand(n *node, key string) []Problem {
	if n == nil {
		return nil
	}
	var problems []Problem
	switch n.kind {
	case scalar:
		text, used, missing := v.replace(n.text)
		for _, name := range missing {
			problems = append(problems, Problem{File: n.file, Line: n.line, Key: key, Text: fmt.Sprintf("${%s} is set neither in the environment nor in an env file", name)})
		}
		n.text, n.secret = text, used
	case list:
		for i, item := range n.items {
			problems = append(problems, v.expand(item, fmt.Sprintf("%s[%d]", key, i))...)
		}
	case mapping:
		for _, f := range n.fields {
			problems = append(problems, v.expand(f.value, join(key, f.key))...)
		}
	}
	return problems
}

func (v Variables) replace(text string) (out string, used bool, missing []string) {
	var b strings.Builder
	for {
		at := strings.Index(text, "${")
		if at < 0 {
			b.WriteString(text)
			return b.String(), used, missing
		}
		if at > 0 && text[at-1] == '$' {
			b.WriteString(text[:at-1] + "${")
			text = text[at+2:]
			continue
		}
		b.WriteString(text[:at])
		name, rest, closed := strings.Cut(text[at+2:], "}")
		if !closed || !variableName(name) {
			b.WriteString("${") // not a variable of ours: left as written
			text = text[at+2:]
			continue
		}
		value, known := v[name]
		if !known {
			missing = append(missing, name)
		}
		used = true
		b.WriteString(value)
		text = rest
	}
}
