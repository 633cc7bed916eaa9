package integration

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// importer is the part of `go list -json` the import rules need.
type importer struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

const root = "github.com/slimfaas/slimfaas/"

func list(t *testing.T, module string) []importer {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = "../" + module
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v", module, err)
	}
	var all []importer
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p importer
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// homes: a third-party library is imported directly only in these packages. style.md §3.8.
var homes = map[string][]string{
	"github.com/hashicorp/raft":           {"queue/internal/raftnode"},
	"github.com/hashicorp/raft-boltdb":    {"queue/internal/raftnode"},
	"go.etcd.io/bbolt":                    {"queue/internal/store", "queue/internal/raftnode"},
	"github.com/nats-io/nats-server":      {"queue/internal/bus", "integration/bench/peer"}, // the peer of the benchmarks is JetStream
	"github.com/nats-io/nats.go":          {"shared/nc", "queue/internal/bus", "integration/bench/peer"},
	"github.com/caarlos0/env":             {"shared/settings"},
	"connectrpc.com/connect":              {"shared/wire/wireconnect", "shared/queueclient", "queue/internal/api", "queue/internal/operate", "scaler/internal/api"},
	"net/http/httputil":                   {"edge/internal/forward", "integration/bench/proxy"},
	"go.yaml.in/yaml":                     {"deploy/local/internal/manifest"},
	"k8s.io/client-go":                    {"scaler/internal/orchestrator/kube"},
	"go.opentelemetry.io/otel":            {"edge/internal/tracing"},
	"github.com/anishathalye/porcupine":   {"integration/history"},
	"github.com/prometheus/client_golang": {"shared/obs", "edge/internal/metrics", "queue/internal/metrics", "scaler/internal/metrics", "scaler/internal/app"},
}

// pure packages take values and return values: no I/O, no clock of their own, no third-party code.
var pure = []string{"queue/internal/fsm", "queue/internal/command", "queue/internal/priority", "queue/internal/slots", "scaler/internal/decide", "edge/internal/access", "edge/internal/route", "edge/internal/gate", "shared/function"}

// impure are standard packages that a pure one must not import.
var impure = []string{"log/slog", "log", "net", "net/http", "os", "os/exec", "syscall"}

func TestImportsFollowThePlanOfTheHouse(t *testing.T) {
	for _, module := range []string{"shared", "edge", "queue", "scaler", "deploy", "integration"} {
		for _, p := range list(t, module) {
			name := strings.TrimPrefix(p.ImportPath, root)
			for _, dep := range p.Deps {
				other, _, _ := strings.Cut(strings.TrimPrefix(dep, root), "/")
				if !strings.HasPrefix(dep, root) || other == module || other == "shared" {
					continue
				}
				t.Errorf("%s depends on %s: modules meet only in shared and over the network", name, dep)
			}
			if module == "deploy" && slices.ContainsFunc(p.Deps, func(d string) bool { return strings.HasPrefix(d, "k8s.io/client-go") }) {
				t.Errorf("%s depends on client-go", name)
			}
			for _, dep := range p.Imports {
				for library, at := range homes {
					if dep != library && !strings.HasPrefix(dep, library+"/") {
						continue
					}
					if !slices.Contains(at, name) {
						t.Errorf("%s imports %s, which lives only in %v", name, dep, at)
					}
				}
				if dep == root+"shared/testkit" && module != "integration" {
					t.Errorf("%s imports testkit outside a test", name)
				}
			}
			if !slices.Contains(pure, name) {
				continue
			}
			for _, dep := range p.Imports {
				switch {
				case slices.Contains(impure, dep):
					t.Errorf("%s is pure and imports %s", name, dep)
				case strings.HasPrefix(dep, root) && !slices.Contains(pure, strings.TrimPrefix(dep, root)) && dep != root+"shared/wire":
					t.Errorf("%s is pure and imports %s", name, dep)
				case strings.Contains(strings.SplitN(dep, "/", 2)[0], ".") && !strings.HasPrefix(dep, root):
					t.Errorf("%s is pure and imports %s", name, dep)
				}
			}
		}
	}
}
