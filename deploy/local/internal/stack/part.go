package stack

import (
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/api"
	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/deploy/local/internal/ports"
	"github.com/slimfaas/slimfaas/deploy/local/internal/proc"
	"github.com/slimfaas/slimfaas/shared/keys"
)

// What parts may inherit besides their own prefix: nothing of the caller's shell but what a program needs to run.
var inherited = []string{
	"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LOG_LEVEL", "LOG_FORMAT",
	"GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GODEBUG", "GOTRACEBACK", "GORACE", "GOCOVERDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
}

// Times between SIGTERM and SIGKILL. An edge lets running calls end; a queue node hands its leadership over.
const (
	edgeGrace   = 10 * time.Second
	scalerGrace = 5 * time.Second
	queueGrace  = 10 * time.Second
	helperGrace = 5 * time.Second
)

func queueName(i int) string  { return fmt.Sprintf("queue-%d", i) }
func edgeName(i int) string   { return fmt.Sprintf("edge-%d", i) }
func scalerName(i int) string { return fmt.Sprintf("scaler-%d", i) }

// wants are all ports of a stack.
func wants(c manifest.Cluster) []ports.Want {
	var all []ports.Want
	for i := range c.Nodes {
		raft := 0
		if c.RaftPortBase > 0 {
			raft = c.RaftPortBase + i
		}
		all = append(all, ports.Want{Process: queueName(i), Use: "raft", Fixed: raft})
		for _, use := range []string{"api", "admin", "bus", "routes"} {
			all = append(all, ports.Want{Process: queueName(i), Use: use})
		}
	}
	for i := range c.Edges {
		all = append(all, ports.Want{Process: edgeName(i), Use: "public", Fixed: c.EntrypointPort + i})
		for _, use := range []string{"internal", "admin"} {
			all = append(all, ports.Want{Process: edgeName(i), Use: use})
		}
	}
	for i := range c.Scalers {
		for _, use := range []string{"api", "admin"} {
			all = append(all, ports.Want{Process: scalerName(i), Use: use})
		}
	}
	return all
}

// plan writes the environment of each part.
type plan struct {
	cluster manifest.Cluster
	book    ports.Book
	state   state
	bin     string
	caller  map[string]string // the environment bin/local was given
}

func (p plan) address(name, use string) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.book[name][use]))
}

// list joins an address of every queue node.
func (p plan) list(scheme, use string) string {
	all := make([]string, p.cluster.Nodes)
	for i := range all {
		all[i] = scheme + p.address(queueName(i), use)
	}
	return strings.Join(all, ",")
}

// secrets is the folder a process is given: everybody's, or with TLS one of its own, for each has its own certificate.
func (p plan) secrets(name string) string {
	if p.cluster.TLS {
		return p.state.path(filepath.Join("secrets", name))
	}
	return p.state.path("secrets")
}

func (p plan) scheme(plain, secure string) string {
	if p.cluster.TLS {
		return secure
	}
	return plain
}

