package integration

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mccutchen/go-httpbin/v2/httpbin"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// asked of go-httpbin, directly and through the edge: every kind of request its documentation lists, but those whose answer is
// another one each time.
var askedOfHTTPBin = []struct {
	method, target string
	header         http.Header
	body           string
}{
	{"GET", "/get?a=1&a=2&b=%20%2F", http.Header{"X-Mine": {"one", "two"}, "Accept-Encoding": {"br"}}, ""},
	{"HEAD", "/head", nil, ""},
	{"GET", "/", nil, ""},
	{"POST", "/post", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, "a=1&b=2"},
	{"POST", "/post", http.Header{"Content-Type": {"application/json"}}, `{"a":[1,2,3]}`},
	{"POST", "/post", http.Header{"Content-Type": {"multipart/form-data; boundary=x"}}, "--x\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.txt\"\r\n\r\ncontent\r\n--x--\r\n"},
	{"PUT", "/put", nil, "text"},
	{"PATCH", "/patch", nil, "text"},
	{"DELETE", "/delete", nil, "text"},
	{"DELETE", "/delete", nil, ""},
	{"POST", "/upload", nil, strings.Repeat("x", 300_000)},
	{"GET", "/anything/a%2Fb//c/../d?q=%zz", nil, ""},
	{"POST", "/anything", http.Header{"Cookie": {"a=1; b=2"}, "Authorization": {"Bearer of-the-function"}}, "any"},
	{"OPTIONS", "/anything", nil, ""},
	{"GET", "/base64/encode/hello", nil, ""},
	{"GET", "/basic-auth/u/p", nil, ""},
	{"GET", "/basic-auth/u/p", http.Header{"Authorization": {"Basic dTpw"}}, ""},
	{"GET", "/hidden-basic-auth/u/p", nil, ""},
	{"GET", "/bearer", http.Header{"Authorization": {"Bearer x"}}, ""},
	{"GET", "/bytes/1024?seed=7", nil, ""},
	{"GET", "/stream-bytes/70000?seed=7&chunk_size=1000", nil, ""},
	{"GET", "/stream/5", nil, ""},
	{"GET", "/cache", nil, ""},
	{"GET", "/cache", http.Header{"If-Modified-Since": {"Wed, 25 Nov 2026 00:00:00 GMT"}}, ""},
	{"GET", "/cache/60", nil, ""},
	{"GET", "/etag/abc", nil, ""},
	{"GET", "/etag/abc", http.Header{"If-None-Match": {`"abc"`}}, ""},
	{"GET", "/etag/abc", http.Header{"If-Match": {`"other"`}}, ""},
	{"GET", "/cookies", http.Header{"Cookie": {"a=1; b=2"}}, ""},
	{"GET", "/cookies/set?a=1&b=2", nil, ""},
	{"GET", "/cookies/delete?a=", http.Header{"Cookie": {"a=1"}}, ""},
	{"GET", "/gzip", nil, ""},
	{"GET", "/deflate", nil, ""},
	{"GET", "/brotli", nil, ""},
	{"GET", "/delay/100ms", nil, ""},
	{"GET", "/deny", nil, ""},
	{"GET", "/drip?numbytes=5&duration=200ms&delay=0", nil, ""},
	{"GET", "/encoding/utf8", nil, ""},
	{"GET", "/forms/post", nil, ""},
	{"GET", "/headers", http.Header{"User-Agent": {"mine"}}, ""},
	{"GET", "/html", nil, ""},
	{"GET", "/image", http.Header{"Accept": {"image/webp"}}, ""},
	{"GET", "/image/png", nil, ""},
	{"GET", "/json", nil, ""},
	{"GET", "/jsonl", nil, ""},
	{"GET", "/links/3/1", nil, ""},
	{"GET", "/range/1000?chunk_size=100", nil, ""},
	{"GET", "/range/1000", http.Header{"Range": {"bytes=10-19"}}, ""},
	{"GET", "/range/1000", http.Header{"Range": {"bytes=5000-"}}, ""},
	{"GET", "/redirect/3", nil, ""},
	{"GET", "/relative-redirect/2", nil, ""},
	{"GET", "/redirect-to?url=https%3A%2F%2Fexample.com%2F&status_code=307", nil, ""},
	{"GET", "/response-headers?X-One=1&X-One=2&Content-Type=text/x", nil, ""},
	{"GET", "/robots.txt", nil, ""},
	{"GET", "/sse?count=3&duration=100ms&delay=0", nil, ""},
	{"GET", "/status/200", nil, ""},
	{"GET", "/status/204", nil, ""},
	{"GET", "/status/304", nil, ""},
	{"GET", "/status/401", nil, ""},
	{"POST", "/status/404", nil, "x"},
	{"GET", "/status/418", nil, ""},
	{"GET", "/status/500", nil, ""},
	{"GET", "/status/999", nil, ""},
	{"GET", "/trailers?X-Late=1&X-Later=2", nil, ""},
	{"GET", "/unstable?failure_rate=1", nil, ""},
	{"GET", "/user-agent", http.Header{"User-Agent": {"mine"}}, ""},
	{"GET", "/version", nil, ""},
	{"GET", "/xml", nil, ""},
	{"GET", "/nothing/here", nil, ""},
}

// answer of httpbin, without what has to differ.
type answer struct {
	Status  int
	Length  int64
	Header  http.Header
	Trailer http.Header
	Body    string
}

