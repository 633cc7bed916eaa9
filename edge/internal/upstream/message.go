package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// ErrHeader says that an answer's head is none that is passed on.
var ErrHeader = errors.New("no acceptable answer head")

// Head of a request, as it is written.
type Head struct {
	Method string
	// Target is path and query, and goes out byte for byte, but for bytes that would end it: they are percent-encoded.
	Target string
	Host   string
	// Length of the body in bytes; 0: there is none; -1: unknown, it is sent in chunks.
	Length int64
	// Upgrade is the protocol the connection is to be switched to; empty: none.
	Upgrade string
}

// heads keeps the buffers requests are put together in.
var heads = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// maxKeptHead is the largest buffer that is kept, in bytes.
const maxKeptHead = 64 << 10

// Send writes the head of a request, in one piece. fields appends the fields, with AppendField. Host and the framing are not its to
// give. sent: at least one byte was written.
func (c *Conn) Send(h Head, fields func([]byte) []byte) (sent bool, err error) {
	buffer := heads.Get().(*[]byte)
	b := appendHead((*buffer)[:0], h)
	b = fields(b)
	b = append(b, "\r\n"...)
	c.upgrade = h.Upgrade
	n, err := c.Conn.Write(b)
	if cap(b) <= maxKeptHead {
		*buffer = b
		heads.Put(buffer)
	}
	c.used = true
	if err != nil {
		return n > 0, fmt.Errorf("sending the request: %w", err)
	}
	return true, nil
}

func appendHead(b []byte, h Head) []byte {
	b = append(b, h.Method...)
	b = append(b, ' ')
	b = appendTarget(b, h.Target)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, h.Host...)
	b = append(b, "\r\n"...)
	if h.Upgrade != "" {
		b = AppendField(append(b, "Connection: Upgrade\r\n"...), "Upgrade", h.Upgrade)
	}
	switch {
	case h.Length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case h.Length > 0 || h.Method == http.MethodPost || h.Method == http.MethodPut || h.Method == http.MethodPatch:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, h.Length, 10)
		b = append(b, "\r\n"...)
	}
	return b
}