// certify makes the folders of secrets.
func (p plan) certify() error {
	for _, part := range []struct {
		role string
		n    int
		name func(int) string
	}{{"queue", p.cluster.Nodes, queueName}, {"edge", p.cluster.Edges, edgeName}, {"scaler", p.cluster.Scalers, scalerName}} {
		for i := range part.n {
			if err := keys.Certify(p.state.path("secrets"), part.role, part.name(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p plan) members() string {
	all := make([]string, p.cluster.Nodes)
	for i := range all {
		b := p.book[queueName(i)]
		all[i] = fmt.Sprintf("%s=127.0.0.1:%d:%d:%d", queueName(i), b["raft"], b["api"], b["routes"])
	}
	return strings.Join(all, ",")
}

func (p plan) queue(i int) proc.Spec {
	name := queueName(i)
	return p.spec(name, "queue", nil, map[string]string{
		"QUEUE_NAME": name, "QUEUE_DATA_DIR": p.state.path(name), "QUEUE_MEMBERS": p.members(),
		"QUEUE_RAFT_ADDRESS": p.address(name, "raft"), "QUEUE_API_ADDRESS": p.address(name, "api"),
		"QUEUE_BUS_ADDRESS": p.address(name, "bus"), "QUEUE_ROUTES_ADDRESS": p.address(name, "routes"),
		"QUEUE_ADMIN_ADDRESS": p.address(name, "admin"), "QUEUE_SECRETS_DIR": p.secrets(name),
	})
}

func (p plan) edge(i int) proc.Spec {
	name := edgeName(i)
	// The public listener is on all interfaces unless the caller says which; the port is the manifest's.
	host := ""
	if asked, _, err := net.SplitHostPort(p.caller["EDGE_PUBLIC_ADDRESS"]); err == nil {
		host = asked
	}
	return p.spec(name, "edge", map[string]string{
		"EDGE_INTERNAL_CIDRS": "127.0.0.0/8,::1/128", "EDGE_INTERNAL_ON_PUBLIC": "true", "EDGE_DRAIN": (edgeGrace - 2*time.Second).String(),
	}, map[string]string{
		"EDGE_NAME": name, "EDGE_PUBLIC_ADDRESS": net.JoinHostPort(host, strconv.Itoa(p.book[name]["public"])),
		"EDGE_INTERNAL_ADDRESS": p.address(name, "internal"), "EDGE_ADMIN_ADDRESS": p.address(name, "admin"),
		"EDGE_QUEUE_API": p.list(p.scheme("http://", "https://"), "api"), "EDGE_BUS_URLS": p.list(p.scheme("nats://", "tls://"), "bus"),
		"EDGE_SECRETS_DIR": p.secrets(name),
	})
}

func (p plan) scaler(i int) proc.Spec {
	name := scalerName(i)
	return p.spec(name, "scaler", nil, map[string]string{
		"SCALER_NAME": name, "SCALER_API_ADDRESS": p.address(name, "api"), "SCALER_API_ADVERTISE": p.address(name, "api"),
		"SCALER_ADMIN_ADDRESS": p.address(name, "admin"), "SCALER_QUEUE_API": p.list(p.scheme("http://", "https://"), "api"),
		"SCALER_BUS_URLS": p.list(p.scheme("nats://", "tls://"), "bus"), "SCALER_SECRETS_DIR": p.secrets(name),
		"SCALER_ORCHESTRATOR": "process", "SCALER_PROCESS_SOCKET": api.SocketPath(p.state.dir),
	})
}

// spec puts the environment of a part together: ours by default, the caller's of the same prefix, ours for certain.
func (p plan) spec(name, program string, byDefault, certain map[string]string) proc.Spec {
	env := map[string]string{"LOG_FORMAT": "text"}
	if p.cluster.LogLevel != "" {
		env["LOG_LEVEL"] = p.cluster.LogLevel
	}
	maps.Copy(env, byDefault)
	prefix := strings.ToUpper(program) + "_"
	for k, v := range p.caller {
		if strings.HasPrefix(k, prefix) || strings.HasPrefix(k, "OTEL_") || slices.Contains(inherited, k) {
			env[k] = v
		}
	}
	maps.Copy(env, certain)
	return proc.Spec{Name: name, Argv: []string{filepath.Join(p.bin, program)}, Dir: p.state.dir, Env: lines(env)}
}

// helper is a process of the manifest.
func (p plan) helper(m manifest.Process, port int, url string) proc.Spec {
	env := maps.Clone(p.caller)
	env["SLIMFAAS_URL"] = url
	for k, v := range m.Environment {
		env[k] = manifest.Expand(v, port, 0)
	}
	if port > 0 {
		env["PORT"] = strconv.Itoa(port)
	}
	argv := make([]string, len(m.Command))
	for i, word := range m.Command {
		argv[i] = manifest.Expand(word, port, 0)
	}
	return proc.Spec{Name: "process-" + m.Name, Argv: argv, Dir: m.Dir, Env: lines(env)}
}

func lines(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, name+"="+env[name])
	}
	return out
}
