package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/api"
	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/shared/keys"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/secret"
)

const usage = `local runs SlimFaas and its functions on this machine.

  local [up] -f FILE [-f FILE]... [--env-file FILE]... [--state DIR] [--no-restart] [--clean]
        run in the foreground until Ctrl-C; prints "ready URL" when a call would succeed
  local validate -f FILE [-f FILE]... [--env-file FILE]...
        check a manifest: 0 fine, 2 with all that is wrong and where
  local status [--state DIR | -f FILE] [--json]
        list what runs, and where
  local version

  -f, --file    manifest (default slimfaas.local.yaml); several merge from left to right, null removes; a comma separates too
  --env-file    NAME=value lines for ${NAME} in the manifest, over the environment
  --state       state directory (default: state.directory of the manifest)
  --no-restart  what dies stays dead, functions too
  --clean       forget data, logs, ports and secrets of the state directory first

Variables named EDGE_*, QUEUE_*, SCALER_* and LOG_* of the environment reach the programs of that name. SLIMFAAS_LOCAL_TLS=true (or false)
overrides cluster.tls of the manifest: links between the programs are then mutual TLS, with certificates made in the state
directory.
`

var errHelp = errors.New("help was asked for")

// usageError is a command line that cannot be understood.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text + " (see --help)" }

// flags is one command line.
type flags struct {
	command   string
	files     []string
	envFiles  []string
	state     string
	noRestart bool
	clean     bool
	json      bool
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func parse(args []string) (flags, error) {
	f := flags{command: "up"}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		f.command, args = args[0], args[1:]
	}
	if !slices.Contains([]string{"up", "validate", "status", "version", "help"}, f.command) {
		return f, usageError{fmt.Sprintf("unknown command %q", f.command)}
	}
	set := flag.NewFlagSet("local", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	var files, envFiles list
	set.Var(&files, "f", "")
	set.Var(&files, "file", "")
	set.Var(&envFiles, "env-file", "")
	set.StringVar(&f.state, "state", "", "")
	set.BoolVar(&f.noRestart, "no-restart", false, "")
	set.BoolVar(&f.clean, "clean", false, "")
	set.BoolVar(&f.json, "json", false, "")
	switch err := set.Parse(args); {
	case errors.Is(err, flag.ErrHelp) || f.command == "help":
		return f, errHelp
	case err != nil:
		return f, usageError{err.Error()}
	case set.NArg() > 0:
		return f, usageError{fmt.Sprintf("unexpected word %q", set.Arg(0))}
	case f.clean && f.command != "up":
		return f, usageError{"--clean goes with up only"}
	}
	f.files, f.envFiles = separate(files), envFiles
	return f, nil
}

// separate splits comma lists, unless a file has that very name.
func separate(files []string) []string {
	var out []string
	for _, file := range files {
		if _, err := os.Stat(file); err == nil || !strings.Contains(file, ",") {
			out = append(out, file)
			continue
		}
		for part := range strings.SplitSeq(file, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

func (f flags) run(environ []string, stdout, stderr io.Writer) error {
	switch f.command {
	case "version":
		fmt.Fprintln(stdout, obs.Describe("local"))
		return nil
	case "status":
		return f.status(environ, stdout)
	}
	m, err := f.read(environ)
	if err != nil {
		return err
	}
	if f.command == "validate" {
		return f.validate(m, stdout)
	}
	return f.up(m, environ, stdout, stderr)
}

func (f flags) read(environ []string) (*manifest.Manifest, error) {
	vars := manifest.NewVariables(environ)
	for _, file := range f.envFiles {
		if err := vars.AddFile(file); err != nil {
			return nil, usageError{err.Error()}
		}
	}
	files := f.files
	if len(files) == 0 {
		files = []string{"slimfaas.local.yaml"}
	}
	return manifest.Read(files, vars)
}

// stateDir is --state, else what the manifest says; always absolute.
func (f flags) stateDir(m *manifest.Manifest) string {
	if f.state == "" {
		return m.State.Directory
	}
	dir, err := filepath.Abs(f.state)
	if err != nil {
		return f.state // only when the working directory is gone: the next step will say so
	}
	return dir
}

func (f flags) validate(m *manifest.Manifest, stdout io.Writer) error {
	for _, p := range m.Warnings {
		fmt.Fprintln(stdout, "warning: "+p.String())
	}
	for _, j := range m.Jobs {
		fmt.Fprintf(stdout, "job %s: not yet: jobs are read and not run\n", j.Name)
	}
	if len(m.Broken) > 0 {
		return manifest.Invalid(m.Broken)
	}
	c := m.Cluster
	fmt.Fprintf(stdout, "ok: %s with %d functions, %d processes, %d jobs; %d queue nodes, %d edges, %d scalers; entry http://127.0.0.1:%d; state %s\n",
		m.Name, len(m.Functions), len(m.Processes), len(m.Jobs), c.Nodes, c.Edges, c.Scalers, c.EntrypointPort, f.stateDir(m))
	return nil
}

func (f flags) status(environ []string, stdout io.Writer) error {
	dir := f.stateDir(&manifest.Manifest{})
	if f.state == "" {
		m, err := f.read(environ)
		if err != nil {
			return err
		}
		dir = m.State.Directory
	}
	token, err := secret.Read(filepath.Join(dir, "secrets"), keys.Local)
	if err != nil {
		return fmt.Errorf("nothing has run in %s: %w", dir, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	status, err := api.NewClient(dir, token).Status(ctx)
	if err != nil {
		return fmt.Errorf("nothing answers in %s: %w", dir, err)
	}
	if f.json {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(status)
	}
	table := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintf(table, "%s\t%s\n\nPROCESS\tPID\tSTATE\tADDRESS\tDETAIL\n", status.Name, status.URL)
	for _, p := range status.Parts {
		state := "running"
		if !p.Alive {
			state = "down"
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t\t\n", p.Name, p.PID, state)
	}
	for _, w := range status.Workloads {
		if len(w.Replicas) == 0 {
			fmt.Fprintf(table, "fn-%s\t\tasleep\t\twanted %d\n", w.Name, w.Wanted)
		}
		for _, r := range w.Replicas {
			address := ""
			if r.Port > 0 {
				address = fmt.Sprintf("%s:%d", r.Host, r.Port)
			}
			fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", r.Name, r.PID, r.State, address, r.Detail)
		}
	}
	return table.Flush()
}

// level of our own log lines.
func level(environ []string) slog.Level {
	var l slog.Level
	for _, line := range environ {
		if v, ok := strings.CutPrefix(line, "LOG_LEVEL="); ok {
			_ = l.UnmarshalText([]byte(v)) // unknown: info
		}
	}
	return l
}
