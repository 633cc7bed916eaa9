package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// api asks the API server past kubectl, where milliseconds count.
type api struct {
	server string
	token  string
	client *http.Client
}

func newAPI(t *testing.T) *api {
	t.Helper()
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     string `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Token string
				Cert  string `json:"client-certificate-data"`
				Key   string `json:"client-key-data"`
			}
		}
	}
	if err := json.Unmarshal([]byte(kubectl(t, "config", "view", "--raw", "--minify", "--flatten", "-o", "json")), &config); err != nil || len(config.Clusters) == 0 || len(config.Users) == 0 {
		t.Fatalf("read the kubeconfig: %v", err)
	}
	bytes := func(from string) []byte {
		raw, err := base64.StdEncoding.DecodeString(from)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bytes(config.Clusters[0].Cluster.CA))
	own := &tls.Config{RootCAs: roots}
	if config.Users[0].User.Cert != "" {
		pair, err := tls.X509KeyPair(bytes(config.Users[0].User.Cert), bytes(config.Users[0].User.Key))
		if err != nil {
			t.Fatal(err)
		}
		own.Certificates = []tls.Certificate{pair}
	}
	return &api{
		server: config.Clusters[0].Cluster.Server, token: config.Users[0].User.Token,
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: own, ForceAttemptHTTP2: true}},
	}
}

// watch follows objects of a path until the test ends, and calls seen for each event with when it came.
func (a *api) watch(t *testing.T, path string, seen func(at time.Time, kind string, object json.RawMessage)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.token != "" {
		request.Header.Set("Authorization", "Bearer "+a.token)
	}
	answer, err := a.client.Do(request)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("watch %s: %v %+v", path, err, answer)
	}
	var work sync.WaitGroup
	work.Go(func() {
		defer answer.Body.Close()
		lines := bufio.NewScanner(answer.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			at := time.Now()
			var event struct {
				Type   string
				Object json.RawMessage
			}
			if json.Unmarshal(lines.Bytes(), &event) == nil {
				seen(at, event.Type, event.Object)
			}
		}
	})
	t.Cleanup(func() { cancel(); work.Wait() })
}

// patch merges body into what path names.
func (a *api) patch(ctx context.Context, path, body string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch, a.server+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/merge-patch+json")
	if a.token != "" {
		request.Header.Set("Authorization", "Bearer "+a.token)
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("patch %s: %s", path, answer.Status)
	}
	return nil
}

// holder is the scaler that holds the Lease: its pod's name, and what differs between two processes in it.
func holder(t *testing.T) (identity string, err error) {
	t.Helper()
	identity, err = try(t.Context(), "", "get", "lease", "slimfaas-scaler", "-n", namespace, "-o", "jsonpath={.spec.holderIdentity}")
	if err == nil && identity == "" {
		err = errors.New("nobody leads")
	}
	return identity, err
}

// leader is the pod of the holder.
func leader(t *testing.T) (pod string, err error) {
	t.Helper()
	identity, err := holder(t)
	pod, _, _ = strings.Cut(identity, "_")
	return pod, err
}

var errElsewhere = errors.New("its process cannot be reached from here")

// pidOf is the process of a pod's container, as the node has it: nothing in Kubernetes knows what is done with it.
func pidOf(t *testing.T, pod string) (int, error) {
	t.Helper()
	dir := os.Getenv("E2E_CLUSTER_DIR")
	if dir == "" {
		return 0, errElsewhere
	}
	id, err := try(t.Context(), "", "get", "pod", pod, "-n", namespace, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	if err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(t.Context(), "ctr", "--address", filepath.Join(dir, "containerd", "c.sock"), "-n", "k8s.io", "tasks", "ls").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("list the tasks: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && "containerd://"+fields[0] == id && fields[2] == "RUNNING" {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("%w: %s is not among %s", errElsewhere, id, out)
}

// signal sends a signal to the container of a pod.
func signal(t *testing.T, pod string, what syscall.Signal) error {
	t.Helper()
	pid, err := pidOf(t, pod)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, what)
}

// kill ends the process of a pod with SIGKILL.
func kill(t *testing.T, pod string) {
	t.Helper()
	err := signal(t, pod, syscall.SIGKILL)
	if errors.Is(err, errElsewhere) {
		kubectl(t, "delete", "pod", pod, "-n", namespace, "--grace-period=0", "--force")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
}
