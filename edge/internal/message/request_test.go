package message

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func headersOf(stored *wire.StoredRequest) http.Header {
	all := http.Header{}
	for _, h := range stored.GetHeaders() {
		all[h.GetName()] = h.GetValues()
	}
	return all
}

func TestFromKeepsWhatIsTheCallersAndDropsWhatIsNot(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodDelete, "http://edge.example/async-function/f/x", strings.NewReader("body"))
	r.RemoteAddr = "203.0.113.9:4711"
	r.Header = http.Header{
		"Accept": {"text/x"}, "Authorization": {"bearer a"}, "Cookie": {"a=1", "b=2"}, "User-Agent": {"me"}, "Range": {"bytes=1-"},
		"Connection": {"keep-alive, X-Drop"}, "X-Drop": {"1"}, "Te": {"trailers"}, "Expect": {"100-continue"}, "Content-Length": {"4"},
		"Slimfaas-Element-Id": {"forged"}, "X-Slimfaas-Job": {"forged"}, "slimFAAS-odd": {"forged"},
		"X-Forwarded-For": {"10.0.0.1"}, "X-Forwarded-Host": {"forged"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=x"},
		"X-Forwarded-Prefix": {"/forged"},
	}
	stored := From(r, "/x%20y/", "a=%2F", []byte("body"), "/function/f", false)
	if stored.GetMethod() != "DELETE" || stored.GetPath() != "/x%20y/" || stored.GetQuery() != "a=%2F" || string(stored.GetBody()) != "body" {
		t.Errorf("stored %v", stored)
	}
	got := headersOf(stored)
	for name, want := range map[string]string{
		"Accept": "text/x", "Authorization": "bearer a", "Cookie": "a=1|b=2", "User-Agent": "me", "Range": "bytes=1-",
		"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "edge.example", "X-Forwarded-Proto": "http", "X-Forwarded-Prefix": "/function/f",
		"Connection": "", "X-Drop": "", "Te": "", "Expect": "", "Content-Length": "", "Slimfaas-Element-Id": "", "X-Slimfaas-Job": "", "slimFAAS-odd": "", "Forwarded": "",
	} {
		if text := strings.Join(got[name], "|"); text != want {
			t.Errorf("%s: %q, want %q", name, text, want)
		}
	}
}

func TestFromBehindATrustedProxyAppends(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodGet, "http://edge/x", nil)
	r.RemoteAddr = "10.1.1.1:1"
	r.Header = http.Header{"X-Forwarded-For": {"198.51.100.1", "10.9.9.9"}, "X-Forwarded-Host": {"shop.example"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Prefix": {"/shop/"}}
	got := headersOf(From(r, "/", "", nil, "/function/f", true))
	for name, want := range map[string]string{
		"X-Forwarded-For": "198.51.100.1, 10.9.9.9, 10.1.1.1", "X-Forwarded-Host": "shop.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/shop/function/f",
	} {
		if text := strings.Join(got[name], "|"); text != want {
			t.Errorf("%s: %q, want %q", name, text, want)
		}
	}
}

func TestPathAndQueryGoOutByteForByte(t *testing.T) {
	t.Parallel()
	var got string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.RequestURI }))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	transport := NewTransport()
	defer transport.Close()
	for _, c := range []struct{ path, query, want string }{
		{"/", "", "/"},
		{"/a/b/", "", "/a/b/"},
		{"/a%20b", "q=%20", "/a%20b?q=%20"},
		{"/a%2Fb/../c", "x=1/", "/a%2Fb/../c?x=1/"},
		{"//a//b", "", "//a//b"},
		{"/a;b=c|d\"{}", "a=b;c", "/a;b=c|d\"{}?a=b;c"},
		{"/%41%e2%82%ac", "", "/%41%e2%82%ac"},
		{"//odd|", "x", "http://" + address + "//odd|?x"},
		{"/\xff\xe9", "q=\xfe", "/\xff\xe9?q=\xfe"},
	} {
		if _, err := transport.Send(t.Context(), address, kept(t, &wire.StoredRequest{Method: "GET", Path: c.path, Query: c.query}), nil); err != nil {
			t.Errorf("%s: %v", c.path, err)
		}
		if got != c.want {
			t.Errorf("%s?%s arrived as %s, want %s", c.path, c.query, got, c.want)
		}
	}
}

// kept is the request after it has been stored.
func kept(t *testing.T, request *wire.StoredRequest) *wire.StoredRequest {
	t.Helper()
	raw, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	again := &wire.StoredRequest{}
	if err := proto.Unmarshal(raw, again); err != nil {
		t.Fatal(err)
	}
	return again
}

