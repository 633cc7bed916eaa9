package process_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/orchestratortest"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/process"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// binaries is where TestMain has built the supervisor and the demo function.
var binaries string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "process-driver")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	binaries = dir
	for binary, source := range map[string]string{"local": "./local", "demo-function": "./local/demo-function"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, binary), source)
		build.Dir = filepath.Join("..", "..", "..", "..", "deploy")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", binary, err, out)
			return 1
		}
	}
	// The driver's world needs no queue, edge or scaler: something that stays alive stands in for them.
	for _, program := range []string{"queue", "edge", "scaler"} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil {
			panic(err)
		}
	}
	return m.Run()
}

const manifest = `schemaVersion: 1
name: driver
cluster: {nodes: 1, edges: 1, scalers: 1, entrypointPort: %d}
functions:
  single:
    command: [%[2]s/demo-function]
    annotations: {SlimFaas/Function: "true", SlimFaas/ReplicasMin: "0", SlimFaas/ReplicasAtStart: "1"}
  pair:
    command: [%[2]s/demo-function]
    annotations: {SlimFaas/Function: "true", SlimFaas/ReplicasMin: "0", SlimFaas/ReplicasAtStart: "2"}
`

// supervisor runs bin/local with a manifest of two functions and returns its state directory.
func supervisor(t *testing.T) string {
	t.Helper()
	free, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close() //nolint:errcheck // only its number was wanted
	state := t.TempDir()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, manifest, port, binaries), 0o600); err != nil {
		t.Fatal(err)
	}
	local := exec.Command(filepath.Join(binaries, "local"), "-f", file, "--state", state, "--no-restart")
	var said strings.Builder
	local.Stdout, local.Stderr = &said, &said
	if err := local.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = local.Wait() }()
	t.Cleanup(func() {
		_ = local.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Log(said.String())
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		if conn, err := net.Dial("unix", filepath.Join(state, wire.LocalSocket)); err == nil {
			conn.Close() //nolint:errcheck // only asked
			return state
		}
		select {
		case <-ended:
			t.Fatalf("bin/local ended: %s", said.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("bin/local has no socket yet: %s", said.String())
		}
	}
}

func driver(t *testing.T, socket, token string) *process.Driver {
	t.Helper()
	d := process.New(process.Options{Socket: socket, Token: token})
	t.Cleanup(d.Close)
	return d
}

func token(t *testing.T, state string) string {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(state, "secrets", "token-local"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(token))
}

func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real processes")
	}
	orchestratortest.Run(t, func(t *testing.T) orchestratortest.World {
		state := supervisor(t)
		relay := orchestratortest.NewRelay(t, "unix", filepath.Join(state, wire.LocalSocket))
		return orchestratortest.World{
			Orchestrator: driver(t, relay.Address, token(t, state)),
			Single:       "single", Pair: "pair", Part: "edge-0", Interrupt: func() { relay.Cut(0) },
		}
	})
}

func TestAWrongTokenIsRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real processes")
	}
	state := supervisor(t)
	d := driver(t, filepath.Join(state, wire.LocalSocket), "wrong")
	if _, err := d.Wake(t.Context(), "single", "", 1); !errors.Is(err, orchestrator.ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
}

func TestNobodyThereIsUnreachable(t *testing.T) {
	t.Parallel()
	d := driver(t, filepath.Join(t.TempDir(), "no.sock"), "")
	if _, err := d.Wake(t.Context(), "single", "", 1); !errors.Is(err, orchestrator.ErrUnreachable) {
		t.Errorf("got %v, want ErrUnreachable", err)
	}
}

// Whether a request whose answer was cut was carried out is not known, and is told so.
func TestACutAnswerIsUnreachable(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "cut.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"wanted":`))
		panic(http.ErrAbortHandler)
	}), ReadHeaderTimeout: time.Second}
	var wait sync.WaitGroup
	wait.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { _ = server.Close(); wait.Wait() })
	_, err = driver(t, socket, "").Scale(t.Context(), orchestrator.Request{Function: "f", Replicas: 1})
	if !errors.Is(err, orchestrator.ErrUnreachable) {
		t.Errorf("got %v, want ErrUnreachable", err)
	}
}
