package kube

import (
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/orchestratortest"
)

// The place of a world, with one of our own processes; and a function in it.
const place = `
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: edge-0, namespace: %[1]s, labels: {app.kubernetes.io/part-of: slimfaas}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: edge, image: "slimfaas/demo-function:dev", imagePullPolicy: IfNotPresent}]
`

const sleeper = `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  replicas: 0
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}, annotations: {SlimFaas/Function: "true", SlimFaas/ReplicasMin: "0", SlimFaas/ReplicasAtStart: "%[3]d"}}
    spec:
      terminationGracePeriodSeconds: 1
      readinessGates: [%[4]s]
      containers:
        - name: demo
          image: slimfaas/demo-function:dev
          imagePullPolicy: IfNotPresent
          ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1}
`

// gate is a condition that holds pods back from being ready until somebody sets it.
const gate = "slimfaas.dev/admitted"

// settle makes a namespace with functions on the cluster of KUBECONFIG_E2E.
func settle(t *testing.T) (namespace string, config *clientcmdapi.Config) {
	t.Helper()
	real := os.Getenv("KUBECONFIG_E2E")
	if real == "" {
		t.Skip("needs a real cluster: make e2e-kube starts one, KUBECONFIG_E2E names another")
	}
	namespace = "e2e-" + strings.ToLower(rand.Text()[:8])
	kubectl(t, fmt.Sprintf(place, namespace)+fmt.Sprintf(sleeper, namespace, "single", 1, "")+fmt.Sprintf(sleeper, namespace, "pair", 2, "")+
		fmt.Sprintf(sleeper, namespace, "held", 2, "{conditionType: "+gate+"}"), "apply", "-f", "-")
	t.Cleanup(func() {
		out, err := exec.Command("kubectl", "--kubeconfig", real, "delete", "namespace", namespace, "--wait=false").CombinedOutput()
		if err != nil {
			t.Errorf("remove the namespace: %v: %s", err, out)
		}
	})
	config, err := clientcmd.LoadFromFile(real)
	if err != nil {
		t.Fatal(err)
	}
	return namespace, config
}

// world is a namespace with functions, and a driver that reaches the API server through a relay.
func world(t *testing.T) (w orchestratortest.World, namespace string) {
	t.Helper()
	namespace, config := settle(t)
	for _, c := range config.Clusters {
		server, err := url.Parse(c.Server)
		if err != nil {
			t.Fatal(err)
		}
		relay := orchestratortest.NewRelay(t, "tcp", server.Host)
		c.Server, c.TLSServerName = "https://"+relay.Address, server.Hostname()
		w.Interrupt = func() { relay.Cut(1500 * time.Millisecond) }
	}
	relayed := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, relayed); err != nil {
		t.Fatal(err)
	}
	driver, err := New(Options{Kubeconfig: relayed, Own: namespace})
	if err != nil {
		t.Fatal(err)
	}
	w.Orchestrator, w.Single, w.Pair, w.Part, w.VictimsAreHints = driver, "single", "pair", "edge-0", true
	w.Held, w.Admit = "held", func(t *testing.T) {
		pods := strings.Fields(kubectl(t, "", "-n", namespace, "get", "pods", "-l", "app=held", "-o", "name"))
		for _, pod := range pods {
			kubectl(t, "", "-n", namespace, "patch", pod, "--subresource=status", "-p", `{"status":{"conditions":[{"type":"`+gate+`","status":"True"}]}}`)
		}
	}
	return w, namespace
}

func kubectl(t *testing.T, input string, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "kubectl", append([]string{"--kubeconfig", os.Getenv("KUBECONFIG_E2E")}, args...)...)
	command.Stdin = strings.NewReader(input)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestConformance(t *testing.T) {
	orchestratortest.Run(t, func(t *testing.T) orchestratortest.World {
		w, _ := world(t)
		return w
	})
}
