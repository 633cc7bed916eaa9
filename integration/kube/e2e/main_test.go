// Package e2e holds the tests on a real Kubernetes: make e2e-kube starts one, KUBECONFIG_E2E names another.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	namespace = "slimfaas-demo"
	overlay   = "../../../deploy/kubernetes/overlays/demo"
)

// entry is the NodePort of the demo overlay.
func entry() string {
	if url := os.Getenv("SLIMFAAS_URL_E2E"); url != "" {
		return url
	}
	return "http://10.244.0.1:30021"
}

var client = &http.Client{Timeout: 60 * time.Second}

func needsCluster(t *testing.T) {
	t.Helper()
	if os.Getenv("KUBECONFIG_E2E") == "" {
		t.Skip("needs a real cluster: make e2e-kube starts one, KUBECONFIG_E2E names another")
	}
}

func try(ctx context.Context, input string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", os.Getenv("KUBECONFIG_E2E")}, args...)...)
	command.Stdin = strings.NewReader(input)
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(context.WithoutCancel(t.Context()), "", args...) // also in a Cleanup
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := try(t.Context(), manifest, "apply", "-n", namespace, "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// eventually asks every 20 ms until something holds, and says at the end why it does not.
func eventually(t *testing.T, patience time.Duration, what string, holds func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := holds()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			explain(t)
			t.Fatalf("waited %v in vain for: %s: %v", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// explain logs what the cluster says of itself, once something has gone wrong.
func explain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods,deployments,statefulsets,jobs,lease", "-n", namespace, "-o", "wide"},
		{"get", "events", "-n", namespace, "--sort-by=.lastTimestamp"},
		{"logs", "-n", namespace, "-l", "app.kubernetes.io/component=scaler", "--tail=40", "--prefix"},
		{"logs", "-n", namespace, "-l", "app.kubernetes.io/component=edge", "--tail=40", "--prefix"},
		{"logs", "-n", namespace, "-l", "app.kubernetes.io/component=queue", "--tail=20", "--prefix"},
		{"logs", "-n", namespace, "-l", "app.kubernetes.io/component=certs", "--tail=20", "--prefix"},
	} {
		out, err := try(ctx, "", args...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out[max(len(out)-6000, 0):])
	}
}

func do(method, path string, header http.Header, body string) (int, string, http.Header, error) {
	request, err := http.NewRequest(method, entry()+path, strings.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	for key, values := range header {
		request.Header[key] = values
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, "", nil, err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(raw), answer.Header, err
}

func get(path string) error {
	status, body, _, err := do(http.MethodGet, path, nil, "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("GET %s: %d %s", path, status, body)
	}
	return err
}

// replicas of a function as the API server has them.
func replicas(t *testing.T, kind, name string) (wanted, pods int) {
	t.Helper()
	var o struct{ Spec struct{ Replicas int } }
	if err := json.Unmarshal([]byte(kubectl(t, "get", kind, name, "-n", namespace, "-o", "json")), &o); err != nil {
		t.Fatal(err)
	}
	return o.Spec.Replicas, len(strings.Fields(kubectl(t, "get", "pods", "-n", namespace, "-l", "app="+name, "-o", "name")))
}

var errNotYet = errors.New("not yet")