// appendTarget writes what a request line can carry: over HTTP/2 a path comes with no line around it that its bytes could end.
func appendTarget(b []byte, target string) []byte {
	if target == "" || target[0] != '/' {
		b = append(b, '/')
	}
	const digits = "0123456789ABCDEF"
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f {
			b = append(b, '%', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// AppendField writes one header field. A value's line ends become spaces.
func AppendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	from := len(b)
	b = append(b, value...)
	for i := from; i < len(b); i++ {
		if b[i] == '\r' || b[i] == '\n' {
			b[i] = ' '
		}
	}
	return append(b, "\r\n"...)
}

// chunkRoom is before and behind a piece, for its size and line ends: eight digits are 4 GiB.
const (
	chunkBefore = 10
	chunkBehind = 2
)

// SendBody writes the body as the head has announced it, until its end, with the buffer. readErr is what reading it failed with,
// writeErr what writing did.
func (c *Conn) SendBody(body io.Reader, length int64, buffer []byte) (readErr, writeErr error) {
	if length >= 0 {
		return c.sendPlain(body, length, buffer)
	}
	room := buffer[chunkBefore : len(buffer)-chunkBehind]
	for {
		n, err := body.Read(room)
		if n > 0 {
			if _, err := c.Conn.Write(chunk(buffer, n)); err != nil {
				return nil, fmt.Errorf("sending the body: %w", err)
			}
		}
		switch {
		case err == io.EOF: //nolint:errorlint // a Reader gives EOF itself
			if _, err := io.WriteString(c.Conn, "0\r\n\r\n"); err != nil {
				return nil, fmt.Errorf("ending the body: %w", err)
			}
			return nil, nil
		case err != nil:
			return err, nil
		}
	}
}

// chunk frames the n bytes that are in the buffer behind chunkBefore, in place.
func chunk(buffer []byte, n int) []byte {
	var digits [chunkBefore]byte
	size := append(strconv.AppendInt(digits[:0], int64(n), 16), "\r\n"...)
	from, end := chunkBefore-len(size), chunkBefore+n
	copy(buffer[from:], size)
	copy(buffer[end:], "\r\n")
	return buffer[from : end+chunkBehind]
}

func (c *Conn) sendPlain(body io.Reader, length int64, buffer []byte) (readErr, writeErr error) {
	for sent := int64(0); ; {
		n, err := body.Read(buffer)
		if sent += int64(n); sent > length {
			return fmt.Errorf("the body is longer than the %d bytes that were announced", length), nil
		}
		if n > 0 {
			if _, err := c.Conn.Write(buffer[:n]); err != nil {
				return nil, fmt.Errorf("sending the body: %w", err)
			}
		}
		switch {
		case err == io.EOF && sent < length: //nolint:errorlint // a Reader gives EOF itself
			return io.ErrUnexpectedEOF, nil
		case err == io.EOF: //nolint:errorlint // as above
			return nil, nil
		case err != nil:
			return err, nil
		}
	}
}

// toHead is what http.ReadResponse wants to know of a request: whether its answer has a body.
var toHead = &http.Request{Method: http.MethodHead}

// Answer reads the head of the answer to a request of the method; one of status 101 is the last on the connection: see Detach.
// informed is called with each 1xx answer before it. The body is read
// from the connection: it is over when Body says EOF.
func (c *Conn) Answer(method string, informed func(*http.Response)) (*http.Response, error) {
	var request *http.Request
	if method == http.MethodHead {
		request = toHead
	}
	c.left, c.limited, c.broke = c.maxHeader, true, nil
	defer func() { c.limited = false }()
	if request == nil {
		if _, err := c.r.Peek(1); err == io.EOF { //nolint:errorlint // a Reader gives EOF itself
			return nil, fmt.Errorf("reading the answer: %w", io.ErrUnexpectedEOF)
		} else if err != nil {
			return nil, fmt.Errorf("reading the answer: %w", err)
		}
		if resp := readSized(c.r); resp != nil {
			return resp, nil
		}
	}
	for {
		resp, err := http.ReadResponse(c.r, request)
		switch {
		case err != nil && c.broke != nil && c.broke != io.EOF: //nolint:errorlint // a Reader gives EOF itself
			// What had come by then may look like a malformed head.
			return nil, fmt.Errorf("reading the answer: %w", c.broke)
		case err != nil:
			return nil, fmt.Errorf("reading the answer: %w", err)
		case resp.StatusCode == http.StatusSwitchingProtocols && c.upgrade == "":
			return nil, fmt.Errorf("reading the answer: 101 to a request that asked for no upgrade: %w", ErrHeader)
		case resp.StatusCode == http.StatusSwitchingProtocols && !strings.EqualFold(resp.Header.Get("Upgrade"), c.upgrade):
			return nil, fmt.Errorf("reading the answer: a switch to %q where %q was asked for: %w", resp.Header.Get("Upgrade"), c.upgrade, ErrHeader)
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return resp, nil
		case resp.StatusCode < 100 || resp.StatusCode > 999:
			return nil, fmt.Errorf("reading the answer: status %d: %w", resp.StatusCode, ErrHeader)
		case resp.StatusCode < 200:
			informed(resp)
		default:
			return resp, nil
		}
	}
}

// Silent says that not a byte of an answer has come to the request that Answer was last called for.
func (c *Conn) Silent() bool { return c.left == c.maxHeader }

// Detach takes the connection away from requests and answers, after a 101. early has come behind the answer already.
func (c *Conn) Detach() (raw net.Conn, early []byte) {
	early, _ = c.r.Peek(c.r.Buffered()) // of what is there: cannot fail
	early = bytes.Clone(early)
	c.r = nil // its buffer is as large as all the rest of a silent connection
	return c.Conn, early
}

// Reusable says whether the connection can take another request, now that the answer was read to its end.
func (c *Conn) Reusable(resp *http.Response) bool { return !resp.Close && c.r.Buffered() == 0 }
