// Package api serves what shared/wire/local.go says on a unix socket: watch, scale, wake, status.
package api

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/fleet"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Limits of one request and of a watch.
const (
	maxBody    = 64 << 10
	readWithin = 5 * time.Second
	sendWithin = 5 * time.Second // one event to one watcher
	pingEvery  = 2 * time.Second
)

// Options of a Server. All are required.
type Options struct {
	Fleet *fleet.Fleet
	Token string
	Name  string
	URL   string
	Log   *slog.Logger
}

// Server is the API.
type Server struct {
	o    Options
	http *http.Server
}

// New makes a server.
func New(o Options) *Server {
	s := &Server{o: o}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.LocalPathWatch, s.watch)
	mux.HandleFunc("POST "+wire.LocalPathScale, change(s, o.Fleet.Scale))
	mux.HandleFunc("POST "+wire.LocalPathWake, change(s, o.Fleet.Wake))
	mux.HandleFunc("GET "+wire.LocalPathStatus, s.status)
	s.http = &http.Server{
		Handler: s.authorized(mux), ReadHeaderTimeout: readWithin, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Run serves until ctx ends; then watches are cut.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() }) // its listener may be closed already
	defer stop()
	if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the supervisor's API: %w", err)
	}
	return nil
}

func (s *Server) authorized(next http.Handler) http.Handler {
	want := []byte("Bearer " + s.o.Token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			answer(w, http.StatusUnauthorized, wire.LocalScaled{Error: "the token is missing or wrong"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// change decodes a request, applies it and answers with the state there is now.
func change[T any](s *Server, apply func(T) (wire.LocalScaled, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var request T
		// Not the server's ReadTimeout: that would end watches too.
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(readWithin)); err != nil {
			s.o.Log.Error("a read deadline cannot be set", "err", err)
		}
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&request); err != nil {
			answer(w, http.StatusBadRequest, wire.LocalScaled{Error: "the body is not what it must be: " + err.Error()})
			return
		}
		scaled, err := apply(request)
		if err != nil {
			scaled.Error = err.Error()
			s.o.Log.Debug("a request was refused", "path", r.URL.Path, "err", err)
		}
		answer(w, code(err), scaled)
	}
}

// code is the status of a refusal.
func code(err error) int {
	switch {
	case err == nil:
		return http.StatusOK
	case errors.Is(err, fleet.ErrUnknown):
		return http.StatusNotFound
	case errors.Is(err, fleet.ErrEpoch):
		return http.StatusPreconditionFailed
	case errors.Is(err, fleet.ErrConflict):
		return http.StatusConflict
	case errors.Is(err, fleet.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, fleet.ErrStopping):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	parts, workloads := s.o.Fleet.Status()
	answer(w, http.StatusOK, wire.LocalStatus{Name: s.o.Name, URL: s.o.URL, Parts: parts, Workloads: workloads})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a caller that has gone needs no answer
}

// watch sends the state and then every change, one line each, until the caller goes, falls behind, or the server ends.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	send := func(lines ...[]byte) error {
		if err := control.SetWriteDeadline(time.Now().Add(sendWithin)); err != nil {
			return fmt.Errorf("setting the deadline: %w", err)
		}
		if _, err := io.Copy(w, bytes.NewReader(bytes.Join(lines, nil))); err != nil {
			return fmt.Errorf("writing to a watcher: %w", err)
		}
		return control.Flush()
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	watcher := s.o.Fleet.Watch()
	defer s.o.Fleet.Unwatch(watcher)
	if send(watcher.First...) != nil {
		return
	}
	watcher.First = nil
	ping := time.NewTimer(pingEvery)
	defer ping.Stop()
	for {
		var line []byte
		select {
		case <-r.Context().Done():
			return
		case next, open := <-watcher.Next:
			if !open {
				return
			}
			line = next
		case <-ping.C:
			line = s.o.Fleet.Ping()
		}
		if send(line) != nil {
			return
		}
		ping.Reset(pingEvery)
	}
}
