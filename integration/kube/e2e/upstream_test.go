package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUpstreamsDemoRunsBesideOurs: its files, byte for byte. Its images' names are in the harness's registry.
func TestUpstreamsDemoRunsBesideOurs(t *testing.T) {
	needsCluster(t)
	demo := os.Getenv("UPSTREAM_DEMO")
	if demo == "" {
		t.Skip("UPSTREAM_DEMO names the folder of upstream's demo files")
	}
	installed(t)
	for _, file := range []string{
		"service-account-slimfaas.yml", "deployment-mysql.yml", "deployment-functions.yml", "deployment-cron.yaml", "slimfaas-ingress.yml", "slimfaas-nodeport.yml",
	} {
		kubectl(t, "apply", "-f", filepath.Join(demo, file))
	}
	if out := kubectl(t, "apply", "-k", overlay); strings.Contains(out, "service/slimfaas-nodeport configured") {
		t.Log("the NodePort service changes hands:", out)
	}
	for _, f := range []string{"fibonacci1", "fibonacci2", "fibonacci3"} {
		took := eventually(t, 120*time.Second, f+" answers", func() error { return get("/function/" + f + "/hello/guillaume") })
		t.Logf("%s answers after %v", f, took.Round(100*time.Millisecond))
	}
	if status, body, _, err := do(http.MethodGet, "/function/fibonacci4/hello/x", nil, ""); err != nil || status != http.StatusNotFound {
		t.Errorf("fibonacci4 from outside: %d %s %v", status, body, err)
	}
	explained, err := try(t.Context(), "", "exec", "-n", namespace, "deploy/slimfaas-edge", "--", "/edge", "explain", "mysql")
	if err != nil || strings.Contains(explained, "broken") {
		t.Errorf("mysql: %s %v", explained, err)
	}
	// First deployed awake, as upstream's have no replicas written: mysql sleeps with those that depend on it, and wakes with them.
	eventually(t, 120*time.Second, "mysql sleeps with its dependants", func() error {
		if wanted, _ := replicas(t, "statefulset", "mysql"); wanted > 0 {
			return fmt.Errorf("%d replicas", wanted)
		}
		return nil
	})
	if err := get("/function/fibonacci2/hello/again"); err != nil {
		t.Error(err)
	}
	if wanted, _ := replicas(t, "statefulset", "mysql"); wanted != 1 {
		t.Errorf("fibonacci2 answered with %d replicas of mysql", wanted)
	}
}
