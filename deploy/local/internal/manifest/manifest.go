// Package manifest reads the local manifest (slimfaas.local.yaml): several files merged from left to right, variables
// expanded, every mistake reported at once with its key and line.
package manifest

import (
	"fmt"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
)

// Manifest is one local stack, complete and checked.
type Manifest struct {
	Name      string // also the namespace
	Dir       string // of the first file; relative paths start here
	Cluster   Cluster
	Ports     Range // for functions and processes with `port: auto`
	State     State
	Functions []Function // in the order of the files
	Jobs      []Job
	Processes []Process

	// Warnings hurt nobody. Broken lists annotations that function.Parse refused: those functions run with defaults
	// and are shown as broken; they are not errors of the manifest.
	Warnings []Problem
	Broken   []Problem
}

// Cluster says how many of our own processes run, and where.
type Cluster struct {
	Nodes          int // queue nodes: 1, 3 or 5
	Edges          int
	Scalers        int
	EntrypointPort int    // edge n listens on EntrypointPort + n
	RaftPortBase   int    // 0: chosen free; else queue node n uses RaftPortBase + n for Raft
	TLS            bool   // between our processes; off by default, for they listen on loopback
	LogLevel       string // ours: debug, info, warn, error. Empty: not said
}

// Range of ports, both ends included.
type Range struct{ From, To int }

// Contains says whether port lies in the range.
func (r Range) Contains(port int) bool { return port >= r.From && port <= r.To }

// Len is the number of ports.
func (r Range) Len() int { return r.To - r.From + 1 }

// State says where the data lives and how long.
type State struct {
	Ephemeral bool
	Directory string // absolute
}

// Function is one function of the manifest. Command, environment and working directory may hold {port} and {replica}.
type Function struct {
	Name        string
	Command     []string
	Dir         string // absolute
	DebugURL    string // http://host:port of a function somebody else runs; then there is no Command
	Annotations map[string]string
	Environment map[string]string
	Health      Health
	Shutdown    Shutdown
	// Spec is what the annotations say, with defaults where they are broken.
	Spec function.Specification
}

// MaxReplicas is how many replicas the annotations ask for at most: Scale.ReplicaMax, else the larger of start and minimum.
func (f Function) MaxReplicas() int {
	if s := f.Spec.Scale; s != nil && s.ReplicaMax != nil {
		return max(*s.ReplicaMax, f.Spec.ReplicasMin)
	}
	return max(f.Spec.ReplicasAtStart, f.Spec.ReplicasMin, 1)
}

// Health says how readiness is asked: a GET of Path that answers 2xx.
type Health struct {
	Path           string
	Period         time.Duration // between two questions once ready
	Timeout        time.Duration // of one question
	StartupTimeout time.Duration // without readiness for this long the process is replaced
}

// Shutdown says how a replica is stopped: a POST of Path when there is one, then SIGTERM, and SIGKILL after Timeout.
type Shutdown struct {
	Path    string // empty: no POST
	Timeout time.Duration
}

// Job is parsed and listed; nothing runs it before the jobs issue.
type Job struct{ Name string }

// Process is a helper that runs beside the functions.
type Process struct {
	Name        string
	Command     []string
	Dir         string
	Environment map[string]string
	Port        int  // 0: none, or chosen when AutoPort
	AutoPort    bool // from the range of processPorts
	Restart     Restart
}

// Restart says when a process that ended is started again.
type Restart string

// Values of Restart.
const (
	RestartAlways    Restart = "always"
	RestartOnFailure Restart = "onFailure"
	RestartNever     Restart = "never"
)

// Problem is one mistake and its place. Text never contains a value that came from a variable.
type Problem struct {
	File string
	Line int    // 0: the whole file
	Key  string // dotted; empty: the file itself
	Text string
}

// String is `file:line: key: text`.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Invalid is the error of a manifest: all that is wrong with it.
type Invalid []Problem

func (e Invalid) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Expand replaces {port} and {replica} in a text of the manifest. Port 0 leaves {port} as it is.
func Expand(text string, port, replica int) string {
	if port > 0 {
		text = strings.ReplaceAll(text, "{port}", fmt.Sprint(port))
	}
	return strings.ReplaceAll(text, "{replica}", fmt.Sprint(replica))
}
