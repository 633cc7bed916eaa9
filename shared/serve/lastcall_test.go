package serve

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestWhatWaitsInTheBacklogIsServed: connections that were made before the end, and not accepted before it, get their answers.
func TestWhatWaitsInTheBacklogIsServed(t *testing.T) {
	s := New(Options{Name: "test", Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "served") })})
	if err := s.Listen(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range 20 {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx, 5*time.Second) }()
	for i, conn := range conns {
		_, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		_ = answer.Body.Close()
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("it still listens")
	}
}
