package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// answers are heads and what follows them; sized: readSized takes them.
var answers = []struct {
	name, wire string
	sized      bool
}{
	{"length", "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1", true},
	{"no body", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", true},
	{"no reason", "HTTP/1.1 599\r\nContent-Length: 1\r\n\r\nx", true},
	{"an empty reason", "HTTP/1.1 201 \r\nContent-Length: 1\r\n\r\nx", true},
	{"names in any case", "HTTP/1.1 200 OK\r\ncontent-LENGTH: 1\r\nx-a: 1\r\nX-A: 2\r\n1-x:3\r\nSet-Cookie: a\r\nset-cookie:\t b \t\r\n\r\nx", true},
	{"an empty value", "HTTP/1.1 200 OK\r\nX-A:\r\nX-B: \r\nContent-Length: 1\r\n\r\nx", true},
	{"cut short", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", true},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello", false},
	{"two lengths in a line", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", false},
	{"a signed length", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", false},
	{"a large length", "HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999\r\n\r\nhello", false},
	{"an empty length", "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", false},
	{"no length", "HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nhello", false},
	{"no fields", "HTTP/1.1 200 OK\r\n\r\nhello", false},
	{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", false},
	{"chunks and a length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", false},
	{"close", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", false},
	{"trailers", "HTTP/1.1 200 OK\r\nTrailer: X-A\r\nContent-Length: 1\r\n\r\nx", false},
	{"pragma", "HTTP/1.1 200 OK\r\nPragma: no-cache\r\nContent-Length: 1\r\n\r\nx", false},
	{"before the answer", "HTTP/1.1 103 Early Hints\r\nContent-Length: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", false},
	{"never a body", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false},
	{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", false},
	{"a folded value", "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 1\r\n\r\nx", false},
	{"a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\nx", false},
	{"no name", "HTTP/1.1 200 OK\r\n: 1\r\nContent-Length: 1\r\n\r\nx", false},
	{"a bare line feed", "HTTP/1.1 200 OK\r\nX-A: 1\nContent-Length: 1\r\n\r\nx", false},
	{"a bare carriage return", "HTTP/1.1 200 OK\r\nX-A: 1\rContent-Length: 1\r\n\r\nx", false},
	{"a zero byte", "HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 1\r\n\r\nx", false},
	{"Latin-1", "HTTP/1.1 200 OK\r\nX-A: \xe9\r\nContent-Length: 1\r\n\r\nx", false},
	{"a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 1\r\n\r\nx", false},
	{"an unfinished head", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n", false},
}

func TestAnAnswerFramedByALengthAloneIsReadWithoutTheLibrary(t *testing.T) {
	t.Parallel()
	for _, a := range answers {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			if taken := sameAsTheLibrary(t, []byte(a.wire)); taken != a.sized {
				t.Errorf("taken %v, want %v", taken, a.sized)
			}
		})
	}
}

// FuzzSized: whatever comes, readSized takes nothing, or the same as http.ReadResponse.
func FuzzSized(f *testing.F) {
	for _, a := range answers {
		f.Add([]byte(a.wire))
	}
	f.Fuzz(func(t *testing.T, wire []byte) { sameAsTheLibrary(t, wire) })
}

// sameAsTheLibrary says whether readSized takes the answer, and fails the test where it does and the library reads something else.
func sameAsTheLibrary(t *testing.T, wire []byte) (taken bool) {
	t.Helper()
	read := func(wire []byte) *bufio.Reader {
		r := bufio.NewReaderSize(bytes.NewReader(wire), readBuffer)
		_, _ = r.Peek(1)
		return r
	}
	r := read(wire)
	before := r.Buffered()
	ours := readSized(r)
	if ours == nil {
		if r.Buffered() != before {
			t.Fatalf("%d bytes are gone and nothing was read", before-r.Buffered())
		}
		return false
	}
	library := read(wire)
	theirs, err := http.ReadResponse(library, nil)
	if err != nil {
		t.Fatalf("%q is taken, and the library says %v", wire, err)
	}
	if ours.StatusCode != theirs.StatusCode || strings.TrimLeft(ours.Status, " ") != theirs.Status || ours.Proto != theirs.Proto ||
		ours.ContentLength != theirs.ContentLength || ours.Close != theirs.Close || len(theirs.TransferEncoding)+len(theirs.Trailer) > 0 {
		t.Errorf("%q is read as\n%+v, by the library as\n%+v", wire, ours, theirs)
	}
	if !maps.EqualFunc(ours.Header, theirs.Header, slices.Equal) {
		t.Errorf("%q: fields\n%q, by the library\n%q", wire, ours.Header, theirs.Header)
	}
	if (ours.Body == http.NoBody) != (theirs.Body == http.NoBody) {
		t.Errorf("%q: a body %v, by the library %v", wire, ours.Body, theirs.Body)
	}
	body, oursErr := io.ReadAll(ours.Body)
	theirBody, theirsErr := io.ReadAll(theirs.Body)
	if !bytes.Equal(body, theirBody) || !errors.Is(oursErr, theirsErr) {
		t.Errorf("%q: body %q (%v), by the library %q (%v)", wire, body, oursErr, theirBody, theirsErr)
	}
	behind, _ := io.ReadAll(r)
	theirsBehind, _ := io.ReadAll(library)
	if !bytes.Equal(behind, theirsBehind) {
		t.Errorf("%q: behind it %q, by the library %q", wire, behind, theirsBehind)
	}
	return true
}
