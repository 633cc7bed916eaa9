package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

func serve(t *testing.T, slimfaas string) (*httptest.Server, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := newDemo(ctx, slimfaas, "demo", "3")
	s := httptest.NewServer(d.routes())
	t.Cleanup(func() { cancel(); s.Close(); d.callbacks.Wait() })
	return s, cancel
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := testkit.Client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestPlainRoutes(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, "")
	for _, c := range []struct {
		path string
		code int
		body string
	}{
		{"/health", 200, "OK"},
		{"/hello/world", 200, "Hello world"},
		{"/fibonacci/10", 200, "55"},
		{"/fibonacci/41", 400, "0–40"},
		{"/slow?ms=5", 200, "waited 5 ms"},
		{"/status/418", 418, "418"},
		{"/status/204", 204, ""},
		{"/status/99", 400, "200–599"},
		{"/stream?count=2&ms=1", 200, "id: 2\nevent: tick"},
		{"/callback-later", 400, "SlimFaas-Element-Id"},
		{"/nothing", 404, ""},
	} {
		if code, body := get(t, s.URL+c.path); code != c.code || !strings.Contains(body, c.body) {
			t.Errorf("%s: %d %q, want %d %q", c.path, code, body, c.code, c.body)
		}
	}
}

func TestEchoShowsTheRequestAsItCame(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, "")
	req, err := http.NewRequest(http.MethodPut, s.URL, strings.NewReader("the body"))
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = "/echo//a%2Fb/../c"
	req.URL.RawQuery = "x=1&&y=%20"
	req.Header.Set("X-Something", "v")
	res, err := testkit.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got struct {
		Method, RequestURI, Query, Body, Replica string
		Headers                                  http.Header
	}
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Method != "PUT" || got.RequestURI != "/echo//a%2Fb/../c?x=1&&y=%20" || got.Body != "the body" || got.Replica != "3" || got.Headers.Get("X-Something") != "v" {
		t.Errorf("got %+v", got)
	}
}

func TestEventsAreCounted(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, "")
	for _, path := range []string{"/events", "/events/deep/er"} {
		res, err := testkit.Client.Post(s.URL+path, "text/plain", strings.NewReader("e"))
		if err != nil || res.StatusCode != http.StatusNoContent {
			t.Fatalf("%s: %v %v", path, res, err)
		}
		res.Body.Close()
	}
	_, body := get(t, s.URL+"/events")
	var got struct {
		Total  int
		Events []event
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Total != 2 || len(got.Events) != 2 || got.Events[1].Path != "/events/deep/er" || got.Events[0].Body != "e" {
		t.Errorf("got %s, %v", body, err)
	}
}

func TestAnEndlessStreamEndsWithTheProgram(t *testing.T) {
	t.Parallel()
	s, end := serve(t, "")
	res, err := testkit.Client.Get(s.URL + "/stream?ms=1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	if !lines.Scan() || lines.Text() != "id: 1" {
		t.Fatalf("the first line is %q", lines.Text())
	}
	end()
	for lines.Scan() { // to the end, or the test hangs
	}
}

func TestTheCallbackNamesFunctionAndCall(t *testing.T) {
	t.Parallel()
	called := make(chan string, 2)
	slimfaas := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { called <- r.Method + " " + r.URL.Path }))
	defer slimfaas.Close()
	s, _ := serve(t, slimfaas.URL)
	for query, want := range map[string]string{
		"?ms=1":                         "POST /async-function-callback/demo/some-id/success",
		"?result=error&function=other3": "POST /async-function-callback/other3/some-id/error",
	} {
		req, err := http.NewRequest(http.MethodPost, s.URL+"/callback-later"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("SlimFaas-Element-Id", "some-id")
		res, err := testkit.Client.Do(req)
		if err != nil || res.StatusCode != http.StatusAccepted {
			t.Fatalf("%v %v", res, err)
		}
		res.Body.Close()
		if got := <-called; got != want {
			t.Errorf("called %s, want %s", got, want)
		}
	}
}
