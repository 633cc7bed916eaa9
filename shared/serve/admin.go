package serve

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"
)

// Admin is what the admin listener of every program answers. Nil functions are always well.
type Admin struct {
	Health  func() error // nil error: the process does its work; else it wants a restart
	Ready   func() error // nil error: send work here
	Metrics http.Handler // nil: 404
	Profile bool         // serve /debug/pprof/
}

// Handler serves /health, /ready, /metrics and, when asked for, /debug/pprof/.
func (a Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", state(a.Health, "OK", "NOT_OK"))
	mux.HandleFunc("GET /ready", state(a.Ready, "READY", "NOT_READY"))
	if a.Metrics != nil {
		mux.Handle("GET /metrics", a.Metrics)
	}
	if a.Profile {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// state answers the word of the state, and on a second line why it is not well.
func state(check func() error, well, unwell string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if check != nil {
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprintf(w, "%s\n%v\n", unwell, err)
				return
			}
		}
		fmt.Fprint(w, well)
	}
}

// healthTimeout of CheckReady: less than the second that orchestrators give a probe by default.
const healthTimeout = 900 * time.Millisecond

// CheckReady asks the /ready of a program on this machine, whose admin listener is at addr (as configured: an empty or
// unspecified host means loopback). It is the `health` sub-command of every program. The error carries the program's reason.
func CheckReady(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("reading the admin address %q: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/ready", nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", addr, err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // no proxy from the environment
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("asking %s: %w", addr, err)
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("asking %s: %s", addr, strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", ": "))
	}
	return nil
}
