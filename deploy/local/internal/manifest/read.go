package manifest

import (
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
)

// Defaults of the format; ours where the contract leaves us the choice.
const (
	defaultName       = "slimfaas-local"
	defaultNodes      = 3
	defaultEntrypoint = 30021
	maxEdges          = 16
	maxScalers        = 8
	maxSeconds        = 24 * 60 * 60
)

var (
	stackName    = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)
	functionName = regexp.MustCompile(`^[a-z0-9_-]{3,63}$`)
	processName  = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)

	// logLevels maps .NET's names to ours.
	logLevels = map[string]string{
		"trace": "debug", "debug": "debug", "information": "info", "warning": "warn", "error": "error", "critical": "error", "none": "error",
	}
)

// Read merges the files, expands variables and checks everything. The error is an Invalid with all that is wrong.
func Read(files []string, vars Variables) (*Manifest, error) {
	if len(files) == 0 {
		return nil, Invalid{{Text: "no file given"}}
	}
	var tree *node
	var problems []Problem
	for _, file := range files {
		n, bad := load(file)
		problems = append(problems, bad...)
		if n == nil {
			continue
		}
		if n.kind == null {
			n = nil
		}
		tree = merge(tree, n)
	}
	problems = append(problems, vars.expand(tree, "")...)
	dir, err := filepath.Abs(filepath.Dir(files[0]))
	if err != nil {
		return nil, fmt.Errorf("finding the folder of %s: %w", files[0], err)
	}
	r := &reader{file: files[0], problems: problems}
	m := r.manifest(tree, dir)
	if len(r.problems) > 0 {
		return nil, Invalid(r.problems)
	}
	return m, nil
}

// reader turns a tree into a manifest and gathers what is wrong.
type reader struct {
	file     string // for what belongs to no line
	problems []Problem
}

func (r *reader) fail(n *node, key, format string, args ...any) {
	r.problems = append(r.problems, r.at(n, key, fmt.Sprintf(format, args...)))
}

func (r *reader) at(n *node, key, text string) Problem {
	if n == nil {
		return Problem{File: r.file, Key: key, Text: text}
	}
	return Problem{File: n.file, Line: n.line, Key: key, Text: text}
}

func (r *reader) manifest(tree *node, dir string) *Manifest {
	m := &Manifest{Dir: dir, Name: r.word(tree.get("name"), defaultName)}
	if v := tree.get("schemaVersion"); v != nil && v.text != "1" {
		r.fail(v, "schemaVersion", "must be 1, found %s", v.show())
	}
	if !stackName.MatchString(m.Name) {
		r.fail(tree.get("name"), "name", "must match %s, found %s", stackName, tree.get("name").show())
	}
	r.cluster(m, tree.get("cluster"))
	ports := tree.get("processPorts")
	m.Ports = Range{From: r.port(ports.get("from"), "processPorts.from", 5000), To: r.port(ports.get("to"), "processPorts.to", 5999)}
	if m.Ports.From > m.Ports.To {
		r.fail(ports, "processPorts", "from %d is above to %d", m.Ports.From, m.Ports.To)
	}
	r.state(m, tree.get("state"))
	if functions := tree.get("functions"); functions != nil {
		for _, f := range functions.fields {
			r.function(m, f)
		}
	}
	if jobs := tree.get("jobs"); jobs != nil {
		for _, f := range jobs.fields {
			r.job(m, f)
		}
	}
	if processes := tree.get("processes"); processes != nil {
		for _, f := range processes.fields {
			r.process(m, f)
		}
	}
	r.overlaps(m, tree)
	return m
}

