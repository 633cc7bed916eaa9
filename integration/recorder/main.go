// Command recorder is the function of the integration tests: an HTTP server that appends every request to a file before it
// answers, so that a test can count calls across deaths of anything.
//
//	RECORD  file that gets one JSON line per request, at its start and at its end
//	START_DELAY_MS  wait before listening
//	?hash=1  the body is read as it comes, and its SHA-256 and length are recorded in its place; a "body" line says that it begins
//	?every=  with hash: wait so many ms before each MiB
//	?ms=  how long a request takes   ?status=  its answer   ?stream=n  n chunks, one each ms   ?die=1  it kills the process
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Line is one record. Phase is "listen" (URI: where), "body", "start" or "end" (Aborted: the caller went away first).
type Line struct {
	Phase   string
	AtMs    int64
	Replica string
	PID     int
	Method  string      `json:",omitempty"`
	URI     string      `json:",omitempty"`
	Header  http.Header `json:",omitempty"`
	Remote  string      `json:",omitempty"`
	Body    string      `json:",omitempty"`
	Seq     int         `json:",omitempty"`
	Aborted bool        `json:",omitempty"`
}

type recorder struct {
	mu      sync.Mutex
	file    *os.File        // guarded by mu
	seq     int             // guarded by mu
	seen    map[string]bool // guarded by mu; keys of requests that said `first`
	replica string
}

func (r *recorder) write(l Line) {
	l.AtMs, l.PID, l.Replica = time.Now().UnixMilli(), os.Getpid(), r.replica
	raw, err := json.Marshal(l)
	if err != nil {
		log.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.file.Write(append(raw, '\n')); err != nil {
		log.Fatal(err)
	}
}

func (r *recorder) next() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	return r.seq
}

func (r *recorder) first(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.seen[key]
	r.seen[key] = true
	return !known
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/health" {
		w.WriteHeader(http.StatusOK)
		return
	}
	body, err := r.body(req)
	l := Line{Phase: "start", Method: req.Method, URI: req.RequestURI, Header: req.Header, Remote: req.RemoteAddr, Body: string(body), Seq: r.next()}
	r.write(l)
	end := Line{Phase: "end", Seq: l.Seq, URI: req.RequestURI, Aborted: err != nil}
	defer func() { r.write(end) }()
	q := req.URL.Query()
	ms, _ := strconv.Atoi(q.Get("ms"))
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
	case <-req.Context().Done():
		end.Aborted = true
		return
	}
	if q.Get("die") != "" {
		os.Exit(3) // as a poison message does: no answer, no end in the record
	}
	status := http.StatusOK
	if s, err := strconv.Atoi(q.Get("status")); err == nil {
		status = s
	}
	if s, err := strconv.Atoi(q.Get("first")); err == nil && r.first(q.Get("key")) { // the first time only
		status = s
		if after := q.Get("after"); after != "" {
			w.Header().Set("Retry-After", after)
		}
	}
	if n, err := strconv.Atoi(q.Get("bytes")); err == nil {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.WriteHeader(status)
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, n))
		return
	}
	if n, err := strconv.Atoi(q.Get("stream")); err == nil {
		every, _ := strconv.Atoi(q.Get("every"))
		flusher := http.NewResponseController(w)
		for i := range n {
			if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil || flusher.Flush() != nil {
				end.Aborted = true
				return
			}
			select {
			case <-time.After(time.Duration(max(every, 1)) * time.Millisecond):
			case <-req.Context().Done():
				end.Aborted = true
				return
			}
		}
		return
	}
	w.Header().Set("X-Replica", r.replica)
	w.WriteHeader(status)
	fmt.Fprintf(w, "%s %d\n", r.replica, l.Seq)
}

// body as it is recorded.
func (r *recorder) body(req *http.Request) ([]byte, error) {
	q := req.URL.Query()
	if q.Get("hash") == "" {
		return io.ReadAll(req.Body)
	}
	r.write(Line{Phase: "body", URI: req.RequestURI, Header: req.Header})
	every, _ := strconv.Atoi(q.Get("every"))
	sum, size := sha256.New(), int64(0)
	for {
		select {
		case <-time.After(time.Duration(every) * time.Millisecond):
		case <-req.Context().Done():
		}
		n, err := io.CopyN(sum, req.Body, 1<<20)
		size += n
		if errors.Is(err, io.EOF) {
			return fmt.Appendf(nil, "%x %d", sum.Sum(nil), size), nil
		}
		if err != nil {
			return fmt.Appendf(nil, "broken off after %d", size), err
		}
	}
}

func main() {
	file, err := os.OpenFile(os.Getenv("RECORD"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	r := &recorder{seen: map[string]bool{}, file: file, replica: os.Getenv("SLIMFAAS_REPLICA_INDEX")}
	if ms, err := strconv.Atoi(os.Getenv("START_DELAY_MS")); err == nil {
		time.Sleep(time.Duration(ms) * time.Millisecond)
	}
	server := &http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), Handler: r, ReadHeaderTimeout: 5 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		defer cancel()
		_ = server.Shutdown(drain)
	}()
	listener, err := net.Listen("tcp", server.Addr)
	if err != nil {
		log.Fatal(err)
	}
	r.write(Line{Phase: "listen", URI: "http://" + server.Addr})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-done
}
