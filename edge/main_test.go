package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCommands(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /explain/fib":
			_, _ = w.Write([]byte(`{"Reason":"asleep"}`))
		case "POST /wake-function/fib":
			w.WriteHeader(http.StatusNoContent)
		case "GET /ready":
		default:
			http.Error(w, "{}", http.StatusNotFound)
		}
	}))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	environ := []string{"EDGE_INTERNAL_ADDRESS=:" + port, "EDGE_ADMIN_ADDRESS=:" + port}
	for _, c := range []struct {
		args     string
		code     int
		out, err string
	}{
		{"explain fib", 0, `"Reason": "asleep"`, ""},
		{"explain", 1, "", "expected the name of one function"},
		{"explain nope", 1, "{}", "404"},
		{"wake fib", 0, "", ""},
		{"status more", 1, "", "expected nothing more"},
		{"health", 0, "", ""},
		{"version", 0, "edge ", ""},
		{"config-doc", 0, "| `EDGE_QUEUE_API` |", ""},
		{"--help", 0, "usage: edge", ""},
		{"nonsense", 2, "", "unknown command"},
	} {
		var out, err bytes.Buffer
		if code := run(strings.Fields(c.args), environ, &out, &err); code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(err.String(), c.err) {
			t.Errorf("edge %s: %d %q %q", c.args, code, out.String(), err.String())
		}
	}
}

// All that is wrong is said at once, and links to other machines need a word.
func TestConfigurationThatCannotWork(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		environ []string
		want    []string
	}{
		"nothing set":       {nil, []string{"EDGE_QUEUE_API", "EDGE_BUS_URLS"}},
		"no network":        {[]string{"EDGE_TRUSTED_PROXIES=10.0.0.1", "EDGE_PARKED_TOTAL=0"}, []string{"EDGE_TRUSTED_PROXIES", "EDGE_PARKED_TOTAL"}},
		"TLS without files": {[]string{"EDGE_QUEUE_API=https://127.0.0.1:3263", "EDGE_BUS_URLS=tls://127.0.0.1:4222"}, []string{"https://127.0.0.1:3263 asks for TLS", "tls://127.0.0.1:4222 asks for TLS"}},
		"other machines":    {[]string{"EDGE_QUEUE_API=http://queue-0:3263", "EDGE_BUS_URLS=nats://10.0.0.1:4222"}, []string{"queue-0:3263", "10.0.0.1:4222", "EDGE_INSECURE"}},
		"no such secrets":   {[]string{"EDGE_QUEUE_API=http://127.0.0.1:1", "EDGE_BUS_URLS=nats://127.0.0.1:1", "EDGE_SECRETS_DIR=/nowhere"}, []string{"token-edge"}},
	} {
		var out, err bytes.Buffer
		if code := run(nil, append(c.environ, "LOG_FORMAT=json"), &out, &err); code != 1 {
			t.Errorf("%s: code %d", name, code)
		}
		for _, w := range c.want {
			if !strings.Contains(err.String(), w) {
				t.Errorf("%s: nothing about %s in %s", name, w, err.String())
			}
		}
	}
}
