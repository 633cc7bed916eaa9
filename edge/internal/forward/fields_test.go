package forward

import (
	"bufio"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/message"
)

// FuzzFields: whatever a caller's header has, what the function gets is one header, with its fields as they came, none of the
// connection's, none of ours, and X-Forwarded-* that say the truth: ours alone, or behind those of a trusted proxy.
func FuzzFields(f *testing.F) {
	f.Add("Accept: a\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=10.0.0.1", true)
	f.Add("Connection: close, X-Forwarded-For\r\nX-Forwarded-For: 10.0.0.1\r\nSlimFaas-Try-Number: 1", false)
	f.Add("Connection: te\r\nTE: trailers, gzip\r\nKeep-Alive: 1\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked", true)
	f.Add("X: a\r\n b\r\nContent-Length: 0\r\nX-Forwarded-Prefix: /a//\r\nX-Forwarded-Prefix: \xff", true)
	f.Fuzz(func(t *testing.T, header string, trusted bool) {
		in, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: h\r\nA: a\r\n" + header + "\r\n\r\n")))
		if err != nil {
			t.Skip()
		}
		in.RemoteAddr = "203.0.113.5:1234"
		x := &exchange{Call: Call{Prefix: "/function/f", KeepForwarded: trusted}}
		rest := bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: h\r\n" + string(x.fields(nil, in)) + "\r\nEND"))
		out, err := http.ReadRequest(rest)
		if err != nil {
			t.Fatalf("%q became what cannot be read: %v", header, err)
		}
		if left, _ := io.ReadAll(rest); string(left) != "END" {
			t.Fatalf("%q became more than one header: %q is left", header, left)
		}
		for name, values := range out.Header {
			switch {
			case name == "Te" && strings.Join(values, "") == "trailers":
			case hop(name) || message.Ours(name):
				t.Errorf("%q: %s reached the function", header, name)
			case !forwarding(name) && !slices.EqualFunc(values, in.Header[name], func(a, b string) bool { return a == strings.Trim(b, " \t") }):
				t.Errorf("%q: %s is %q, was %q", header, name, values, in.Header[name])
			}
		}
		if len(out.TransferEncoding) > 0 || out.ContentLength > 0 {
			t.Errorf("%q: the function is told of a body", header)
		}
		chain := out.Header["X-Forwarded-For"]
		if len(chain) != 1 || !strings.HasSuffix(", "+chain[0], ", 203.0.113.5") || !trusted && chain[0] != "203.0.113.5" {
			t.Errorf("%q: X-Forwarded-For is %q", header, chain)
		}
		if trusted {
			return
		}
		for name, want := range map[string]string{"X-Forwarded-Proto": "http", "X-Forwarded-Host": "h", "X-Forwarded-Prefix": "/function/f", "Forwarded": ""} {
			if got := strings.Join(out.Header[name], "\n"); got != want {
				t.Errorf("%q: %s is %q", header, name, got)
			}
		}
	})
}
