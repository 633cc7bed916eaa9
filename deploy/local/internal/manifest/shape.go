package manifest

import (
	"slices"
	"strings"
)

// shape says what may stand at a place of the manifest. A mapping either has fields (names of ours, matched without case)
// or takes any key, each with the same inner shape.
type shape struct {
	kind   kind
	fields map[string]*shape
	each   *shape
}

// field finds a key of ours without regard to case.
func (s *shape) field(written string) (string, *shape, bool) {
	for name, inner := range s.fields {
		if strings.EqualFold(name, written) {
			return name, inner, true
		}
	}
	return "", nil, false
}

func (s *shape) names() []string {
	names := make([]string, 0, len(s.fields))
	for name := range s.fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func object(fields map[string]*shape) *shape { return &shape{kind: mapping, fields: fields} }
func each(inner *shape) *shape               { return &shape{kind: mapping, each: inner} }

var (
	text  = &shape{kind: scalar}
	texts = &shape{kind: list}
	words = each(text)
)

// root is the whole manifest: upstream's keys, and our `edges`, `scalers` and `tls` in `cluster`.
var root = object(map[string]*shape{
	"schemaVersion": text,
	"name":          text,
	"cluster": object(map[string]*shape{
		"nodes": text, "edges": text, "scalers": text, "tls": text, "entrypointPort": text, "nodeHttpPortBase": text, "raftPortBase": text, "nodeLogLevel": text,
	}),
	"processPorts": object(map[string]*shape{"from": text, "to": text}),
	"state":        object(map[string]*shape{"mode": text, "directory": text}),
	"functions": each(object(map[string]*shape{
		"command": texts, "workingDirectory": text, "debugUrl": text, "annotations": words, "environment": words,
		"health":   object(map[string]*shape{"path": text, "periodSeconds": text, "timeoutSeconds": text, "startupTimeoutSeconds": text}),
		"shutdown": object(map[string]*shape{"path": text, "timeoutSeconds": text}),
	})),
	"jobs": each(object(map[string]*shape{
		"command": texts, "workingDirectory": text, "annotations": words, "environment": words,
		"ttlSecondsAfterFinished": text, "backoffLimit": text, "restartPolicy": text,
		"resources": object(map[string]*shape{"requests": words, "limits": words}),
	})),
	"processes": each(object(map[string]*shape{
		"command": texts, "workingDirectory": text, "environment": words, "port": text, "restartPolicy": text,
	})),
})