func (r *reader) cluster(m *Manifest, n *node) {
	c := &m.Cluster
	c.Nodes = r.number(n.get("nodes"), "cluster.nodes", defaultNodes, 1, 5)
	switch c.Nodes {
	case 2:
		r.fail(n.get("nodes"), "cluster.nodes", "2 is refused: a majority of two is two, so the death of either stops the queue; take 1, 3 or 5")
	case 4:
		r.fail(n.get("nodes"), "cluster.nodes", "4 is refused: it survives one death as three do, and costs more; take 1, 3 or 5")
	}
	c.Edges = r.number(n.get("edges"), "cluster.edges", 1, 1, maxEdges)
	c.Scalers = r.number(n.get("scalers"), "cluster.scalers", 1, 1, maxScalers)
	c.EntrypointPort = r.port(n.get("entrypointPort"), "cluster.entrypointPort", defaultEntrypoint)
	if v := n.get("tls"); v != nil {
		var err error
		if c.TLS, err = strconv.ParseBool(strings.ToLower(v.text)); err != nil {
			r.fail(v, "cluster.tls", "must be true or false, found %s", v.show())
		}
	}
	if base := n.get("raftPortBase"); base != nil {
		c.RaftPortBase = r.port(base, "cluster.raftPortBase", 0)
	}
	if base := n.get("nodeHttpPortBase"); base != nil {
		r.port(base, "cluster.nodeHttpPortBase", 0)
		m.Warnings = append(m.Warnings, r.at(base, "cluster.nodeHttpPortBase", "is ignored: queue nodes have no HTTP face of their own here"))
	}
	if level := n.get("nodeLogLevel"); level != nil {
		known := false
		if c.LogLevel, known = logLevels[strings.ToLower(level.text)]; !known {
			r.fail(level, "cluster.nodeLogLevel", "must be one of Trace, Debug, Information, Warning, Error, Critical, None, found %s", level.show())
		}
	}
}

func (r *reader) state(m *Manifest, n *node) {
	switch mode := n.get("mode"); {
	case mode == nil, strings.EqualFold(mode.text, "persistent"):
	case strings.EqualFold(mode.text, "ephemeral"):
		m.State.Ephemeral = true
	default:
		r.fail(mode, "state.mode", "must be persistent or ephemeral, found %s", mode.show())
	}
	dir := r.word(n.get("directory"), filepath.Join(".slimfaas", m.Name))
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(m.Dir, dir)
	}
	m.State.Directory = filepath.Clean(dir)
}

func (r *reader) function(m *Manifest, f field) {
	key, n := "functions."+f.key, f.value
	out := Function{Name: f.key}
	if !functionName.MatchString(f.key) || !function.ValidName(f.key) {
		r.fail(n, key, "a function's name must match %s and start and end with a letter, a digit or _", functionName)
	}
	out.Annotations = r.pairs(n.get("annotations"), key+".annotations")
	if !strings.EqualFold(out.Annotations["SlimFaas/Function"], "true") {
		r.fail(n, key+".annotations", `SlimFaas/Function: "true" is missing`)
	}
	out.Environment = r.environment(n.get("environment"), key+".environment")
	out.Dir = r.dir(m, n.get("workingDirectory"))
	out.Command = r.command(n.get("command"), key+".command")
	if debug := n.get("debugUrl"); debug != nil {
		out.DebugURL, out.Command = r.debugURL(debug, key+".debugUrl"), nil
	} else if len(out.Command) == 0 {
		r.fail(n, key, "command is missing (or debugUrl, for a function that somebody else runs)")
	}
	health := n.get("health")
	out.Health = Health{
		Path:           r.path(health.get("path"), key+".health.path", "/health"),
		Period:         r.seconds(health.get("periodSeconds"), key+".health.periodSeconds", 1),
		Timeout:        r.seconds(health.get("timeoutSeconds"), key+".health.timeoutSeconds", 2),
		StartupTimeout: r.seconds(health.get("startupTimeoutSeconds"), key+".health.startupTimeoutSeconds", 120),
	}
	stop := n.get("shutdown")
	out.Shutdown.Timeout = r.seconds(stop.get("timeoutSeconds"), key+".shutdown.timeoutSeconds", 5)
	if stop != nil {
		out.Shutdown.Path = r.path(stop.get("path"), key+".shutdown.path", "/shutdown")
	}
	spec, problems := function.Parse(f.key, out.Annotations)
	out.Spec = spec
	for _, p := range problems {
		m.Broken = append(m.Broken, r.annotation(n, key, p))
	}
	m.Functions = append(m.Functions, out)
}

