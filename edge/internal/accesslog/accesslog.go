// Package accesslog writes a structured line a request, as an option. Its cost is bounded: of more requests than so many a second
// only the number is written.
package accesslog

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const (
	// longest path and user agent in a line, in bytes.
	longest = 256
)

// Entry is what is known of a request that has been answered.
type Entry struct {
	Began    time.Time
	Method   string
	Path     string // as sent, without its query, which often carries secrets
	Function string // empty: none of the table
	Caller   string // address, behind trusted proxies
	Agent    string
	Trace    string // the trace id of a traceparent; empty: none
	Status   int    // 0: the connection was cut, or taken over by an upgrade
	Bytes    int64  // of the answer's body
	Aborted  bool   // the answer broke off
}

// Log writes entries. Safe for concurrent use.
type Log struct {
	out       *slog.Logger
	perSecond int
	now       func() time.Time

	mu      sync.Mutex // guards all below
	second  int64      // unix
	written int        // in it
	left    int        // not written, since the last line that said so
}

// New returns a log of at most so many lines a second.
func New(out *slog.Logger, perSecond int) *Log {
	return &Log{out: out, perSecond: perSecond, now: time.Now}
}

// Write writes the entry, or counts it.
func (l *Log) Write(e Entry) {
	now := l.now()
	left, ok := l.turn(now)
	if left > 0 {
		l.out.Warn("access log: requests without a line", "requests", left, "limit", l.perSecond)
	}
	if !ok {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", cut(e.Method)), slog.String("path", cut(e.Path)), slog.Int("status", e.Status), slog.Int64("bytes", e.Bytes),
		slog.Float64("ms", float64(now.Sub(e.Began).Microseconds())/1000), slog.String("caller", e.Caller),
	}
	if e.Function != "" {
		attrs = append(attrs, slog.String("fn", e.Function))
	}
	if e.Agent != "" {
		attrs = append(attrs, slog.String("agent", cut(e.Agent)))
	}
	if e.Trace != "" {
		attrs = append(attrs, slog.String("trace", e.Trace))
	}
	if e.Aborted {
		attrs = append(attrs, slog.Bool("aborted", true))
	}
	l.out.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}

// turn says whether a line may be written, and how many were left out in the seconds before.
func (l *Log) turn(now time.Time) (left int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := now.Unix(); s != l.second {
		left, l.left = l.left, 0
		l.second, l.written = s, 0
	}
	if l.written >= l.perSecond {
		l.left++
		return left, false
	}
	l.written++
	return left, true
}

func cut(s string) string {
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}

// TraceID of a traceparent header (W3C trace context, version 00 and what is like it); empty: it is none.
func TraceID(traceparent string) string {
	const from, to = len("00-"), len("00-") + 32
	if len(traceparent) < to+1 || traceparent[2] != '-' || traceparent[to] != '-' {
		return ""
	}
	id := traceparent[from:to]
	for i := range len(id) {
		if c := id[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return ""
		}
	}
	return id
}

// Writer notes what is answered.
type Writer struct {
	http.ResponseWriter
	Status int // 0: nothing yet
	Bytes  int64
}

// WriteHeader implements http.ResponseWriter.
func (w *Writer) WriteHeader(status int) {
	if w.Status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.Status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *Writer) Write(p []byte) (int, error) {
	if w.Status == 0 {
		w.Status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.Bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
