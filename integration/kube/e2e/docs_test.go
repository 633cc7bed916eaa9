package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const repository = "../../.."

// page is a page of the documentation, of which every command line has to be run, or said why not.
type page struct {
	path     string
	text     string
	commands map[string]bool // true: run
	words    *strings.Replacer
}

var (
	inBlock = regexp.MustCompile(`(?m)^ {4,}((?:kubectl|curl|helm|make) .*)$`)
	inLine  = regexp.MustCompile("`((?:kubectl|helm) [^` ]+ [^`]+)`")
	comment = regexp.MustCompile(`\s+#.*$`)
)

// open reads a page. The words are what a reader replaces: placeholders, and names of images that are not here.
func open(t *testing.T, path, from, to string, words ...string) *page {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(repository, path))
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	if from != "" {
		_, text, _ = strings.Cut(text, from)
		text, _, _ = strings.Cut(text, to)
	}
	p := &page{path: path, text: text, commands: map[string]bool{}, words: strings.NewReplacer(append([]string{"http://<node>:30021", entry()}, words...)...)}
	for _, found := range append(inBlock.FindAllStringSubmatch(text, -1), inLine.FindAllStringSubmatch(text, -1)...) {
		p.commands[comment.ReplaceAllString(found[1], "")] = false
	}
	return p
}

// run types a line of the page.
func (p *page) run(t *testing.T, line string) string {
	t.Helper()
	out, err := p.try(t, line)
	if err != nil {
		explain(t)
		t.Fatalf("%s: %s: %v\n%s", p.path, line, err, out)
	}
	return out
}

func (p *page) try(t *testing.T, line string) (string, error) {
	t.Helper()
	if _, known := p.commands[line]; !known {
		t.Fatalf("%s has no line %q", p.path, line)
	}
	p.commands[line] = true
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", "-c", p.words.Replace(line))
	command.Dir, command.Env = repository, append(os.Environ(), "KUBECONFIG="+os.Getenv("KUBECONFIG_E2E"))
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	err := command.Run()
	return out.String(), err
}