// annotation places a problem of the annotation parser at its line, without the value when that came from a variable.
func (r *reader) annotation(n *node, key string, p function.Problem) Problem {
	name, _, _ := strings.Cut(p.Key, ".") // a member of a JSON annotation follows after a dot
	at := n.get("annotations").get(name)
	if at == nil {
		at = n
	}
	value := fmt.Sprintf("%q", p.Value)
	if at.secret {
		value = at.show()
	}
	return r.at(at, key+".annotations."+p.Key, fmt.Sprintf("%s is not what it must be: %s", value, p.Want))
}

func (r *reader) job(m *Manifest, f field) {
	key, n := "jobs."+f.key, f.value
	if !functionName.MatchString(f.key) {
		r.fail(n, key, "a job's name must match %s", functionName)
	}
	if len(r.command(n.get("command"), key+".command")) == 0 {
		r.fail(n, key, "command is missing")
	}
	if a := r.pairs(n.get("annotations"), key+".annotations"); !strings.EqualFold(a["SlimFaas/Job"], "true") {
		r.fail(n, key+".annotations", `SlimFaas/Job: "true" is missing`)
	}
	r.environment(n.get("environment"), key+".environment")
	r.number(n.get("ttlSecondsAfterFinished"), key+".ttlSecondsAfterFinished", 60, 0, maxSeconds)
	r.number(n.get("backoffLimit"), key+".backoffLimit", 1, 0, 1000)
	if p := n.get("restartPolicy"); p != nil && !strings.EqualFold(p.text, "Never") {
		r.fail(p, key+".restartPolicy", "must be Never, found %s", p.show())
	}
	if res := n.get("resources"); res != nil {
		m.Warnings = append(m.Warnings, r.at(res, key+".resources", "is ignored: a local process has no limits"))
	}
	m.Jobs = append(m.Jobs, Job{Name: f.key})
}

func (r *reader) process(m *Manifest, f field) {
	key, n := "processes."+f.key, f.value
	out := Process{Name: f.key, Restart: RestartAlways}
	if !processName.MatchString(f.key) {
		r.fail(n, key, "a process's name must match %s", processName)
	}
	if out.Command = r.command(n.get("command"), key+".command"); len(out.Command) == 0 {
		r.fail(n, key, "command is missing")
	}
	out.Dir = r.dir(m, n.get("workingDirectory"))
	out.Environment = r.environment(n.get("environment"), key+".environment")
	switch port := n.get("port"); {
	case port == nil, strings.EqualFold(port.text, "none"):
	case strings.EqualFold(port.text, "auto"):
		out.AutoPort = true
	default:
		number, err := strconv.Atoi(port.text)
		if err != nil || number < 1 || number > 65535 {
			r.fail(port, key+".port", "must be none, auto or a port 1–65535, found %s", port.show())
		}
		out.Port = number
	}
	if p := n.get("restartPolicy"); p != nil {
		known := []Restart{RestartAlways, RestartOnFailure, RestartNever}
		at := slices.IndexFunc(known, func(k Restart) bool { return strings.EqualFold(string(k), p.text) })
		if at < 0 {
			r.fail(p, key+".restartPolicy", "must be always, onFailure or never, found %s", p.show())
		} else {
			out.Restart = known[at]
		}
	}
	if out.Port == 0 && !out.AutoPort {
		for _, text := range append(slices.Clone(out.Command), values(out.Environment)...) {
			if strings.Contains(text, "{port}") {
				r.fail(n, key, "{port} is used, but there is no port: say port: auto, or a number")
				break
			}
		}
	}
	m.Processes = append(m.Processes, out)
}

