package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// TestUpstreamManifestsRun: upstream's own local manifests, with one more -f that replaces the commands, as its users have them.
func TestUpstreamManifestsRun(t *testing.T) {
	inCompany(t)
	demo := os.Getenv("UPSTREAM_DEMO")
	if demo == "" {
		t.Skip("UPSTREAM_DEMO does not name the folder with upstream's manifests")
	}
	rec := newRecords(t)
	work := t.TempDir()
	replace := func(name string) string {
		return fmt.Sprintf("  %s:\n    command: [%q]\n    workingDirectory: %q\n    environment:\n      RECORD: %q\n", name, recorderPath, work, rec.path(name))
	}
	t.Run("demo with the development overlay", func(t *testing.T) {
		var functions strings.Builder
		for i := 1; i <= 4; i++ {
			functions.WriteString(replace(fmt.Sprintf("fibonacci%d", i)))
		}
		c := cluster.Start(t, cluster.Options{
			Before:    []string{filepath.Join(demo, "slimfaas.local.yaml"), filepath.Join(demo, "slimfaas.local.dev.yaml")},
			Functions: functions.String(),
			Extra:     fmt.Sprintf("processes:\n  fibonacci-front:\n    command: [%q]\n    workingDirectory: %q\n    environment:\n      RECORD: %q\n", recorderPath, work, rec.path("front")),
			Env:       []string{"FIBONACCI_API_KEY=x"},
		})
		for i := 1; i <= 4; i++ {
			status, body, err := c.Get(0, fmt.Sprintf("/function/fibonacci%d/hello", i))
			if err := wantStatus(status, 200, body, err); err != nil {
				t.Errorf("fibonacci%d: %v", i, err)
			}
		}
		if !strings.Contains(c.Output(), "fibonacci5") { // jobs are listed as not yet
			t.Errorf("bin/local does not say that jobs do not run yet:\n%s", c.Output())
		}
		readyReplicas(c, "fibonacci3", 2)
		readyReplicas(c, "fibonacci4", 2)
		status, body, err := c.Do(0, "POST", "/publish-event/fibo-public/hello", nil, []byte("{}"))
		if err := wantStatus(status, 204, body, err); err != nil {
			t.Error(err)
		}
		if n := len(rec.started(t, "fibonacci3")) + len(rec.started(t, "fibonacci4")); n != 2+4 {
			t.Errorf("%d requests on the subscribers, want a call each and the event on four replicas", n)
		}
		status, body, err = c.Get(0, "/explain/fibonacci1")
		if err := wantStatus(status, 200, body, err); err != nil {
			t.Error(err)
		}
	})
	t.Run("benchmark with a debugUrl", func(t *testing.T) {
		c := cluster.Start(t, cluster.Options{
			Before:    []string{filepath.Join(demo, "slimfaas.local.benchmark.yaml")},
			Functions: replace("benchmark-scale"),
			Extra: fmt.Sprintf("processes:\n  benchmark-target:\n    command: [%q]\n    workingDirectory: %q\n    environment:\n      RECORD: %q\n      PORT: \"31080\"\n",
				recorderPath, work, rec.path("benchmark-latency")),
		})
		for _, f := range []string{"benchmark-latency", "benchmark-scale"} {
			status, body, err := c.Get(0, "/function/"+f+"/x")
			if err := wantStatus(status, 200, body, err); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
	})
}
