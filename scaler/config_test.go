package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func environment(t *testing.T, with ...string) []string {
	t.Helper()
	dir := t.TempDir()
	for name, value := range map[string]string{"token-scaler": "s\n", "token-queue": "q", "token-local": "l"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return append([]string{
		"SCALER_NAME=scaler-7", "SCALER_API_ADDRESS=127.0.0.1:0", "SCALER_QUEUE_API=http://q:1,http://q:2", "SCALER_BUS_URLS=nats://q:3",
		"SCALER_PROCESS_SOCKET=/run/local.sock", "SCALER_SECRETS_DIR=" + dir,
	}, with...)
}

func TestLoad(t *testing.T) {
	t.Parallel()
	options, cfg, warnings, err := load(environment(t))
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if options.Name != "scaler-7" || len(options.QueueAPI) != 2 || options.Token != "s" || options.QueueToken != "q" || cfg.localToken != "l" {
		t.Errorf("%+v", options)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"SCALER_ORCHESTRATOR=mesos":        "expected process or kubernetes",
		"SCALER_ORCHESTRATOR=docker":       "not built in yet",
		"SCALER_ORCHESTRATOR=nomad":        "expected process",
		"SlimFaas__Orchestrator=Docker":    "not built in yet",
		"SCALER_PROCESS_SOCKET=":           "SCALER_PROCESS_SOCKET",
		"SCALER_QUEUE_API=":                "SCALER_QUEUE_API",
		"SCALER_BUS_URLS=":                 "SCALER_BUS_URLS",
		"SCALER_DRAIN_TIMEOUT=soon":        "SCALER_DRAIN_TIMEOUT",
		"SCALER_SECRETS_DIR=/nonexistent/": "token-scaler",
	} {
		if _, _, _, err := load(environment(t, set)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", set, err, want)
		}
	}
}