func TestMethodBodyAndHeadersArrive(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(r.Context())
		body, _ = io.ReadAll(r.Body)
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	transport := NewTransport()
	defer transport.Close()
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"} {
		for _, text := range []string{"", "a body"} {
			stored := &wire.StoredRequest{Method: method, Path: "/", Body: []byte(text), Headers: []*wire.Header{
				{Name: "X-Mine", Values: []string{"a", "b"}}, {Name: "Idempotency-Key", Values: []string{"k"}}, {Name: "Connection", Values: []string{"close"}},
				{Name: "X-Latin-1", Values: []string{"caf\xe9"}},
			}}
			answer, err := transport.Send(t.Context(), address, kept(t, stored), http.Header{HeaderElementID: {"the-id"}})
			if err != nil {
				t.Fatal(err)
			}
			if answer.Status != http.StatusFound {
				t.Errorf("%s: status %d, redirects are not followed", method, answer.Status)
			}
			if got.Method != method || string(body) != text || got.Host != address || len(got.TransferEncoding) != 0 || got.ContentLength != int64(len(text)) {
				t.Errorf("%s with %q arrived as %s with %q, host %s, %v %d", method, text, got.Method, body, got.Host, got.TransferEncoding, got.ContentLength)
			}
			if len(got.Header["X-Mine"]) != 2 || got.Header.Get("X-Latin-1") != "caf\xe9" || got.Header.Get("Idempotency-Key") != "k" || got.Header.Get("SlimFaas-Element-Id") != "the-id" ||
				got.Header.Get("Connection") != "" || got.Header.Get("User-Agent") != "" || got.Header.Get("Accept-Encoding") != "" {
				t.Errorf("%s: headers %v", method, got.Header)
			}
		}
	}
}

// A server that reads a request on a kept connection and closes without an answer has seen it: it must not come again.
func TestNothingIsReplayed(t *testing.T) {
	t.Parallel()
	for _, stored := range []*wire.StoredRequest{
		{Method: "GET", Path: "/"},
		{Method: "HEAD", Path: "/"},
		{Method: "OPTIONS", Path: "/"},
		{Method: "POST", Path: "/", Headers: []*wire.Header{{Name: "Idempotency-Key", Values: []string{"k"}}}},
		{Method: "POST", Path: "/", Headers: []*wire.Header{{Name: "x-idempotency-key", Values: []string{"k"}}}},
		{Method: "PUT", Path: "/", Body: []byte("body")},
	} {
		seen, address := rudeServer(t)
		transport := NewTransport()
		if _, err := transport.Send(t.Context(), address, &wire.StoredRequest{Method: "POST", Path: "/first"}, nil); err != nil {
			t.Fatal(err)
		}
		_, err := transport.Send(t.Context(), address, stored, nil)
		if err == nil {
			t.Errorf("%s: an answer that was never sent", stored.GetMethod())
		}
		transport.Close()
		if n := len(seen); n != 2 {
			t.Errorf("%s: %d requests arrived, want the first and one more", stored.GetMethod(), n)
		}
	}
}

// rudeServer answers the first request of each connection and closes after reading the second.
func rudeServer(t *testing.T) (seen chan string, address string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	seen = make(chan string, 16)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				in := bufio.NewReader(conn)
				for i := range 2 {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					seen <- r.Method
					if i == 0 {
						_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			}()
		}
	}()
	return seen, listener.Addr().String()
}

func TestExplainNamesTheReason(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	transport := NewTransport()
	_, err = transport.Send(t.Context(), address, &wire.StoredRequest{Method: "GET", Path: "/"}, nil)
	if text := Explain(err, 0); text != "connection refused" || !Unreachable(err) {
		t.Errorf("%q for %v", text, err)
	}
	_, err = transport.Send(t.Context(), "169.254.169.254:80", &wire.StoredRequest{Method: "GET", Path: "/"}, nil)
	if err == nil || !Unreachable(err) {
		t.Errorf("a link-local address was called: %v", err)
	}
}

// TestExplainIsTextWhateverAFunctionSends: what it says is stored in a message that takes valid UTF-8 only.
func TestExplainIsTextWhateverAFunctionSends(t *testing.T) {
	t.Parallel()
	for name, said := range map[string]string{
		"no UTF-8": "\xff\xfe", "half a letter at the cut": "x" + strings.Repeat("é", 300), "much": strings.Repeat("x", 10_000),
	} {
		if text := Explain(errors.New(said), 0); !utf8.ValidString(text) || text == "" || len(text) > 300 {
			t.Errorf("%s: %d bytes, %q", name, len(text), text)
		}
	}
}

func TestParseIDTakesTheCanonicalFormOnly(t *testing.T) {
	t.Parallel()
	id, err := NewID()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{id.String(), strings.ToUpper(id.String())} {
		if got, err := ParseID(text); err != nil || got != id {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
	if id.String() != strings.ToLower(id.String()) || id[6]>>4 != 7 {
		t.Errorf("%s is no lower-case UUIDv7", id)
	}
	for _, text := range []string{"", "x", strings.ReplaceAll(id.String(), "-", ""), "{" + id.String() + "}", "urn:uuid:" + id.String(), id.String()[:35] + "g"} {
		if _, err := ParseID(text); err == nil {
			t.Errorf("%q was taken for an id", text)
		}
	}
}
