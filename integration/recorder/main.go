// Command recorder is the function of the integration tests: an HTTP server that appends every request to a file before it
// answers, so that a test can count calls across deaths of anything.
//
//	RECORD  file that gets one JSON line per request, at its start and at its end
//	START_DELAY_MS  wait before listening
//	?ms=  how long a request takes   ?status=  its answer   ?stream=n  n chunks, one each ms   ?die=1  it kills the process
package main

import (
	"context"
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

// Line is one record. Phase is "listen", "start" or "end" (Aborted: the caller went away first).
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
	file    *os.File // guarded by mu
	seq     int      // guarded by mu
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

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/health" {
		w.WriteHeader(http.StatusOK)
		return
	}
	body, err := io.ReadAll(req.Body)
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

func main() {
	file, err := os.OpenFile(os.Getenv("RECORD"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	r := &recorder{file: file, replica: os.Getenv("SLIMFAAS_REPLICA_INDEX")}
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
	r.write(Line{Phase: "listen"})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-done
}