// overlaps checks every fixed port against every other, and that the range is large enough.
func (r *reader) overlaps(m *Manifest, tree *node) {
	taken := map[int]string{}
	claim := func(n *node, key string, port int, holder string) {
		switch {
		case port == 0:
			return
		case port > 65535:
			r.fail(n, key, "port %d for %s is above 65535", port, holder)
		case taken[port] != "":
			r.fail(n, key, "port %d for %s is already that of %s", port, holder, taken[port])
		case m.Ports.Contains(port):
			r.fail(n, key, "port %d for %s lies in processPorts %d–%d, which belong to the functions", port, holder, m.Ports.From, m.Ports.To)
		default:
			taken[port] = holder
		}
	}
	cluster := tree.get("cluster")
	for i := range m.Cluster.Edges {
		claim(cluster.get("entrypointPort"), "cluster.entrypointPort", m.Cluster.EntrypointPort+i, fmt.Sprintf("edge-%d", i))
	}
	if m.Cluster.RaftPortBase > 0 {
		for i := range m.Cluster.Nodes {
			claim(cluster.get("raftPortBase"), "cluster.raftPortBase", m.Cluster.RaftPortBase+i, fmt.Sprintf("Raft of queue-%d", i))
		}
	}
	needed := 0
	for _, p := range m.Processes {
		if p.AutoPort {
			needed++
		}
		key := "processes." + p.Name + ".port"
		claim(tree.get("processes").get(p.Name).get("port"), key, p.Port, "process "+p.Name)
	}
	for _, f := range m.Functions {
		if f.DebugURL == "" {
			needed += f.MaxReplicas()
			continue
		}
		key := "functions." + f.Name + ".debugUrl"
		if u, err := url.Parse(f.DebugURL); err == nil {
			port, _ := strconv.Atoi(u.Port()) // checked when it was read
			if port > 0 && taken[port] != "" {
				r.fail(tree.get("functions").get(f.Name).get("debugUrl"), key, "port %d is already that of %s", port, taken[port])
			}
		}
	}
	if m.Ports.From <= m.Ports.To && needed > m.Ports.Len() {
		r.fail(tree.get("processPorts"), "processPorts", "%d ports (%d–%d) are not enough: the functions at their largest and the processes need %d", m.Ports.Len(), m.Ports.From, m.Ports.To, needed)
	}
}

func (r *reader) word(n *node, absent string) string {
	if n == nil {
		return absent
	}
	return n.text
}

func (r *reader) number(n *node, key string, absent, low, high int) int {
	if n == nil {
		return absent
	}
	v, err := strconv.Atoi(strings.TrimSpace(n.text))
	if err != nil || v < low || v > high {
		r.fail(n, key, "must be a whole number %d–%d, found %s", low, high, n.show())
		return absent
	}
	return v
}

func (r *reader) port(n *node, key string, absent int) int { return r.number(n, key, absent, 1, 65535) }

func (r *reader) seconds(n *node, key string, absent int) time.Duration {
	return time.Duration(r.number(n, key, absent, 1, maxSeconds)) * time.Second
}

func (r *reader) path(n *node, key, absent string) string {
	if n == nil {
		return absent
	}
	if u, err := url.Parse(n.text); !strings.HasPrefix(n.text, "/") || err != nil || u.Host != "" {
		r.fail(n, key, "must be a path that starts with /, found %s", n.show())
	}
	return n.text
}

func (r *reader) debugURL(n *node, key string) string {
	u, err := url.Parse(n.text)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		r.fail(n, key, "must be http://host:port and nothing behind it, found %s", n.show())
		return ""
	}
	return "http://" + u.Host
}

// command is the list of words; empty when there is none.
func (r *reader) command(n *node, key string) []string {
	if n == nil {
		return nil
	}
	out := make([]string, 0, len(n.items))
	for i, item := range n.items {
		if item.kind != scalar || i == 0 && item.text == "" {
			r.fail(item, fmt.Sprintf("%s[%d]", key, i), "must be a word")
			continue
		}
		out = append(out, item.text)
	}
	return out
}

func (r *reader) pairs(n *node, key string) map[string]string {
	out := map[string]string{}
	if n == nil {
		return out
	}
	for _, f := range n.fields {
		if strings.ContainsRune(f.value.text, 0) {
			r.fail(f.value, join(key, f.key), "contains a NUL byte")
		}
		out[f.key] = f.value.text
	}
	return out
}

// environment is pairs whose keys can be names of variables.
func (r *reader) environment(n *node, key string) map[string]string {
	out := r.pairs(n, key)
	for name := range out {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			r.fail(n.get(name), join(key, name), "cannot be the name of an environment variable")
		}
	}
	return out
}

func (r *reader) dir(m *Manifest, n *node) string {
	dir := r.word(n, ".")
	if filepath.IsAbs(dir) {
		return filepath.Clean(dir)
	}
	return filepath.Join(m.Dir, dir)
}

func values(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}