// goHTTPBinAnswersAsItDoesDirectly: what it is asked and what it answers goes through the edge unchanged, over HTTP/1.1 and HTTP/2.
func goHTTPBinAnswersAsItDoesDirectly(t *testing.T) scenario {
	t.Helper()
	bin := httpbin.New(httpbin.WithMaxDuration(time.Second))
	function := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" { // what bin/local asks
			bin.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(function.Close)
	return scenario{[]fn{{name: "httpbin", debugURL: function.URL}}, func(t *testing.T, c *cluster.Cluster, _ records) {
		var h2 http.Protocols
		h2.SetUnencryptedHTTP2(true)
		ways := map[string]*http.Transport{
			"HTTP/1.1": {DisableCompression: true},
			"HTTP/2":   {DisableCompression: true, Protocols: &h2},
		}
		for way, transport := range ways {
			defer transport.CloseIdleConnections()
			for _, q := range askedOfHTTPBin {
				want := askHTTPBin(t, ways["HTTP/1.1"], function.URL, q.method, q.target, q.header, q.body)
				got := askHTTPBin(t, transport, c.URL(0)+"/function/httpbin", q.method, q.target, q.header, q.body)
				if way == "HTTP/2" { // whose framing says where a body ends
					want.Length = 0
					delete(want.Header, "Content-Length")
				}
				if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); a != b {
					t.Errorf("%s %s over %s:\nthrough the edge %.300s\ndirectly         %.300s", q.method, q.target, way, a, b)
				}
			}
		}
	}}
}

func askHTTPBin(t *testing.T, transport *http.Transport, base, method, target string, header http.Header, body string) answer {
	t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, base+"/", content)
	if err != nil {
		t.Fatal(err)
	}
	path, query, _ := strings.Cut(target, "?")
	req.URL.Opaque = "//" + req.URL.Host + strings.TrimSuffix(req.URL.Path, "/") + path // byte for byte
	req.URL.RawQuery = query
	req.Header.Set("User-Agent", "test") // or it names the protocol
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, base+target, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s %s: reading the answer: %v", method, base+target, err)
	}
	if resp.Header.Get("Content-Encoding") != "" {
		raw = unpacked(t, resp.Header.Get("Content-Encoding"), raw)
	}
	a := answer{Status: resp.StatusCode, Length: resp.ContentLength, Header: resp.Header, Trailer: resp.Trailer, Body: comparison(raw)}
	for name := range a.Header {
		switch {
		case name == "Date", name == "Vary", name == "Server-Timing", strings.HasPrefix(name, "Access-Control-"), name == "Last-Modified", name == "Etag":
			delete(a.Header, name)
		case name == "Location":
			a.Header[name] = []string{hosts.ReplaceAllString(a.Header.Get(name), "http://host")}
		case name == "Set-Cookie":
			for i, cookie := range a.Header[name] {
				a.Header[name][i] = expires.ReplaceAllString(cookie, "Expires=a year ago") // by its clock, which may strike in between
			}
			slices.Sort(a.Header[name])
		}
	}
	delete(a.Trailer, "Server-Timing") // the figures of one answer
	if len(a.Trailer) == 0 {
		a.Trailer = nil
	}
	if bytes.Contains(raw, []byte("http://")) || bytes.Contains(raw, []byte(`"headers"`)) || resp.ProtoMajor == 2 { // has another length, or none
		a.Length = 0
		delete(a.Header, "Content-Length")
	}
	return a
}

func unpacked(t *testing.T, encoding string, packed []byte) []byte {
	t.Helper()
	var r io.Reader
	var err error
	switch encoding {
	case "gzip":
		r, err = gzip.NewReader(bytes.NewReader(packed))
	case "deflate":
		r, err = zlib.NewReader(bytes.NewReader(packed))
	default:
		return packed
	}
	if err != nil {
		t.Errorf("%s: %v", encoding, err)
		return packed
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("%s: %v", encoding, err)
	}
	return raw
}

var (
	stamps    = regexp.MustCompile(`"timestamp":\d+`)
	expires   = regexp.MustCompile(`Expires=[^;]*`)
	hosts     = regexp.MustCompile(`http://(127\.0\.0\.1|localhost):\d+`)
	forwarded = regexp.MustCompile(`^(Host|X-Forwarded-.*|Content-Length|Transfer-Encoding)$`)
)

// comparison is a body without what tells where it was asked for: hosts, the caller's address, forwarding headers.
func comparison(raw []byte) string {
	var lines []string
	for line := range bytes.Lines(raw) {
		var v any
		if json.Unmarshal(line, &v) == nil {
			lines = append(lines, neutral(v))
			continue
		}
		lines = nil
		break
	}
	if lines != nil {
		return strings.Join(lines, "\n")
	}
	var v any
	if json.Unmarshal(raw, &v) == nil {
		return neutral(v)
	}
	return stamps.ReplaceAllString(hosts.ReplaceAllString(string(raw), "http://host"), `"timestamp":0`)
}

func neutral(v any) string {
	if object, ok := v.(map[string]any); ok {
		delete(object, "origin")
		if headers, ok := object["headers"].(map[string]any); ok {
			for name := range headers {
				if forwarded.MatchString(name) {
					delete(headers, name)
				}
			}
		}
	}
	out, _ := json.Marshal(v) // of JSON
	return hosts.ReplaceAllString(string(out), "http://host")
}
