package helm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	release   = "slimfaas"
	installed = "slimfaas-helm" // the namespace
)

// sleeper is a function of the chart's own namespace.
const sleeper = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 0
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}, annotations: {SlimFaas/Function: "true", SlimFaas/TimeoutSecondBeforeSetReplicasMin: "10"}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: demo
          image: slimfaas/demo-function:dev
          ports: [{containerPort: 8080}]
`

func run(ctx context.Context, input, program string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, program, args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+os.Getenv("KUBECONFIG_E2E"))
	command.Stdin = strings.NewReader(input)
	out, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// TestHelmInstallsUpgradesAndRollsBack: what its users type, on a cluster; the function answers after each step.
func TestHelmInstallsUpgradesAndRollsBack(t *testing.T) {
	program := os.Getenv("HELM")
	if os.Getenv("KUBECONFIG_E2E") == "" || program == "" {
		t.Skip("needs a cluster (KUBECONFIG_E2E) and helm (HELM): make e2e-kube-full has both") // helm alone takes five minutes to build
	}
	chart, err := filepath.Abs("../../../deploy/helm/slimfaas")
	if err != nil {
		t.Fatal(err)
	}
	must := func(name string, args ...string) string {
		t.Helper()
		began := time.Now()
		out, err := run(context.WithoutCancel(t.Context()), sleeper, name, args...)
		if err != nil {
			pods, _ := run(context.WithoutCancel(t.Context()), "", "kubectl", "get", "pods,jobs,events", "-n", installed, "-o", "wide")
			t.Fatalf("%v\n%s", err, pods)
		}
		if name == program {
			t.Logf("figure helm %s: %v", args[0], time.Since(began).Round(100*time.Millisecond))
		}
		return out
	}
	t.Cleanup(func() { must("kubectl", "delete", "namespace", installed, "--wait=false", "--ignore-not-found") })
	answers := func(image string) {
		t.Helper()
		if got := must("kubectl", "get", "pods", "-n", installed, "-l", "app.kubernetes.io/component=edge", "-o", "jsonpath={.items[*].spec.containers[0].image}"); !strings.Contains(got, image) {
			t.Errorf("the edges run %s, want %s", got, image)
		}
		client := &http.Client{Timeout: 30 * time.Second}
		defer client.CloseIdleConnections()
		var last error
		for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
			ip, _, _ := strings.Cut(must("kubectl", "get", "pods", "-n", installed, "-l", "app.kubernetes.io/component=edge", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].status.podIP}"), " ")
			if last = hello(client, "http://"+ip+":5000/function/hello/hello/x"); last == nil {
				return
			}
		}
		t.Fatal(last)
	}
	must(program, "install", release, chart, "-n", installed, "--create-namespace", "--set", "tag=dev", "--wait", "--timeout", "2m")
	must("kubectl", "apply", "-n", installed, "-f", "-")
	answers("slimfaas/edge:dev")
	must(program, "upgrade", release, chart, "-n", installed, "--set", "tag=next", "--wait", "--timeout", "3m")
	answers("slimfaas/edge:next")
	must(program, "rollback", release, "1", "-n", installed, "--wait", "--timeout", "3m")
	answers("slimfaas/edge:dev")
	must(program, "uninstall", release, "-n", installed, "--wait", "--timeout", "2m")
	if left := must("kubectl", "get", "deployments,statefulsets", "-n", installed, "-l", "app.kubernetes.io/part-of=slimfaas", "-o", "name"); strings.TrimSpace(left) != "" {
		t.Errorf("uninstalled, yet there is %s", left)
	}
	if left := must("kubectl", "get", "deployment", "hello", "-n", installed, "-o", "name"); left == "" {
		t.Error("the function is gone with us")
	}
}

var errOther = errors.New("another answer than the function's")

func hello(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), "Hello")) {
		err = fmt.Errorf("%w: %s %s", errOther, answer.Status, body)
	}
	return err
}