// says runs a line until its output has a text.
func (p *page) says(t *testing.T, line, text string) {
	t.Helper()
	eventually(t, 60*time.Second, fmt.Sprintf("%q says %q", line, text), func() error {
		out, err := p.try(t, line)
		if err == nil && !strings.Contains(out, text) {
			err = errNotYet
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// leave marks a line that another test runs, or that cannot be run here.
func (p *page) leave(line, _ string) { p.commands[line] = true }

// block is the first block of the page that contains a text, without its indentation.
func (p *page) block(t *testing.T, contains string) string {
	t.Helper()
	for block := range strings.SplitSeq(p.text, "\n\n") {
		if strings.HasPrefix(block, "    ") && strings.Contains(block, contains) {
			var out strings.Builder
			for line := range strings.Lines(block) {
				out.WriteString(strings.TrimPrefix(line, "    "))
			}
			return out.String() + "\n"
		}
	}
	t.Fatalf("%s has no block with %q", p.path, contains)
	return ""
}

// done fails the test for each line that was not run.
func (p *page) done(t *testing.T) {
	t.Helper()
	for _, line := range slices.Sorted(maps.Keys(p.commands)) {
		if !p.commands[line] {
			t.Errorf("%s: nobody has tried %q", p.path, line)
		}
	}
}

// TestReadmeLineByLine runs the README's section.
func TestReadmeLineByLine(t *testing.T) {
	needsCluster(t)
	p := open(t, "README.md", "## On Kubernetes\n", "\n## ")
	p.run(t, "kubectl apply -k deploy/kubernetes/overlays/demo")
	p.run(t, "kubectl -n slimfaas-demo rollout status deployment/slimfaas-edge")
	p.run(t, "kubectl apply -f deploy/kubernetes/examples/functions.yaml")
	p.says(t, "curl http://<node>:30021/function/hello/hello/world", "Hello world")
	p.says(t, "curl -i -X POST http://<node>:30021/async-function/hello/hello/world", "202 Accepted")
	for function, pods := range map[string]int{"reader-a": 2, "reader-b": 1, "reader-c": 2} {
		ready(t, function, pods)
	}
	p.says(t, `curl -i -X POST http://<node>:30021/publish-event/news/events -d '{"a":1}'`, "204 No Content")
	var heard int
	for ip := range strings.FieldsSeq(kubectl(t, "get", "pods", "-n", namespace, "-l", "app in (reader-a, reader-b, reader-c)", "-o", "jsonpath={.items[*].status.podIP}")) {
		eventually(t, 10*time.Second, "the pod has heard the event", func() error {
			answer, err := client.Get("http://" + ip + ":8080/events")
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err == nil && !strings.Contains(string(body), `{\"a\":1}`) {
				err = fmt.Errorf("%w: %s", errNotYet, body)
			}
			return err
		})
		heard++
	}
	if heard != 5 {
		t.Errorf("%d pods have heard the event, want 5", heard)
	}
	p.says(t, "curl -i http://<node>:30021/function/secret/hello/world", "404 Not Found")
	p.says(t, "curl http://<node>:30021/status-functions", `"reader-c"`)
	p.says(t, "kubectl -n slimfaas-demo get deployment hello", "0/0")
	p.says(t, "curl -i -X POST http://<node>:30021/wake-function/hello", "204 No Content")
	eventually(t, 5*time.Second, "hello is woken", func() error {
		if wanted, _ := replicas(t, "deployment", "hello"); wanted != 1 {
			return errNotYet
		}
		return nil
	})
	p.done(t)
}

// TestMigrationLineByLine: an upstream SlimFaas is replaced beside its functions.
func TestMigrationLineByLine(t *testing.T) {
	needsCluster(t)
	if !full() {
		t.Skip("installs again and again: make e2e-kube-full has it")
	}
	p := open(t, "docs/migrate-from-slimfaas.md", "", "")
	removeOurs(t, overlay)
	kubectl(t, "create", "namespace", namespace)
	// Upstream's own, of which only the names matter: its image is not here.
	apply(t, `---
apiVersion: v1
kind: Service
metadata: {name: slimfaas}
spec: {selector: {app: slimfaas}, ports: [{name: http, port: 5000}, {name: slimfaas, port: 3262}]}
`+strings.Replace(strings.Replace(fn("StatefulSet", "slimfaas"), "slimfaas/demo-function:dev", "axaguildev/slimfaas:latest", 1), `SlimFaas/Function: "true"`, `x: "y"`, 1)+
		fn("Deployment", "asleep", "TimeoutSecondBeforeSetReplicasMin", "600")+strings.Replace(fn("Deployment", "awake", "TimeoutSecondBeforeSetReplicasMin", "600"), "replicas: 0", "replicas: 1", 1))
	p.run(t, "kubectl -n slimfaas-demo delete statefulset slimfaas")
	p.run(t, "kubectl -n slimfaas-demo delete service slimfaas")
	p.run(t, "kubectl apply -k deploy/kubernetes/overlays/demo")
	installed(t)
	for function, want := range map[string]int{"awake": 1, "asleep": 0} {
		if got, _ := replicas(t, "deployment", function); got != want {
			t.Errorf("%s has %d replicas", function, got)
		}
		eventually(t, 30*time.Second, function+" answers", func() error { return get("/function/" + function + "/hello/x") })
	}
	p.done(t)
}

// removeOurs takes an installation away, and waits until its namespace is gone.
func removeOurs(t *testing.T, path string) {
	t.Helper()
	kubectl(t, "delete", "-k", path, "--ignore-not-found", "--timeout=120s")
}

// TestKubernetesPageLineByLine runs docs/kubernetes.md from its first line to its last.
func TestKubernetesPageLineByLine(t *testing.T) {
	needsCluster(t)
	if !full() {
		t.Skip("installs again and again: make e2e-kube-full has it")
	}
	p := open(t, "docs/kubernetes.md", "", "", "your/http-server", "slimfaas/demo-function:dev", "registry.example.com/slimfaas/", "slimfaas/", "your-tag", "next",
		"http://<node>:5000", entry())
	ours := filepath.Join(repository, "deploy/kubernetes/overlays")
	p.leave("helm install slimfaas deploy/helm/slimfaas -n slimfaas --create-namespace --set registry=registry.example.com/slimfaas,tag=your-tag", "TestHelmInstallsUpgradesAndRollsBack has it")
	p.leave("kubectl delete pod", "prose")
	removeOurs(t, overlay)
	t.Cleanup(func() { // where it fails on its way
		removeOurs(t, filepath.Join(ours, "single-node"))
		removeOurs(t, filepath.Join(ours, "production"))
	})

	// Each of the three installs, one after the other: two scalers over the same functions would fight.
	p.run(t, "kubectl apply -k deploy/kubernetes/overlays/single-node")
	rolledOutIn(t, "slimfaas", 1)
	removeOurs(t, filepath.Join(ours, "single-node"))

	p.run(t, "kubectl apply -k deploy/kubernetes/overlays/production")
	if nodes := strings.Fields(kubectl(t, "get", "nodes", "-l", "type!=kwok", "-o", "name")); len(nodes) < 3 {
		// A queue that is never two on one node has one node here.
		var set map[string]any
		if err := json.Unmarshal([]byte(kubectl(t, "get", "statefulset", "slimfaas-queue", "-n", "slimfaas-system", "-o", "json")), &set); err != nil {
			t.Fatal(err)
		}
		delete(set["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any), "affinity") //nolint:errcheck,forcetypeassert // the API server gives every StatefulSet these; a panic is a failed test
		meta := set["metadata"].(map[string]any)                                                               //nolint:errcheck,forcetypeassert // the same
		delete(meta, "resourceVersion")
		delete(meta, "uid")
		changed, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 60*time.Second, "the scheduler has placed one", func() error { // one deleted meanwhile is not placed for minutes
			if kubectl(t, "get", "pods", "-n", "slimfaas-system", "-l", "app.kubernetes.io/component=queue", "--field-selector=status.phase=Running", "-o", "name") == "" {
				return errNotYet
			}
			return nil
		})
		kubectl(t, "delete", "statefulset", "slimfaas-queue", "-n", "slimfaas-system", "--cascade=foreground", "--wait")
		if _, err := try(t.Context(), string(changed), "create", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	rolledOutIn(t, "slimfaas-system", 3)
	kubectl(t, "create", "namespace", "team-a")
	t.Cleanup(func() { kubectl(t, "delete", "namespace", "team-a", "--wait=false") })
	if _, err := try(t.Context(), fn("Deployment", "afar"), "apply", "-n", "team-a", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	inside := "http://" + strings.Fields(kubectl(t, "get", "pods", "-n", "slimfaas-system", "-l", "app.kubernetes.io/component=edge", "-o", "jsonpath={.items[*].status.podIP}"))[0] + ":5000"
	answers := func(path string) {
		t.Helper()
		eventually(t, 60*time.Second, path, func() error {
			answer, err := client.Get(inside + path)
			if err != nil {
				return err
			}
			_ = answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				return fmt.Errorf("%s", answer.Status)
			}
			return nil
		})
	}
	answers("/function/afar.team-a/hello/x")
	p.run(t, "kubectl -n slimfaas-system set env deployment/slimfaas-scaler SCALER_NAMESPACES=team-a,team-b")
	p.run(t, "kubectl delete clusterrolebinding slimfaas-functions")
	p.run(t, "kubectl -n team-a create rolebinding slimfaas-functions --clusterrole=slimfaas-functions --serviceaccount=slimfaas-system:slimfaas-scaler")
	if _, err := try(t.Context(), "", "rollout", "status", "-n", "slimfaas-system", "deployment/slimfaas-scaler", "--timeout=120s"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "scale", "-n", "team-a", "deployment/afar", "--replicas=0")
	answers("/function/afar.team-a/hello/x")
	removeOurs(t, filepath.Join(ours, "production"))

	p.run(t, "kubectl apply -k deploy/kubernetes/overlays/demo")
	installed(t)
	p.run(t, "kubectl -n slimfaas-demo create deployment hello --image=your/http-server --port=8080 --replicas=0")
	p.run(t, `kubectl -n slimfaas-demo patch deployment hello -p '{"spec":{"template":{"metadata":{"annotations":{"SlimFaas/Function":"true"}}}}}'`)
	p.says(t, "curl http://<node>:30021/function/hello/", "404 page not found") // the demo has nothing there

	t.Run("an overlay of one's own", func(t *testing.T) {
		dir := t.TempDir()
		from, err := filepath.Abs(filepath.Join(repository, "deploy/kubernetes"))
		if err != nil {
			t.Fatal(err)
		}
		relative, err := filepath.Rel(dir, from)
		if err != nil {
			t.Fatal(err)
		}
		manifest := strings.ReplaceAll(p.words.Replace(p.block(t, "kind: Kustomization")), "deploy/kubernetes", relative)
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		p.words = strings.NewReplacer("my-overlay", dir, "http://<node>:30021", entry())
		p.run(t, "kubectl apply -k my-overlay")
		p.run(t, "kubectl -n slimfaas-demo rollout status deployment/slimfaas-scaler")
		p.run(t, "kubectl -n slimfaas-demo rollout status deployment/slimfaas-edge")
		p.run(t, "kubectl -n slimfaas-demo rollout status statefulset/slimfaas-queue")
		if got := kubectl(t, "get", "deployment", "slimfaas-edge", "-n", namespace, "-o", "jsonpath={.spec.template.spec.containers[0]}"); !strings.Contains(got, "EDGE_TRUSTED_PROXIES") || !strings.Contains(got, "slimfaas/edge:next") {
			t.Errorf("the edges run %s", got)
		}
		eventually(t, 30*time.Second, "hello answers", func() error { return get("/function/hello/hello/x") })
	})
	t.Run("replicas left out", func(t *testing.T) {
		manifest := strings.Replace(fn("Deployment", "gitops", "TimeoutSecondBeforeSetReplicasMin", "600"), "\n  replicas: 0", "", 1)
		apply(t, manifest)
		ready(t, "gitops", 1) // what Kubernetes makes of it
		scaleTo(t, "gitops", 2)
		ready(t, "gitops", 2)
		apply(t, strings.Replace(manifest, `"600"`, `"500"`, 1))
		if _, err := try(t.Context(), manifest, "apply", "--server-side", "--force-conflicts", "--field-manager=another", "-n", namespace, "-f", "-"); err != nil {
			t.Fatal(err)
		}
		if got, _ := replicas(t, "deployment", "gitops"); got != 2 {
			t.Errorf("%d replicas after it was applied again", got)
		}
	})
	p.says(t, "kubectl -n slimfaas-demo exec deploy/slimfaas-edge -- /edge explain hello", `"hello"`)
	p.says(t, "kubectl -n slimfaas-demo exec deploy/slimfaas-edge -- /edge ls", "hello")
	p.says(t, "kubectl -n slimfaas-demo exec slimfaas-queue-0 -- /queue status", "leader")
	p.run(t, "kubectl -n slimfaas-demo logs -l app.kubernetes.io/component=scaler")
	p.says(t, "kubectl -n slimfaas-demo get lease slimfaas-scaler", "slimfaas-scaler")
	p.run(t, "kubectl -n slimfaas-demo get jobs")
	p.run(t, "kubectl -n slimfaas-demo create job --from=cronjob/slimfaas-certs-renew renew-now")
	kubectl(t, "wait", "-n", namespace, "--for=condition=complete", "--timeout=60s", "job/renew-now")

	file := filepath.Join(t.TempDir(), "queue.backup")
	p.words = strings.NewReplacer("queue.backup", file)
	p.run(t, "kubectl -n slimfaas-demo exec slimfaas-queue-0 -- /queue backup - > queue.backup")
	if info, err := os.Stat(file); err != nil || info.Size() == 0 {
		t.Errorf("the backup: %v", err)
	}

	t.Run("five nodes and three again", func(t *testing.T) {
		for _, line := range strings.Split(strings.TrimSpace(p.block(t, "QUEUE_JOIN=true")), "\n") {
			p.run(t, comment.ReplaceAllString(line, ""))
		}
		p.says(t, "kubectl -n slimfaas-demo exec slimfaas-queue-0 -- /queue status", "slimfaas-queue-4")
		for _, line := range strings.Split(strings.TrimSpace(p.block(t, "/queue remove")), "\n") {
			p.run(t, comment.ReplaceAllString(line, ""))
		}
		if out := p.run(t, "kubectl -n slimfaas-demo exec slimfaas-queue-0 -- /queue status"); strings.Contains(out, "slimfaas-queue-4") {
			t.Errorf("still a member: %s", out)
		}
		eventually(t, 30*time.Second, "hello answers", func() error { return get("/function/hello/hello/x") })
	})

	p.run(t, "kubectl -n slimfaas-demo delete deployments,statefulsets,services,cronjobs,jobs,networkpolicies,poddisruptionbudgets,roles,rolebindings,serviceaccounts,configmaps -l app.kubernetes.io/part-of=slimfaas")
	p.run(t, "kubectl -n slimfaas-demo delete service slimfaas-nodeport")
	if left := kubectl(t, "get", "all,roles,networkpolicies", "-n", namespace, "-l", "app.kubernetes.io/part-of=slimfaas,!controller-revision-hash,!pod-template-hash", "-o", "name"); left != "" {
		t.Errorf("removed, yet there is %s", left)
	}
	if got, _ := replicas(t, "deployment", "hello"); got < 0 {
		t.Error("the function is gone")
	}
	installed(t)
	eventually(t, 60*time.Second, "all is found again", func() error { return get("/function/hello/hello/x") })
	p.run(t, "kubectl delete -k deploy/kubernetes/overlays/demo")
	p.done(t)
}

func rolledOutIn(t *testing.T, ns string, nodes int) {
	t.Helper()
	for _, part := range []string{"statefulset/slimfaas-queue", "deployment/slimfaas-scaler", "deployment/slimfaas-edge"} {
		if _, err := try(t.Context(), "", "rollout", "status", "-n", ns, part, "--timeout=120s"); err != nil {
			t.Log(kubectl(t, "get", "pods,events", "-n", ns))
			t.Fatal(err)
		}
	}
	if got := kubectl(t, "get", "statefulset", "slimfaas-queue", "-n", ns, "-o", "jsonpath={.status.readyReplicas}"); got != fmt.Sprint(nodes) {
		t.Errorf("%s nodes of the queue are ready, want %d", got, nodes)
	}
}
