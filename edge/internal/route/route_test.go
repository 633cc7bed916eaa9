package route_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/route"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		target string
		family route.Family
		name   string
		rest   string
		query  string
	}{
		{"/function/fib", route.Function, "fib", "/", ""},
		{"/function/fib/", route.Function, "fib", "/", ""},
		{"/function/fib?", route.Function, "fib", "/", ""},
		{"/function/fib?a=b/", route.Function, "fib", "/", "a=b/"},
		{"/FUNCTION/fib/A/b/", route.Function, "fib", "/A/b/", ""},
		{"/function/fib//a//b", route.Function, "fib", "//a//b", ""},
		{"/function/fib/%2Fadmin%3F%25?x=%zz;y", route.Function, "fib", "/%2Fadmin%3F%25", "x=%zz;y"},
		{"/function/fib/../other", route.Function, "fib", "/../other", ""},
		{"/function/%66ib/x", route.Function, "fib", "/x", ""},
		{"/function/Fib/x", route.Function, "Fib", "/x", ""},
		{"/function/fib%2Fadmin", route.Function, "fib/admin", "/", ""}, // no such function: the gate refuses
		{"/function/fib%00/x", route.Unknown, "", "", ""},
		{"/function/", route.Unknown, "", "", ""},
		{"/function", route.Unknown, "", "", ""},
		{"/function//fib", route.Unknown, "", "", ""},
		{"//function/fib", route.Unknown, "", "", ""},
		{"/./function/fib", route.Unknown, "", "", ""},
		{"/functions/fib", route.Unknown, "", "", ""},
		{"/%66unction/fib", route.Unknown, "", "", ""},
		{"http://u:p@other:80/function/fib/x?q=1", route.Function, "fib", "/x", "q=1"},
		{"http://other", route.Home, "", "", ""},
		{"/", route.Home, "", "", ""},
		{"/?a", route.Home, "", "", "a"},
		{"//", route.Unknown, "", "", ""},
		{"/index.html", route.Unknown, "", "", ""},
		{"http://other?x", route.Home, "", "", "x"},
		{"*", route.Unknown, "", "", ""},
		{"", route.Unknown, "", "", ""},
		{"host:443", route.Unknown, "", "", ""},
		{"/async-function/fib/a", route.AsyncFunction, "fib", "/a", ""},
		{"/async-function-callback/fib/0190/success", route.AsyncCallback, "fib", "", ""},
		{"/async-function-callback/fib/0190/success/", route.AsyncCallback, "fib", "", ""},
		{"/async-function-callback/fib/0190", route.Unknown, "", "", ""},
		{"/async-function-callback/fib/0190/success/x", route.Unknown, "", "", ""},
		{"/async-function-callback/fib//success", route.Unknown, "", "", ""},
		{"/publish-event/my%20event/hello", route.PublishEvent, "my event", "/hello", ""},
		{"/wake-function/fib", route.WakeFunction, "fib", "", ""},
		{"/wake-function/fib/", route.WakeFunction, "fib", "", ""},
		{"/wake-function/fib/x", route.Unknown, "", "", ""},
		{"/wake-functions", route.WakeFunctions, "", "", ""},
		{"/wake-functions/", route.WakeFunctions, "", "", ""},
		{"/wake-functions/fib", route.Unknown, "", "", ""},
		{"/status-functions?level=detailed", route.StatusFunctions, "", "", "level=detailed"},
		{"/status-function/fib", route.StatusFunction, "fib", "", ""},
		{"/status-functions-stream", route.StatusStream, "", "", ""},
		{"/async-calls/0190", route.AsyncCall, "0190", "", ""},
		{"/async-calls/0190/", route.AsyncCall, "0190", "", ""},
		{"/async-calls/0190/Result", route.AsyncResult, "0190", "", ""},
		{"/async-calls/0190/other", route.Unknown, "", "", ""},
		{"/explain/fib", route.Explain, "fib", "", ""},
		{"/scale/fib", route.Scale, "fib", "", ""},
		{"/cluster", route.Cluster, "", "", ""},
		{"/Health", route.Health, "", "", ""},
		{"/health/", route.Unknown, "", "", ""},
		{"/READY?x", route.Ready, "", "", "x"},
		{"/metrics", route.Metrics, "", "", ""},
	} {
		got := route.Parse(c.target)
		if got.Family != c.family {
			t.Errorf("%s: family %v, want %v", c.target, got.Family, c.family)
			continue
		}
		if c.family == route.Unknown {
			continue
		}
		if got.Name != c.name || got.Rest != c.rest || got.Query != c.query {
			t.Errorf("%s: name %q rest %q query %q, want %q %q %q", c.target, got.Name, got.Rest, got.Query, c.name, c.rest, c.query)
		}
	}
	cb := route.Parse("/async-function-callback/fib/0190/SUCCESS")
	if len(cb.Params) != 2 || cb.Params[0] != "0190" || cb.Params[1] != "SUCCESS" {
		t.Errorf("callback parameters %v", cb.Params)
	}
	if !route.Parse("/function/fib?").Mark || route.Parse("/function/fib").Mark {
		t.Error("the question mark is not told")
	}
}

// Whatever the target: no panic, and what follows the name is a suffix of the path as sent.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"/function/fib/a?b", "http://x/function/f", "/async-calls/x/result", "//", "/function/%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		r := route.Parse(target)
		if r.Family == route.Unknown {
			return
		}
		path, _, _ := strings.Cut(target, "?")
		if r.Rest != "" && r.Rest != "/" && !strings.HasSuffix(path, r.Rest) {
			t.Fatalf("%q: rest %q is not what was sent", target, r.Rest)
		}
	})
}

func TestAHostNameOfAFunctionsOwnIsItsRoot(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]route.Route{
		"/":                         {Family: route.Function, Name: "f", Rest: "/", Host: true},
		"/metrics?a=%2F":            {Family: route.Function, Name: "f", Rest: "/metrics", Query: "a=%2F", Mark: true, Host: true},
		"//function/other/x?":       {Family: route.Function, Name: "f", Rest: "//function/other/x", Mark: true, Host: true},
		"http://app.example.com/a/": {Family: route.Function, Name: "f", Rest: "/a/", Host: true},
		"x":                         {},
	} {
		if got := route.Own("f", target); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", target, got, want)
		}
	}
	if a, b := route.Own("f", "/").Prefix(), route.Parse("/function/f/x").Prefix(); a != "/" || b != "/function/f" {
		t.Errorf("prefixes %s, %s", a, b)
	}
	for _, c := range [][3]string{{"", "/", "/"}, {"", "/function/f", "/function/f"}, {"/shop/", "/", "/shop"}, {"/shop", "/function/f", "/shop/function/f"}, {"/shop", "", "/shop"}, {"", "", ""}} {
		if got := route.JoinPrefix(c[0], c[1]); got != c[2] {
			t.Errorf("%q behind %q: %q, want %q", c[1], c[0], got, c[2])
		}
	}
}
