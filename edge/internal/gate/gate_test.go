package gate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/route"
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
