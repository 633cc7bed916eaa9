package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// render gives what an overlay makes; it needs kubectl, and no cluster.
func render(t *testing.T, name string) string {
	t.Helper()
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("needs kubectl: apt-get install kubernetes-client")
	}
	out, err := exec.CommandContext(t.Context(), "kubectl", "kustomize", filepath.Join("..", "..", "..", "deploy", "kubernetes", "overlays", name)).Output()
	if err != nil {
		t.Fatalf("render %s: %v", name, err)
	}
	return string(out)
}

// TestWhatIsInstalledIsWhatWasReviewed: every object of every overlay, permissions above all. UPDATE=1 writes the files anew.
func TestWhatIsInstalledIsWhatWasReviewed(t *testing.T) {
	for _, overlay := range []string{"demo", "production", "single-node"} {
		t.Run(overlay, func(t *testing.T) {
			got := render(t, overlay)
			golden := filepath.Join("testdata", overlay+".yaml")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
				for i := range min(len(gotLines), len(wantLines)) {
					if gotLines[i] != wantLines[i] {
						t.Fatalf("line %d of %s is %q, was %q; look at all of it, then UPDATE=1", i+1, golden, gotLines[i], wantLines[i])
					}
				}
				t.Fatalf("%s has %d lines, had %d", golden, len(gotLines), len(wantLines))
			}
		})
	}
}

// TestOurPodsMayDoLittle: on the cluster, as the API server sees it.
func TestOurPodsMayDoLittle(t *testing.T) {
	needsCluster(t)
	installed(t)
	may := func(account, verb, resource string) bool {
		out, err := try(t.Context(), "", "auth", "can-i", verb, resource, "-n", namespace, "--as=system:serviceaccount:"+namespace+":"+account)
		return err == nil && strings.TrimSpace(out) == "yes"
	}
	for _, allowed := range []string{
		"list pods", "watch deployments.apps", "patch deployments.apps/scale", "patch statefulsets.apps/scale", "list horizontalpodautoscalers.autoscaling",
		"create leases.coordination.k8s.io", "update leases.coordination.k8s.io/slimfaas-scaler",
	} {
		verb, resource, _ := strings.Cut(allowed, " ")
		if verb == "patch" {
			resource, sub, _ := strings.Cut(resource, "/")
			if out, err := try(t.Context(), "", "auth", "can-i", verb, resource, "--subresource="+sub, "-n", namespace, "--as=system:serviceaccount:"+namespace+":slimfaas-scaler"); err != nil {
				t.Errorf("the scaler may not %s: %s %v", allowed, out, err)
			}
			continue
		}
		if !may("slimfaas-scaler", verb, resource) {
			t.Errorf("the scaler may not %s", allowed)
		}
	}
	for _, denied := range []string{"get secrets", "list secrets", "create pods", "patch pods", "patch deployments.apps", "delete pods", "update deployments.apps", "create deployments.apps"} {
		verb, resource, _ := strings.Cut(denied, " ")
		if may("slimfaas-scaler", verb, resource) {
			t.Errorf("the scaler may %s", denied)
		}
	}
	if may("slimfaas-certs", "list", "secrets") || may("slimfaas-certs", "get", "secrets") || may("slimfaas-certs", "get", "secrets/other") || !may("slimfaas-certs", "get", "secrets/slimfaas-tls") {
		t.Error("slimfaas-certs may not do exactly what it needs with Secrets")
	}
	var pods struct {
		Items []struct {
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			Spec struct {
				Volumes []struct{ Name string }
			}
		}
	}
	if err := json.Unmarshal([]byte(kubectl(t, "get", "pods", "-n", namespace, "-l", "app.kubernetes.io/part-of=slimfaas", "-o", "json")), &pods); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		token := slices.ContainsFunc(pod.Spec.Volumes, func(v struct{ Name string }) bool { return strings.HasPrefix(v.Name, "kube-api-access") })
		component := pod.Metadata.Labels["app.kubernetes.io/component"]
		if token != (component == "scaler" || component == "certs") {
			t.Errorf("%s has a token of the API server: %v", pod.Metadata.Name, token)
		}
	}
}

// TestOursMeetsRestricted: a namespace that enforces it takes all of our pods.
func TestOursMeetsRestricted(t *testing.T) {
	needsCluster(t)
	const strict = "strict-e2e"
	if _, err := try(t.Context(), `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"`+strict+`","labels":{"pod-security.kubernetes.io/enforce":"restricted","pod-security.kubernetes.io/warn":"restricted"}}}`,
		"apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kubectl(t, "delete", "namespace", strict, "--wait=false") })
	manifest := strings.ReplaceAll(render(t, "demo"), "namespace: "+namespace, "namespace: "+strict)
	for document := range strings.SplitSeq(manifest, "\n---\n") {
		if strings.Contains(document, "kind: Namespace\n") || strings.Contains(document, "nodePort: ") {
			continue
		}
		command := exec.CommandContext(t.Context(), "kubectl", "--kubeconfig", os.Getenv("KUBECONFIG_E2E"), "apply", "--dry-run=server", "-f", "-")
		command.Stdin = strings.NewReader(document)
		if out, err := command.CombinedOutput(); err != nil || strings.Contains(string(out), "would violate PodSecurity") {
			t.Errorf("%s %v", out, err)
		}
	}
}
