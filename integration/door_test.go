package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

const keyOfTheCI = "key-of-the-ci-0123456789"

// keysFile is what the edges of TestInPeace have.
func keysFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("ci "+keyOfTheCI+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

var doorFunctions = []fn{
	{name: "keyed", annotations: map[string]string{"RequireKey": "ci"}},
	{name: "doorless"},
}

// keysAreAskedForAtTheDoor of callers from outside; the page and the commands of the edge show what there is.
func keysAreAskedForAtTheDoor(t *testing.T, c *cluster.Cluster, rec records, outside string) {
	t.Helper()
	if status, _, body := page(t, c.URL(0), nil); status != 200 || !strings.Contains(body, `"Name":"keyed"`) {
		t.Errorf("GET / as JSON: %d %s", status, body)
	}
	if status, head, body := page(t, c.URL(0), http.Header{"Accept": {"text/html"}}); status != 200 ||
		!strings.HasPrefix(head.Get("Content-Type"), "text/html") || !strings.Contains(body, "<td>keyed") {
		t.Errorf("GET / as a page: %d %s", status, body)
	}
	if out, err := edgeCommand(t, c.URL(0), "", "ls"); err != nil || !strings.Contains(out, "keyed") {
		t.Errorf("edge ls: %v %s", err, out)
	}
	if out, err := edgeCommand(t, c.URL(0), "", "call", "keyed", "/from/inside"); err != nil {
		t.Errorf("an internal caller needs a key: %v %s", err, out)
	}
	url := fmt.Sprintf("http://%s:%d", outside, c.Ports()["edge-0"]["public"])
	for _, args := range [][]string{{"call", "keyed", "/x"}, {"call", "keyed", "/x", "-async", "-d", "b"}, {"wake", "doorless"}} {
		if out, err := edgeCommand(t, url, "", args...); err == nil || !strings.Contains(out, "401") {
			t.Errorf("edge %v without a key: %v %s", args, err, out)
		}
		if out, err := edgeCommand(t, url, "another-key-0123456789", args...); err == nil || !strings.Contains(out, "401") {
			t.Errorf("edge %v with another key: %v %s", args, err, out)
		}
		if out, err := edgeCommand(t, url, keyOfTheCI, args...); err != nil {
			t.Errorf("edge %v with the key: %v %s", args, err, out)
		}
	}
	if out, err := edgeCommand(t, url, "", "call", "doorless", "/x"); err != nil {
		t.Errorf("a function that asks for no key: %v %s", err, out)
	}
	c.Eventually(20*time.Second, "the queued call has come", func() error {
		if n := len(rec.started(t, "keyed")); n < 3 {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	})
	for _, l := range rec.started(t, "keyed") {
		for name, values := range l.Header {
			if strings.Contains(strings.Join(values, " "), keyOfTheCI) {
				t.Errorf("the function saw the key in %s", name)
			}
		}
	}
}

func page(t *testing.T, url string, header http.Header) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	if header == nil {
		req.Header = http.Header{}
	}
	res, err := cluster.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(body)
}

// edgeCommand runs the edge's binary as a client.
func edgeCommand(t *testing.T, url, key string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(cluster.Bin(), "edge"), args...)
	cmd.Env = append(os.Environ(), "SLIMFAAS_URL="+url, "SLIMFAAS_API_KEY="+key)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
