// Command demo-function is the HTTP server behind the demo manifest and the tests: small, quick to start, and able to behave
// badly when asked.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// drain is how long running requests may take to end after SIGTERM.
const drain = 30 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo-function:", err)
		os.Exit(1)
	}
}

func run() error {
	began := time.Now()
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	host := "" // a container listens on all interfaces
	// Under bin/local nobody but this machine shall reach it past the edge. Beside a Service called slimfaas Kubernetes sets the same
	// variable in every pod, to tcp://address:port.
	if _, err := strconv.Atoi(os.Getenv("SLIMFAAS_PORT")); err == nil {
		host = "127.0.0.1"
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := wait(ctx, milliseconds(os.Getenv("START_DELAY_MS"))); err != nil {
		return nil // told to end before it began
	}
	d := newDemo(ctx, os.Getenv("SLIMFAAS_URL"), os.Getenv("SLIMFAAS_FUNCTION"), os.Getenv("SLIMFAAS_REPLICA_INDEX"))
	server := &http.Server{Handler: d.routes(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	fmt.Printf("listening on %s, pid %d, %d ms after main began\n", listener.Addr(), os.Getpid(), time.Since(began).Milliseconds())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	fmt.Println("told to end: finishing what runs")
	stop() // a second signal ends at once
	grace, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		return fmt.Errorf("finishing requests: %w", err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	d.callbacks.Wait()
	return nil
}

// milliseconds of a text; 0 when it is none.
func milliseconds(text string) time.Duration {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
