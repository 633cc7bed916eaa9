package integration

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// functionUnderAHostNameOfItsOwn: all paths of the name are the function's, ours among them, and its rules hold there too.
func functionUnderAHostNameOfItsOwn() scenario {
	return scenario{[]fn{
		{name: "hosted", annotations: map[string]string{"Host": "app.example.com", "PathsStartWithVisibility": "Private:/admin"}},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		url := c.URL(0)
		get := func(host, path string, want int) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			req.Header.Set("X-Forwarded-Prefix", "/forged")
			res, err := cluster.Client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s%s: %d, want %d", host, path, res.StatusCode, want)
			}
		}
		seen := func(uri, prefix string) {
			t.Helper()
			all := rec.started(t, "hosted")
			if len(all) == 0 {
				t.Fatalf("nothing came for %s", uri)
			}
			if l := all[len(all)-1]; l.URI != uri || l.Header.Get("X-Forwarded-Prefix") != prefix {
				t.Errorf("the function saw %s with prefix %q, want %s with %q", l.URI, l.Header.Get("X-Forwarded-Prefix"), uri, prefix)
			}
		}
		get("app.example.com", "/any//path%20?x=1", 200)
		seen("/any//path%20?x=1", "/")
		get("App.Example.com.:5000", "/metrics", 200)
		seen("/metrics", "/")
		get("app.example.com", "/function/other/x", 200)
		seen("/function/other/x", "/")
		get("www.example.com", "/function/hosted/y", 200)
		seen("/y", "/function/hosted")
		get("www.example.com", "/any", 404)
		if outside := outsideAddress(t); outside != "" { // nobody else can be outside
			url = fmt.Sprintf("http://%s:%d", outside, c.Ports()["edge-0"]["public"])
			get("app.example.com", "/admin/x", 404)
			get("app.example.com", "/adm", 200)
		}
	}}
}
