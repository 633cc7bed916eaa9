package gate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/function"
)

func TestWhatIsRefused(t *testing.T) {
	t.Parallel()
	many := map[string][]string{"X": slices.Repeat([]string{"v"}, 101)}
	big := map[string][]string{"X": {strings.Repeat("v", 16<<10)}}
	for _, c := range []struct {
		method, target string
		header         map[string][]string
		status         int
	}{
		{"GET", "/function/fib/a", nil, 0},
		{"PATCH", "/function/fib", nil, 0},
		{"HEAD", "/function/fib", nil, 0},
		{"OPTIONS", "/function/fib", nil, 0},
		{"TRACE", "/function/fib/x", nil, 405},
		{"get", "/function/fib/x", nil, 405},
		{"BREW", "/function/fib/x", nil, 405},
		{"CONNECT", "/", nil, 405},
		{"CONNECT", "host:443", nil, 405},
		{"PRI", "*", nil, 405},
		{"OPTIONS", "*", nil, 405},
		{"TRACE", "/nowhere", nil, 404},
		{"GET", "/function/Fib/x", nil, 404},
		{"GET", "/function/../x", nil, 404},
		{"GET", "/function/%2e%2e/x", nil, 404},
		{"GET", "/function/.fib/x", nil, 404},
		{"GET", "/function/fib%2fadmin", nil, 404},
		{"GET", "/function/fib%5cadmin", nil, 404},
		{"GET", "/function/fib\\admin", nil, 404},
		{"GET", "/function/fib%00", nil, 404},
		{"GET", "/function/fib\x00", nil, 400},
		{"GET", "/function/%252e/x", nil, 404},
		{"GET", "/function//fib", nil, 404},
		{"GET", "//function/fib", nil, 404},
		{"GET", "/function/" + strings.Repeat("a", 254), nil, 404},
		{"GET", "/function/fib/../other", nil, 0}, // the rest is the function's business
		{"GET", "/function/fib/" + strings.Repeat("a", 4096), nil, 414},
		{"GET", "/function/fib?" + strings.Repeat("a", 8193), nil, 414},
		{"GET", "/function/fib", many, 431},
		{"GET", "/function/fib", big, 431},
		{"GET", "/function/fib", map[string][]string{"Upgrade": {"h2c"}}, 400},
		{"GET", "/function/fib", map[string][]string{"Upgrade": {"websocket, h2c"}}, 400},
		{"GET", "/function/fib", map[string][]string{"Upgrade": {"websocket", "h2c"}}, 400},
		{"GET", "/function/fib", map[string][]string{"Upgrade": {"WebSocket"}}, 0},
		{"GET", "/async-function-callback/fib/1/success", nil, 405},
		{"GET", "/wake-function/fib", nil, 0},
		{"DELETE", "/wake-function/fib", nil, 405},
		{"POST", "/status-functions", nil, 405},
		{"GET", "/", nil, 0},
		{"POST", "/", nil, 405},
		{"GET", "/index.html", nil, 404},
	} {
		r, refused := gate.Check(gate.Head{Method: c.method, Target: c.target, Header: c.header})
		if refused.Status != c.status {
			t.Errorf("%s %.60q: %d %s, want %d", c.method, c.target, refused.Status, refused.Detail, c.status)
		}
		if refused.Status == 405 && len(refused.Allow) == 0 {
			t.Errorf("%s %s: 405 without Allow", c.method, c.target)
		}
		if refused.Status == 0 && r.Family == route.Unknown {
			t.Errorf("%s %s: accepted without a route", c.method, c.target)
		}
	}
}

func TestCrossOrigin(t *testing.T) {
	t.Parallel()
	ask := map[string][]string{
		"Origin": {"https://a.example"}, "Access-Control-Request-Method": {"PUT"}, "Access-Control-Request-Headers": {"x-one, x-two"},
	}
	plain := map[string][]string{"Origin": {"https://a.example"}}
	for _, c := range []struct {
		name, allow, method string
		header              map[string][]string
		want                string
		preflight           bool
	}{
		{"any origin", "*", "GET", plain, "Access-Control-Allow-Origin=*", false},
		{
			"any preflight", "*", "OPTIONS", ask,
			"Access-Control-Allow-Origin=* Access-Control-Allow-Methods=PUT Access-Control-Allow-Headers=x-one, x-two", true,
		},
		{"plain OPTIONS is forwarded", "*", "OPTIONS", plain, "Access-Control-Allow-Origin=*", false},
		{"listed", "https://b.example, https://a.example/", "GET", plain, "Access-Control-Allow-Origin=https://a.example Vary=Origin", false},
		{"not listed", "https://b.example", "GET", plain, "", false},
		{"not listed preflight is still ours", "https://b.example", "OPTIONS", ask, "", true},
		{"no origin", "*", "GET", nil, "", false},
		{"nobody", "", "OPTIONS", ask, "", true},
	} {
		headers, preflight := gate.NewCors(c.allow).Answer(c.method, c.header)
		var got []string
		for _, h := range headers {
			got = append(got, h.Name+"="+h.Value)
		}
		if strings.Join(got, " ") != c.want || preflight != c.preflight {
			t.Errorf("%s: %q preflight %v, want %q %v", c.name, got, preflight, c.want, c.preflight)
		}
	}
}

// FuzzCheck: whatever is let through is one the edge answers, by a method it takes there, for a name that can be a function's.
func FuzzCheck(f *testing.F) {
	for _, s := range [][4]string{
		{"GET", "/function/fib/a?b", "Upgrade", "websocket"}, {"POST", "http://user@h/async-function/f", "Host", "x"},
		{"CONNECT", "h:443", "", ""}, {"OPTIONS", "*", "", ""}, {"GET", "/function/%2e%2e/x", "Upgrade", "h2c"}, {"TRACE", "//", "X", "\x00"},
	} {
		f.Add(s[0], s[1], s[2], s[3], "")
	}
	f.Add("GET", "/a//../b", "X", "y", "own")
	f.Fuzz(func(t *testing.T, verb, target, name, value, own string) {
		if own != "" && !function.ValidName(own) { // the table has no such
			t.Skip()
		}
		header := map[string][]string{name: {value}}
		r, refused := gate.Check(gate.Head{Method: verb, Target: target, Header: header, Function: own})
		if refused.Status != 0 {
			if refused.Status < 400 || refused.Status > 499 || refused.Type == "" || refused.Detail == "" || (refused.Status == 405) != (refused.Allow != nil) {
				t.Errorf("%q %q: a refusal nobody can act on: %+v", verb, target, refused)
			}
			return
		}
		path, query, _ := strings.Cut(target, "?")
		switch {
		case !slices.Contains(r.Family.Methods(), verb):
			t.Errorf("%q %q: %v does not take it", verb, target, r.Family)
		case len(path) > gate.MaxPath || len(query) > gate.MaxQuery || len(name)+len(value) > gate.MaxHeaderBytes:
			t.Errorf("%q %.80q: over the limits", verb, target)
		case strings.ContainsRune(target, 0):
			t.Errorf("%q %q: a NUL", verb, target)
		case name == "Upgrade" && !strings.EqualFold(strings.Trim(value, " \t\r\n"), "websocket"):
			t.Errorf("%q %q: Upgrade: %q", verb, target, value)
		case r.Family.OfFunction() && (r.Name == "" || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != ""):
			t.Errorf("%q %q: a function named %q", verb, target, r.Name)
		case r.Query != query:
			t.Errorf("%q %q: query %q", verb, target, r.Query)
		}
	})
}
