package upstream

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/textproto"
	"strings"
)

// sized is an answer that is framed by a length alone, with its body.
type sized struct {
	http.Response
	body sizedBody
}

// readSized reads the head of an answer of the one form that nearly all answers have: HTTP/1.1, a final status that has a body, one
// Content-Length, no field that changes the framing or the connection, and nothing in it that two readers could take for two things. nil:
// it is not there in one piece, or anything about it is otherwise; then nothing was taken, and http.ReadResponse has to say what it is.
// It never reads from the connection.
func readSized(r *bufio.Reader) *http.Response {
	there, _ := r.Peek(r.Buffered()) // of what is there: cannot fail
	end := bytes.Index(there, []byte("\r\n\r\n"))
	if end < 0 {
		return nil
	}
	a, ok := parseSized(string(there[:end+2]))
	if !ok {
		return nil
	}
	_, _ = r.Discard(end + 4) // as above
	if a.ContentLength == 0 {
		a.Body = http.NoBody
	} else {
		a.body = sizedBody{r: r, left: a.ContentLength}
		a.Body = &a.body
	}
	return &a.Response
}

// parseSized takes a head with all its line ends but the empty line.
func parseSized(head string) (*sized, bool) {
	line, rest, _ := strings.Cut(head, "\r\n")
	status, reason, ok := statusOf(line)
	if !ok {
		return nil, false
	}
	n := strings.Count(rest, "\n")
	a := &sized{Response: http.Response{
		Status: reason, StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1, Header: make(http.Header, n),
	}}
	values := make([]string, n)
	for i := 0; rest != ""; i++ {
		if line, rest, ok = strings.Cut(rest, "\r\n"); !ok {
			return nil, false
		}
		name, value, ok := fieldOf(line)
		if !ok {
			return nil, false
		}
		switch name {
		case "Content-Length":
			if a.ContentLength >= 0 {
				return nil, false // a second one
			}
			if a.ContentLength = lengthOf(value); a.ContentLength < 0 {
				return nil, false
			}
		case "Transfer-Encoding", "Connection", "Trailer", "Upgrade", "Pragma": // the last is rewritten by http.ReadResponse
			return nil, false
		}
		if before := a.Header[name]; before != nil {
			a.Header[name] = append(before, value)
			continue
		}
		values[i] = value
		a.Header[name] = values[i : i+1 : i+1]
	}
	return a, a.ContentLength >= 0
}

// statusOf a line like `HTTP/1.1 200 OK`; reason is `200 OK`.
func statusOf(line string) (status int, reason string, ok bool) {
	const version = "HTTP/1.1 "
	if len(line) < len(version)+3 || line[:len(version)] != version || !printable(line) {
		return 0, "", false
	}
	reason = line[len(version):]
	for _, c := range []byte(reason[:3]) {
		if c < '0' || c > '9' {
			return 0, "", false
		}
		status = 10*status + int(c-'0')
	}
	if len(reason) > 3 && reason[3] != ' ' || status < 200 || status > 599 || status == http.StatusNoContent || status == http.StatusNotModified {
		return 0, "", false
	}
	return status, reason, true
}

// fieldOf a line like `Name: value`: a name of letters, digits and hyphens in its canonical form, a value of visible characters, spaces
// and tabs.
func fieldOf(line string) (name, value string, ok bool) {
	colon := strings.IndexByte(line, ':')
	if colon <= 0 {
		return "", "", false
	}
	name, value = line[:colon], strings.Trim(line[colon+1:], " \t")
	canonical, upper := true, true
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z':
			canonical = canonical && !upper
		case 'A' <= c && c <= 'Z':
			canonical = canonical && upper
		case '0' <= c && c <= '9', c == '-':
		default:
			return "", "", false
		}
		upper = c == '-'
	}
	if !canonical {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return name, value, printable(value)
}

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' && c != '\t' || c > '~' {
			return false
		}
	}
	return true
}

// lengthOf a body, by decimal digits alone; -1: it is none, or none that is sure to be read alike by everybody.
func lengthOf(digits string) (length int64) {
	const most = 15
	if digits == "" || len(digits) > most {
		return -1
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return -1
		}
		length = 10*length + int64(c-'0')
	}
	return length
}

// sizedBody is a body that so many bytes are left of.
type sizedBody struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *sizedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, io.EOF
	case err == io.EOF: //nolint:errorlint // a Reader gives EOF itself
		return n, io.ErrUnexpectedEOF
	default:
		return n, err //nolint:wrapcheck // it is the connection's
	}
}

// Close implements io.Closer: whoever does not read it to its end closes the connection.
func (b *sizedBody) Close() error { return nil }
