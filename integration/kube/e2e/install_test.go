package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// fn is a Deployment or StatefulSet of the demo function.
func fn(kind, name string, annotations ...string) string {
	set := ""
	if kind == "StatefulSet" {
		set = "\n  serviceName: " + name + "\n  podManagementPolicy: Parallel"
	}
	all := `{SlimFaas/Function: "true"`
	for i := 0; i+1 < len(annotations); i += 2 {
		all += fmt.Sprintf(", SlimFaas/%s: %q", annotations[i], annotations[i+1])
	}
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: %[1]s
metadata: {name: %[2]s}
spec:
  replicas: 0%[3]s
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}, annotations: %[4]s}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: demo
          image: slimfaas/demo-function:dev
          ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 10}
`, kind, name, set, all)
}

func installed(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	kubectl(t, "apply", "-k", overlay)
	for _, part := range []string{"statefulset/slimfaas-queue", "deployment/slimfaas-scaler", "deployment/slimfaas-edge"} {
		rolledOut(t, part)
	}
	return time.Since(began)
}

// TestInstall: one command, again, and the README's section line by line.
func TestInstall(t *testing.T) {
	needsCluster(t)
	took := installed(t)
	t.Logf("figure install: all ready after %v (bar 40 s)", took.Round(100*time.Millisecond))
	if took > 40*time.Second {
		t.Errorf("all ready after %v", took)
	}
	// A second time changes nothing. A Job that has been removed after its work is made again, and finds all Secrets there.
	generations := func() string {
		return kubectl(t, "get", "deployments,statefulsets,networkpolicies,poddisruptionbudgets", "-n", namespace, "-l", "app.kubernetes.io/part-of=slimfaas",
			"-o", `jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.generation} {end}`)
	}
	before := generations()
	kubectl(t, "apply", "-k", overlay)
	if after := generations(); after != before {
		t.Errorf("the second apply made of %s\n%s", before, after)
	}
	apply(t, fn("Deployment", "hello", "TimeoutSecondBeforeSetReplicasMin", "10", "ReplicasMin", "0")+
		fn("Deployment", "secret", "DefaultVisibility", "Private")+
		fn("Deployment", "sub1", "SubscribeEvents", "news", "ReplicasMin", "2")+
		fn("StatefulSet", "sub2", "SubscribeEvents", "news", "ReplicasMin", "2"))

	t.Run("a sync call wakes", func(t *testing.T) {
		eventually(t, 10*time.Second, "the function is known", func() error {
			status, body, _, err := do(http.MethodGet, "/status-function/hello", nil, "")
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
		began := time.Now()
		if err := get("/function/hello/hello/world"); err != nil {
			explain(t)
			t.Fatal(err)
		}
		t.Logf("figure wake: answer after %v", time.Since(began).Round(time.Millisecond))
	})
	t.Run("a private one is unknown outside", func(t *testing.T) {
		if status, body, _, err := do(http.MethodGet, "/function/secret/hello/x", nil, ""); err != nil || status != http.StatusNotFound {
			t.Errorf("%d %s %v", status, body, err)
		}
	})
	t.Run("an async call is carried out", func(t *testing.T) {
		status, body, header, err := do(http.MethodPost, "/async-function/hello/hello/world", nil, "x")
		if err != nil || status != http.StatusAccepted {
			t.Fatalf("%d %s %v", status, body, err)
		}
		id := header.Get("SlimFaas-Element-Id")
		eventually(t, 30*time.Second, "the call is done", func() error {
			_, body, _, err := do(http.MethodGet, "/async-calls/"+id+"?wait=5s", nil, "")
			if err == nil && !strings.Contains(strings.ToLower(body), "succeeded") {
				err = fmt.Errorf("%w: %s", errNotYet, body)
			}
			return err
		})
	})
	t.Run("an event comes to every pod", func(t *testing.T) {
		for _, f := range []string{"sub1", "sub2"} {
			ready(t, f, 2)
		}
		status, body, _, err := do(http.MethodPost, "/publish-event/news/events", http.Header{"Prefer": {"return=representation"}}, `{"a":1}`)
		if err != nil || status/100 != 2 || strings.Count(body, `"sub`) < 4 {
			t.Errorf("%d %s %v", status, body, err)
		}
	})
	t.Run("it sleeps again", func(t *testing.T) {
		took := eventually(t, 60*time.Second, "hello has no pod", func() error {
			if wanted, pods := replicas(t, "deployment", "hello"); wanted+pods > 0 {
				return fmt.Errorf("%d wanted, %d pods", wanted, pods)
			}
			return nil
		})
		t.Logf("asleep after %v", took.Round(time.Second))
	})
}
