package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"
)

// Bounds: the demo is called by tests that mean harm.
const (
	maxBody      = 16 << 20
	maxFibonacci = 40 // a recursive one: about a second
	maxEvents    = 1000
	maxCallbacks = 256
	tickEvery    = 100 * time.Millisecond
)

// demo is the function.
type demo struct {
	ending   context.Context // ends when the program is told to: streams stop then
	slimfaas string
	function string
	replica  string

	callbacks sync.WaitGroup
	waiting   chan struct{} // one token per callback under way

	mu     sync.Mutex // guards what follows
	events []event
	total  int
}

// event is one POST to /events.
type event struct {
	At      time.Time
	Path    string
	Headers http.Header
	Body    string
}

func newDemo(ending context.Context, slimfaas, function, replica string) *demo {
	return &demo{ending: ending, slimfaas: slimfaas, function: function, replica: replica, waiting: make(chan struct{}, maxCallbacks)}
}

func (d *demo) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "OK") })
	mux.HandleFunc("/hello/{name}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "Hello %s\n", r.PathValue("name")) })
	mux.HandleFunc("/fibonacci/{n}", d.fibonacci)
	mux.HandleFunc("/slow", d.slow)
	mux.HandleFunc("/status/{code}", d.status)
	mux.HandleFunc("/stream", d.stream)
	mux.HandleFunc("/callback-later", d.callbackLater)
	mux.HandleFunc("POST /shutdown", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Println("asked by the shutdown hook") // SIGTERM follows: nothing else to do
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /events", d.list)
	mux.HandleFunc("GET /events/{rest...}", d.list)
	mux.HandleFunc("/events", d.receive)
	mux.HandleFunc("/events/{rest...}", d.receive)
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Demo-Replica", d.replica)
		w.Header().Set("X-Demo-Pid", strconv.Itoa(os.Getpid()))
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		// Before the mux: it would redirect paths with `//` or dot segments, and an echo must show them.
		if p := r.URL.EscapedPath(); len(p) >= 5 && p[:5] == "/echo" {
			d.echo(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return answer
}

func (d *demo) fibonacci(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || n < 0 || n > maxFibonacci {
		http.Error(w, fmt.Sprintf("n must be 0–%d", maxFibonacci), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, fibonacci(n))
}

// fibonacci is slow on purpose: it is work.
func fibonacci(n int) int {
	if n < 2 {
		return n
	}
	return fibonacci(n-1) + fibonacci(n-2)
}

// slow answers after ?ms=, or not at all when the caller goes. It finishes also when the program is told to end. With
// ?early=1 the headers come at once.
func (d *demo) slow(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("early") != "" && http.NewResponseController(w).Flush() != nil {
		return
	}
	pause := milliseconds(r.URL.Query().Get("ms"))
	if wait(r.Context(), pause) != nil {
		return
	}
	fmt.Fprintf(w, "waited %d ms\n", pause.Milliseconds())
}

func (d *demo) status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "the code must be 200–599", http.StatusBadRequest)
		return
	}
	w.WriteHeader(code)
	if code != http.StatusNoContent && code != http.StatusNotModified {
		fmt.Fprintln(w, code)
	}
}

// stream sends a tick as server-sent event each ?ms= (default 100) until ?count= (default endless) or the caller goes.
func (d *demo) stream(w http.ResponseWriter, r *http.Request) {
	every := milliseconds(r.URL.Query().Get("ms"))
	if every == 0 {
		every = tickEvery
	}
	count, _ := strconv.Atoi(r.URL.Query().Get("count")) // 0: endless
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for tick := 1; ; tick++ {
		if _, err := fmt.Fprintf(w, "id: %d\nevent: tick\ndata: {\"tick\":%d}\n\n", tick, tick); err != nil || control.Flush() != nil {
			return
		}
		if tick == count {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-d.ending.Done():
			return
		case <-ticker.C:
		}
	}
}

// echo answers what arrived, byte for byte where it can.
func (d *demo) echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "the body cannot be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	respond(w, http.StatusOK, map[string]any{
		"Method": r.Method, "RequestURI": r.RequestURI, "Path": r.URL.EscapedPath(), "Query": r.URL.RawQuery, "Host": r.Host, "Proto": r.Proto,
		"RemoteAddr": r.RemoteAddr, "Headers": r.Header, "Body": string(body), "Replica": d.replica, "Pid": os.Getpid(),
	})
}

func (d *demo) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "the body cannot be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	if wait(r.Context(), milliseconds(r.URL.Query().Get("ms"))) != nil {
		return
	}
	d.mu.Lock()
	d.total++
	if len(d.events) == maxEvents {
		d.events = d.events[1:]
	}
	d.events = append(d.events, event{At: time.Now().UTC(), Path: r.URL.EscapedPath(), Headers: r.Header, Body: string(body)})
	d.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (d *demo) list(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	body := map[string]any{"Total": d.total, "Replica": d.replica, "Events": append([]event{}, d.events...)}
	d.mu.Unlock()
	respond(w, http.StatusOK, body)
}

// callbackLater answers 202 to an async call and, after ?ms=, tells SlimFaas how it ended (?result=error for a failure).
func (d *demo) callbackLater(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("SlimFaas-Element-Id")
	if id == "" || d.slimfaas == "" {
		http.Error(w, "this needs the SlimFaas-Element-Id header and SLIMFAAS_URL", http.StatusBadRequest)
		return
	}
	result := "success"
	if r.URL.Query().Get("result") == "error" {
		result = "error"
	}
	function := r.URL.Query().Get("function")
	if function == "" {
		function = d.function
	}
	select {
	case d.waiting <- struct{}{}:
	default:
		http.Error(w, "too many callbacks under way", http.StatusServiceUnavailable)
		return
	}
	pause := milliseconds(r.URL.Query().Get("ms"))
	target := d.slimfaas + "/async-function-callback/" + url.PathEscape(function) + "/" + url.PathEscape(id) + "/" + result
	d.callbacks.Go(func() {
		defer func() { <-d.waiting }()
		if wait(d.ending, pause) != nil {
			return // SlimFaas learns it from the missing callback
		}
		if err := call(d.ending, target); err != nil {
			fmt.Println("callback:", err)
		}
	})
	w.WriteHeader(http.StatusAccepted)
}

// callbacks go over connections of their own: nobody else closes those.
var callbacks = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second}}

func call(ctx context.Context, target string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, nil)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	res, err := callbacks.Do(req)
	if err != nil {
		return fmt.Errorf("calling back: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("calling back: answered %s", res.Status)
	}
	return nil
}

func respond(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a caller that has gone needs no answer
}
