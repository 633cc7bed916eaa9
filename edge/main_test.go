package main

import (
	"bytes"
	"fmt"
	"io"
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
		case "GET /":
			_, _ = w.Write([]byte(`{"Functions":[{"Name":"fib","State":"Ready","NumberReady":1,"NumberRequested":2,"Visibility":"Public","Reason":"calls"}]}`))
		case "POST /async-function/fib/a":
			w.Header().Set("SlimFaas-Element-Id", "the-id")
			w.WriteHeader(http.StatusAccepted)
		case "GET /function/fib/", "PUT /function/fib/a/b", "POST /function/fib/a":
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %q %s %s", r.Method, body, r.Header.Get("X-A"), r.Header.Get("SlimFaas-Api-Key"))
		case "PUT /scale/fib":
			body, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(w, "%s\n", body)
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
		{"scale fib 3", 0, `"ForSeconds": 60`, ""},
		{"scale fib 0 -for 5m", 0, `"ForSeconds": 300`, ""},
		{"scale fib", 1, "", "a number of replicas"},
		{"scale fib many", 1, "", `"many" is no number`},
		{"ls", 0, "fib       Ready  1/2    Public      calls", ""},
		{"ls fib", 1, "", "expected nothing more"},
		{"call fib", 0, `GET "" `, ""},
		{"call fib a -d x", 0, `POST "x" `, ""},
		{"call -X put fib /a/b -H X-A:1 -d @-", 0, `PUT "from standard input" 1`, ""},
		{"call fib -i", 0, "HTTP/1.1 200 OK", ""},
		{"call fib a -async -d x", 0, "the-id", ""},
		{"call nope", 1, "{}", "404"},
		{"call", 1, "", "expected the name of a function"},
		{"call fib -H nonsense", 1, "", "Name: value"},
		{"call fib -z", 1, "", "-z"},
		{"call fib a -d @/nowhere", 1, "", "reading the body"},
		{"status more", 1, "", "expected nothing more"},
		{"health", 0, "", ""},
		{"version", 0, "edge ", ""},
		{"config-doc", 0, "| `EDGE_QUEUE_API` |", ""},
		{"--help", 0, "usage: edge", ""},
		{"nonsense", 2, "", "unknown command"},
	} {
		var out, err bytes.Buffer
		if code := run(strings.Fields(c.args), environ, strings.NewReader("from standard input"), &out, &err); code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(err.String(), c.err) {
			t.Errorf("edge %s: %d %q %q", c.args, code, out.String(), err.String())
		}
	}
}

func TestTheClientAsksTheEdgeItIsTold(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.URL.Path, " ", r.Header.Get("SlimFaas-Api-Key"))
	}))
	defer srv.Close()
	var out, err bytes.Buffer
	if code := run([]string{"call", "fib"}, []string{"SLIMFAAS_URL=" + srv.URL + "/", "SLIMFAAS_API_KEY=the-key"}, nil, &out, &err); code != 0 || out.String() != "/function/fib/ the-key" {
		t.Errorf("%d %q %q", code, out.String(), err.String())
	}
	if code := run([]string{"ls"}, []string{"SLIMFAAS_URL=localhost:5000"}, nil, &out, &err); code != 1 || !strings.Contains(err.String(), "SLIMFAAS_URL") {
		t.Errorf("%d %q", code, err.String())
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
		if code := run(nil, append(c.environ, "LOG_FORMAT=json"), nil, &out, &err); code != 1 {
			t.Errorf("%s: code %d", name, code)
		}
		for _, w := range c.want {
			if !strings.Contains(err.String(), w) {
				t.Errorf("%s: nothing about %s in %s", name, w, err.String())
			}
		}
	}
}
