// Command reader is the function of the benchmarks: it reads a request whose body begins with the time it was sent at
// (nanoseconds, big endian) and keeps how long that took.
//
//	POST /        a call
//	GET  /stats   {"Reads":[{"AtNs":…,"TookNs":…}]} since the last such request
//
// TAKES is how long a call takes after that; with READY_FILE it is not ready before that file is there.
package main

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Read is one request that was read.
type Read struct{ AtNs, TookNs int64 }

type reader struct {
	takes     time.Duration
	readyFile string
	mu        sync.Mutex
	reads     []Read // guarded by mu
}

func (r *reader) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method == http.MethodPost {
		body, err := io.ReadAll(req.Body)
		now := time.Now().UnixNano()
		if err != nil || len(body) < 8 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		sent := int64(binary.BigEndian.Uint64(body))
		r.mu.Lock()
		r.reads = append(r.reads, Read{now, now - sent})
		r.mu.Unlock()
		select {
		case <-time.After(r.takes):
		case <-req.Context().Done():
		}
		return
	}
	if req.URL.Path != "/stats" { // health
		if r.readyFile != "" {
			if _, err := os.Stat(r.readyFile); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}
		return
	}
	r.mu.Lock()
	reads := r.reads
	r.reads = nil
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(struct{ Reads []Read }{reads}); err != nil {
		log.Print(err)
	}
}

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	takes, err := time.ParseDuration(cmp.Or(os.Getenv("TAKES"), "0s"))
	if err != nil {
		log.Fatal("TAKES: ", err)
	}
	handler := &reader{takes: takes, readyFile: os.Getenv("READY_FILE")}
	s := &http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-signals
		_ = s.Close()
	}()
	if err := s.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}
