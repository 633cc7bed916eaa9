package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// read writes the texts as files of one folder and reads them as one manifest.
func read(t *testing.T, vars Variables, texts ...string) (*Manifest, error) {
	t.Helper()
	dir := t.TempDir()
	files := make([]string, len(texts))
	for i, text := range texts {
		files[i] = filepath.Join(dir, string(rune('a'+i))+".yaml")
		if err := os.WriteFile(files[i], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Read(files, vars)
}

const one = `
functions:
  hello:
    command: [./run, --port, "{port}"]
    annotations: {SlimFaas/Function: "true"}
`

func TestDefaultsAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	m, err := read(t, nil, one)
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "slimfaas-local" || m.Cluster != (Cluster{Nodes: 3, Edges: 1, Scalers: 1, EntrypointPort: 30021}) || m.Ports != (Range{5000, 5999}) {
		t.Errorf("got %+v", m)
	}
	if m.State.Ephemeral || m.State.Directory != filepath.Join(m.Dir, ".slimfaas/slimfaas-local") {
		t.Errorf("state %+v", m.State)
	}
	f := m.Functions[0]
	if f.Health != (Health{"/health", time.Second, 2 * time.Second, 2 * time.Minute}) || f.Shutdown != (Shutdown{"", 5 * time.Second}) {
		t.Errorf("health %+v, shutdown %+v", f.Health, f.Shutdown)
	}
	if f.Dir != m.Dir || f.Spec.TimeoutSecondBeforeSetReplicasMin != 300 || f.MaxReplicas() != 1 {
		t.Errorf("function %+v", f)
	}
}

func TestFilesMergeFromLeftToRight(t *testing.T) {
	t.Parallel()
	base := `
name: base
cluster: {nodes: 3, entrypointPort: 31000}
functions:
  hello:
    command: [a, b]
    annotations: {SlimFaas/Function: "true", SlimFaas/ReplicasMin: "1"}
    environment: {KEEP: k, DROP: d}
  gone:
    command: [x]
    annotations: {SlimFaas/Function: "true"}
processes:
  web: {command: [w], port: auto}
`
	over := `
NAME: over
Cluster: {Nodes: 1}
functions:
  gone: null
  hello:
    COMMAND: [c]
    annotations: {SlimFaas/ReplicasMin: "2"}
    environment: {DROP: null, NEW: n}
    health: {path: /up}
  never: null
processes: null
`
	m, err := read(t, nil, base, over)
	if err != nil {
		t.Fatal(err)
	}
	f := m.Functions[0]
	if m.Name != "over" || m.Cluster.Nodes != 1 || m.Cluster.EntrypointPort != 31000 || len(m.Functions) != 1 || len(m.Processes) != 0 {
		t.Errorf("got %+v", m)
	}
	if !slices.Equal(f.Command, []string{"c"}) || f.Spec.ReplicasMin != 2 || len(f.Environment) != 2 || f.Environment["NEW"] != "n" || f.Health.Path != "/up" {
		t.Errorf("function %+v", f)
	}
}

func TestEveryMistakeIsNamedWithItsLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "clusters: {}\n" + one, "a.yaml:1: clusters: unknown key"},
		{"with a hint", "functions:\n  hello:\n    comand: [x]\n", "a.yaml:3: functions.hello.comand: unknown key; known here: annotations, command, debugUrl, environment, health, shutdown, workingDirectory (did you mean command?)"},
		{"double key", "name: a\nname: b\n", "a.yaml:2: name: is here twice, first in line 1"},
		{"double key in another case", "cluster:\n  nodes: 1\n  Nodes: 3\n", "a.yaml:3: cluster.nodes: is here twice"},
		{"double annotation", "functions:\n  hello:\n    annotations:\n      a: x\n      a: y\n", "a.yaml:5: functions.hello.annotations.a: is here twice"},
		{"second document", one + "---\nname: x\n", "a second document starts here"},
		{"no YAML", "a: [", "is not YAML"},
		{"list for a mapping", "cluster: [1]\n", "a.yaml:1: cluster: must be a mapping, found a list"},
		{"mapping in a command", "functions:\n  hello:\n    command: [{a: b}]\n", "functions.hello.command[0]: must be a single value"},
		{"two nodes", "cluster: {nodes: 2}\n", "cluster.nodes: 2 is refused: a majority of two is two"},
		{"four nodes", "cluster: {nodes: 4}\n", "4 is refused"},
		{"seven nodes", "cluster: {nodes: 7}\n", "must be a whole number 1–5"},
		{"schema", "schemaVersion: 2\n", "schemaVersion: must be 1"},
		{"name", "name: \"a b\"\n", "name: must match"},
		{"log level", "cluster: {nodeLogLevel: loud}\n", "nodeLogLevel: must be one of"},
		{"mode", "state: {mode: maybe}\n", "state.mode: must be persistent or ephemeral"},
		{"port", "cluster: {entrypointPort: 70000}\n", "entrypointPort: must be a whole number 1–65535"},
		{"last edge above the ports", "cluster: {entrypointPort: 65535, edges: 2}\n", "port 65536 for edge-1 is above 65535"},
		{"range", "processPorts: {from: 6000, to: 5000}\n", "from 6000 is above to 5000"},
		{"entry in the range", "processPorts: {from: 30000, to: 30100}\n", "port 30021 for edge-0 lies in processPorts 30000–30100"},
		{"raft over an entry", "cluster: {raftPortBase: 30020}\n", "port 30021 for Raft of queue-1 is already that of edge-0"},
		{"process over an entry", "processes: {web: {command: [x], port: 30021}}\n", "port 30021 for process web is already that of edge-0"},
		{"not enough ports", "processPorts: {from: 5000, to: 5001}\nfunctions: {hello: {command: [x], annotations: {SlimFaas/Function: \"true\", SlimFaas/ReplicasAtStart: \"3\"}}}\n", "2 ports (5000–5001) are not enough: the functions at their largest and the processes need 3"},
		{"function name", "functions: {Hello: {command: [x], annotations: {SlimFaas/Function: \"true\"}}}\n", "functions.Hello: a function's name must match"},
		{"short name", "functions: {ab: {command: [x], annotations: {SlimFaas/Function: \"true\"}}}\n", "functions.ab: a function's name must match"},
		{"not a function", "functions: {hello: {command: [x]}}\n", `functions.hello.annotations: SlimFaas/Function: "true" is missing`},
		{"no command", "functions: {hello: {annotations: {SlimFaas/Function: \"true\"}}}\n", "functions.hello: command is missing"},
		{"debugUrl", "functions: {hello: {debugUrl: \"https://x\", annotations: {SlimFaas/Function: \"true\"}}}\n", "debugUrl: must be http://host:port"},
		{"debugUrl on an entry", "functions: {hello: {debugUrl: \"http://127.0.0.1:30021\", annotations: {SlimFaas/Function: \"true\"}}}\n", "port 30021 is already that of edge-0"},
		{"health path", "functions: {hello: {command: [x], health: {path: up}, annotations: {SlimFaas/Function: \"true\"}}}\n", "health.path: must be a path"},
		{"health period", "functions: {hello: {command: [x], health: {periodSeconds: 0}, annotations: {SlimFaas/Function: \"true\"}}}\n", "periodSeconds: must be a whole number 1–"},
		{"job", "jobs: {hello: {command: [x], annotations: {}}}\n", `SlimFaas/Job: "true" is missing`},
		{"job policy", "jobs: {hello: {command: [x], restartPolicy: Always, annotations: {SlimFaas/Job: \"true\"}}}\n", "restartPolicy: must be Never"},
		{"process port", "processes: {web: {command: [x], port: some}}\n", "port: must be none, auto or a port"},
		{"process without the port it uses", "processes: {web: {command: [x, \"{port}\"]}}\n", "{port} is used, but there is no port"},
		{"process policy", "processes: {web: {command: [x], restartPolicy: often}}\n", "restartPolicy: must be always, onFailure or never"},
		{"variable", "name: ${NAME}\n", "a.yaml:1: name: ${NAME} is set neither in the environment nor in an env file"},
	} {
		_, err := read(t, nil, c.text)
		var invalid Invalid
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got\n%v\nwant %s", c.name, err, c.want)
		}
	}
}

func TestAllMistakesAreToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := read(t, nil, "cluster: {nodes: 2}\nbogus: 1\nfunctions: {Bad: {}}\n", "other: 2\n")
	var invalid Invalid
	if !errors.As(err, &invalid) || len(invalid) < 5 {
		t.Errorf("got %v", err)
	}
}

func TestVariablesAreExpandedAndNeverShown(t *testing.T) {
	t.Parallel()
	env := filepath.Join(t.TempDir(), ".env")
	if err := os.WriteFile(env, []byte("# a comment\nexport SECRET='hunter2'\nPORT=\"31000\"\nBAD=hunter3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	vars := NewVariables([]string{"SECRET=from-the-environment", "HOME=/home/x"})
	if err := vars.AddFile(env); err != nil {
		t.Fatal(err)
	}
	m, err := read(t, vars, one+"    environment: {KEY: \"a-${SECRET}\", LITERAL: \"$${SECRET}\", QUERY: \"sum($x) ${not a variable}\", PATH2: \"${HOME}/bin\"}\ncluster: {entrypointPort: \"${PORT}\"}\n")
	if err != nil {
		t.Fatal(err)
	}
	got := m.Functions[0].Environment
	want := map[string]string{"KEY": "a-hunter2", "LITERAL": "${SECRET}", "QUERY": "sum($x) ${not a variable}", "PATH2": "/home/x/bin"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if m.Cluster.EntrypointPort != 31000 {
		t.Errorf("a number from a variable became %d", m.Cluster.EntrypointPort)
	}
	_, err = read(t, vars, "name: \"${BAD} ${BAD}\"\ncluster: {nodes: \"${BAD}\", nodeLogLevel: \"${BAD}\"}\nstate: {mode: \"${BAD}\"}\n")
	if err == nil || strings.Contains(err.Error(), "hunter") || !strings.Contains(err.Error(), "***") {
		t.Errorf("the mistakes are told as %v", err)
	}
	m, err = read(t, vars, one+"    annotations: null\n", "functions: {hello: {annotations: {SlimFaas/Function: \"true\", SlimFaas/ReplicasMin: \"${BAD}\"}}}")
	if err == nil {
		t.Errorf("a double key passed: %+v", m)
	}
	m, err = read(t, vars, one, "functions: {hello: {annotations: {SlimFaas/ReplicasMin: \"${BAD}\"}}}")
	if err != nil || len(m.Broken) != 1 || strings.Contains(m.Broken[0].String(), "hunter") {
		t.Errorf("a broken annotation is told as %v, %v", m.Broken, err)
	}
}

func TestAnEnvFileSaysTheLineAndNotItsContent(t *testing.T) {
	t.Parallel()
	env := filepath.Join(t.TempDir(), ".env")
	if err := os.WriteFile(env, []byte("A=1\nhunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewVariables(nil).AddFile(env); err == nil || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestABrokenAnnotationIsNoMistakeOfTheManifest(t *testing.T) {
	t.Parallel()
	m, err := read(t, nil, one, `
functions:
  broken:
    command: [x]
    annotations:
      SlimFaas/Function: "true"
      SlimFaas/ReplicasMin: many
      SlimFaas/Configuration: '{"DefaultSync":{"HttpTimeout":"x"}}'
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Functions) != 2 || len(m.Broken) != 2 {
		t.Fatalf("functions %d, broken %v", len(m.Functions), m.Broken)
	}
	for _, p := range m.Broken {
		if line := map[bool]int{true: 7, false: 8}[strings.Contains(p.Key, "ReplicasMin")]; p.Line != line || !strings.HasPrefix(p.Key, "functions.broken.annotations.SlimFaas/") {
			t.Errorf("problem %q, want line %d", p, line)
		}
	}
}

func TestAliasesAreFollowedAndBombsEndEarly(t *testing.T) {
	t.Parallel()
	m, err := read(t, nil, `
functions:
  first: {command: &c [run], annotations: &a {SlimFaas/Function: "true"}}
  second: {command: *c, annotations: *a}
`)
	if err != nil || len(m.Functions) != 2 || m.Functions[1].Command[0] != "run" {
		t.Errorf("got %+v, %v", m, err)
	}
	bomb := "functions:\n  f: {command: &l0 [" + strings.Repeat("x,", 50) + "x]}\n"
	bomb += "jobs:\n"
	for i := range 5 {
		name, before := string(rune('a'+i)), string(rune('a'+i-1))
		if i == 0 {
			bomb += "  a: &a {environment: {k: v}}\n"
			continue
		}
		bomb += "  " + name + ": &" + name + " {environment: {" + strings.Repeat("q: *"+before+",", 60) + "}}\n"
	}
	if _, err := read(t, nil, bomb); err == nil {
		t.Error("a bomb passed")
	}
}

func TestTheSchemaTakesKeysInAnyCase(t *testing.T) {
	t.Parallel()
	m, err := read(t, nil, `
SCHEMAVERSION: "1"
Cluster: {NODES: 5, raftportbase: 3262, NodeHttpPortBase: 30022, nodeloglevel: information}
PROCESSPORTS: {FROM: 5100, To: 5200}
State: {Mode: Ephemeral}
Processes: {api: {Command: [x], Port: AUTO, RestartPolicy: OnFailure}}
`)
	if err != nil {
		t.Fatal(err)
	}
	if c := m.Cluster; c.Nodes != 5 || c.RaftPortBase != 3262 || c.LogLevel != "info" || m.Ports.From != 5100 || !m.State.Ephemeral {
		t.Errorf("got %+v", m)
	}
	if p := m.Processes[0]; !p.AutoPort || p.Restart != RestartOnFailure {
		t.Errorf("process %+v", p)
	}
	if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0].String(), "nodeHttpPortBase") {
		t.Errorf("warnings %v", m.Warnings)
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	if got := Expand("a-{port}-{replica}-{other}", 5000, 2); got != "a-5000-2-{other}" {
		t.Errorf("got %s", got)
	}
	if got := Expand("{port}", 0, 0); got != "{port}" {
		t.Errorf("got %s", got)
	}
}

func TestUpstreamsManifestsRunWithAThirdFileThatReplacesCommands(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("UPSTREAM_DEMO")
	if dir == "" {
		t.Skip("UPSTREAM_DEMO does not name the folder of upstream's manifests")
	}
	third := filepath.Join(t.TempDir(), "commands.yaml")
	text := "functions:\n"
	for _, name := range []string{"fibonacci1", "fibonacci2", "fibonacci3", "fibonacci4"} {
		text += "  " + name + ": {command: [/bin/demo-function], workingDirectory: /}\n"
	}
	text += "jobs: {fibonacci: {environment: {FIBONACCI_API_KEY: null}}}\nprocesses: null\n"
	if err := os.WriteFile(third, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	vars := Variables{"FIBONACCI_API_KEY": "k"}
	m, err := Read([]string{filepath.Join(dir, "slimfaas.local.yaml"), filepath.Join(dir, "slimfaas.local.dev.yaml"), third}, vars)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Functions) != 4 || len(m.Jobs) != 2 || len(m.Processes) != 0 || len(m.Broken) != 0 || m.Cluster.Nodes != 1 || !m.State.Ephemeral {
		t.Errorf("got %+v", m)
	}
	if f := m.Functions[0]; f.Annotations["prometheus.io/port"] != "{port}" || f.Environment["FIBONACCI_API_KEY"] != "k" || f.MaxReplicas() != 3 {
		t.Errorf("fibonacci1 %+v", f)
	}
	m, err = Read([]string{filepath.Join(dir, "slimfaas.local.benchmark.yaml")}, nil)
	if err != nil || len(m.Functions) != 2 || m.Functions[0].DebugURL != "http://127.0.0.1:31080" {
		t.Errorf("benchmark: %+v, %v", m, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(one)
	f.Add("cluster: {nodes: ${A}}\nfunctions: &a {x: *a}\n")
	f.Add("processes: {a: {port: auto, command: [\"{port}\"]}}\njobs: null\n")
	// Property: any text gives a manifest or problems, never a panic, and never an empty error.
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := Read([]string{file}, Variables{"A": "1"})
		if (m == nil) == (err == nil) || err != nil && err.Error() == "" {
			t.Errorf("manifest %v, error %v", m, err)
		}
	})
}
