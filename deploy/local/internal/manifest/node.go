package manifest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds on what a file may hold: an alias bomb or a wrong file ends early.
const (
	maxFileBytes = 1 << 20
	maxNodes     = 100_000
	maxDepth     = 32
)

type kind int

const (
	scalar kind = iota
	null
	list
	mapping
)

func (k kind) String() string {
	return [...]string{"a single value", "nothing", "a list", "a mapping"}[k]
}

// node is one value of a manifest: YAML without its tags and aliases, with names of keys as the schema spells them.
type node struct {
	file   string
	line   int
	kind   kind
	text   string
	secret bool // text came from a variable: never shown
	items  []*node
	fields []field
}

// field is one key of a mapping.
type field struct {
	key   string
	line  int
	value *node
}

// get returns the value of a key, nil when absent.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for _, f := range n.fields {
		if f.key == key {
			return f.value
		}
	}
	return nil
}

// show is the value for a message.
func (n *node) show() string {
	if n.secret {
		return "*** (from a variable)"
	}
	if len(n.text) > 80 {
		return fmt.Sprintf("%q…", n.text[:80])
	}
	return fmt.Sprintf("%q", n.text)
}

// loader turns one YAML file into a node tree.
type loader struct {
	file     string
	nodes    int
	problems []Problem
}

func (l *loader) fail(line int, key, format string, args ...any) {
	l.problems = append(l.problems, Problem{File: l.file, Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

// load reads a file. The node is nil when the file is empty or cannot be read as YAML.
func load(path string) (*node, []Problem) {
	l := &loader{file: path}
	content, err := readBounded(path)
	if err != nil {
		l.fail(0, "", "cannot be read: %v", err)
		return nil, l.problems
	}
	decoder := yaml.NewDecoder(strings.NewReader(content))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if !errors.Is(err, io.EOF) {
			l.fail(0, "", "is not YAML: %v", err)
		}
		return nil, l.problems
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		l.fail(second.Line, "", "a second document starts here: a manifest is one document; give several files with -f")
	} else if !errors.Is(err, io.EOF) {
		l.fail(0, "", "is not YAML: %v", err)
	}
	if len(document.Content) == 0 {
		return nil, l.problems
	}
	return l.node(document.Content[0], root, "", 0), l.problems
}

func readBounded(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		var pathError *os.PathError
		if errors.As(err, &pathError) {
			return "", pathError.Err // the path is said by the problem already
		}
		return "", err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return "", fmt.Errorf("reading: %w", err)
	}
	if len(content) > maxFileBytes {
		return "", fmt.Errorf("larger than %d bytes", maxFileBytes)
	}
	return string(content), nil
}

// node converts y, checks its kind and its keys against the shape. It returns nil where nothing can be made of it.
func (l *loader) node(y *yaml.Node, s *shape, key string, depth int) *node {
	l.nodes++
	if l.nodes > maxNodes || depth > maxDepth {
		if l.nodes == maxNodes+1 || depth > maxDepth {
			l.fail(y.Line, key, "too much: at most %d values, %d levels deep", maxNodes, maxDepth)
		}
		return nil
	}
	for y.Kind == yaml.AliasNode {
		y = y.Alias
		if depth++; depth > maxDepth {
			l.fail(y.Line, key, "aliases go round in a circle")
			return nil
		}
	}
	n := &node{file: l.file, line: y.Line, text: y.Value}
	switch y.Kind {
	case yaml.ScalarNode:
		if n.kind = scalar; y.Tag == "!!null" {
			n.kind = null
			return n // `null` removes, whatever stands there
		}
	case yaml.SequenceNode:
		n.kind = list
	case yaml.MappingNode:
		n.kind = mapping
	default:
		l.fail(y.Line, key, "cannot be understood")
		return nil
	}
	if n.kind != s.kind {
		l.fail(y.Line, key, "must be %v, found %v", s.kind, n.kind)
		return nil
	}
	switch n.kind {
	case list:
		for i, item := range y.Content {
			if v := l.node(item, &shape{kind: scalar}, fmt.Sprintf("%s[%d]", key, i), depth+1); v != nil {
				n.items = append(n.items, v)
			}
		}
	case mapping:
		l.mapping(n, y, s, key, depth)
	}
	return n
}

func (l *loader) mapping(n *node, y *yaml.Node, s *shape, key string, depth int) {
	seen := map[string]int{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		written := y.Content[i]
		name, inner := written.Value, s.each
		if inner == nil {
			var known bool
			if name, inner, known = s.field(written.Value); !known {
				l.fail(written.Line, join(key, written.Value), "unknown key; known here: %s%s", strings.Join(s.names(), ", "), nearest(written.Value, s.names()))
				continue
			}
		}
		path := join(key, name)
		if first, double := seen[name]; double {
			l.fail(written.Line, path, "is here twice, first in line %d", first)
			continue
		}
		seen[name] = written.Line
		if v := l.node(y.Content[i+1], inner, path, depth+1); v != nil {
			n.fields = append(n.fields, field{key: name, line: written.Line, value: v})
		}
	}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// nearest adds a hint when a known key is at most two letters away.
func nearest(name string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := edits(strings.ToLower(name), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

// merge lays over on top of base: mappings key by key, anything else replaced, `null` removed.
func merge(base, over *node) *node {
	switch {
	case over == nil:
		return base
	case over.kind == null:
		return nil
	case over.kind != mapping:
		return over
	}
	out := &node{file: over.file, line: over.line, kind: mapping}
	if base != nil && base.kind == mapping {
		out.file, out.line = base.file, base.line
		out.fields = slices.Clone(base.fields)
	}
	for _, f := range over.fields {
		at := slices.IndexFunc(out.fields, func(have field) bool { return have.key == f.key })
		var under *node
		if at >= 0 {
			under = out.fields[at].value
		}
		value := merge(under, f.value)
		switch {
		case value == nil && at >= 0:
			out.fields = slices.Delete(out.fields, at, at+1)
		case value == nil:
		case at >= 0:
			out.fields[at].value = value
		default:
			out.fields = append(out.fields, field{key: f.key, line: f.line, value: value})
		}
	}
	return out
}
