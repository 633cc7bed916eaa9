package accesslog

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestALineSaysWhatHappenedAndNoQuery(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := New(slog.New(slog.NewJSONHandler(&out, nil)), 10)
	began := time.Unix(100, 0)
	l.now = func() time.Time { return began.Add(1500 * time.Microsecond) }
	l.Write(Entry{
		Began: began, Method: "GET", Path: "/function/f/" + strings.Repeat("a", 300), Function: "f", Caller: "192.0.2.1", Agent: "curl",
		Trace: "t", Status: 200, Bytes: 5, Aborted: true,
	})
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"msg": "request", "method": "GET", "status": 200.0, "bytes": 5.0, "ms": 1.5, "caller": "192.0.2.1", "fn": "f", "agent": "curl", "trace": "t", "aborted": true,
	} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	if path := line["path"].(string); len(path) > longest+3 {
		t.Errorf("the path has %d bytes", len(path))
	}
}

func TestMoreThanSoManyLinesASecondAreCounted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := New(slog.New(slog.NewTextHandler(&out, nil)), 2)
	now := time.Unix(100, 0)
	l.now = func() time.Time { return now }
	for range 5 {
		l.Write(Entry{})
	}
	if n := strings.Count(out.String(), "msg=request"); n != 2 {
		t.Errorf("%d lines", n)
	}
	now = now.Add(time.Second)
	l.Write(Entry{})
	if s := out.String(); strings.Count(s, "msg=request") != 3 || !strings.Contains(s, "requests=3") {
		t.Error(s)
	}
}

func TestTraceIDs(t *testing.T) {
	t.Parallel()
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for header, want := range map[string]string{
		"00-" + id + "-00f067aa0ba902b7-01":                  id,
		"cc-" + id + "-00f067aa0ba902b7-01-what-comes-later": id,
		"":                           "",
		"00-" + id:                   "",
		"00-" + id[:31] + "-1234567": "",
		"00-" + strings.ToUpper(id) + "-00f067aa0ba902b7-01": "",
	} {
		if got := TraceID(header); got != want {
			t.Errorf("%q: %q", header, got)
		}
	}
}

func TestTheWriterNotesTheAnswerNotWhatCameBefore(t *testing.T) {
	t.Parallel()
	early := &Writer{ResponseWriter: httptest.NewRecorder()}
	if early.WriteHeader(103); early.Status != 0 {
		t.Error("103 is taken for the answer")
	}
	inner := httptest.NewRecorder()
	w := &Writer{ResponseWriter: inner}
	w.WriteHeader(201)
	_, _ = w.Write([]byte("hello"))
	if w.Status != 201 || w.Bytes != 5 || w.Unwrap() != inner {
		t.Errorf("%+v", w)
	}
	if w := (&Writer{ResponseWriter: httptest.NewRecorder()}); func() int { _, _ = w.Write(nil); return w.Status }() != 200 {
		t.Error("a body without a status is no 200")
	}
}
