package serve

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestEveryRequestThatIsBegunIsAnswered: a server ends while requests come on connections that it takes for idle. What it hands to
// its handler is answered; what it does not, its caller may safely send again.
func TestEveryRequestThatIsBegunIsAnswered(t *testing.T) {
	t.Parallel()
	const ends, callers = 40, 16
	lost := int64(0)
	for range ends {
		var begun, answered, asked atomic.Int64
		s := New(Options{Name: "test", Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { begun.Add(1) })})
		if err := s.Listen(t.Context(), "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx, 5*time.Second) }()
		var work sync.WaitGroup
		for range callers {
			conn, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			work.Go(func() {
				defer conn.Close()
				for r := bufio.NewReader(conn); ; {
					asked.Add(1)
					if _, err := fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
						return
					}
					answer, err := http.ReadResponse(r, nil)
					if err != nil {
						return
					}
					_ = answer.Body.Close()
					if answered.Add(1) == 20*callers {
						end()
					}
					if answer.Close {
						return
					}
				}
			})
		}
		if err := <-ran; err != nil {
			t.Error(err)
		}
		work.Wait()
		end()
		if begun.Load() != answered.Load() {
			t.Errorf("%d requests were handed to the handler, and %d answered", begun.Load(), answered.Load())
		}
		lost += asked.Load() - answered.Load()
	}
	// Between the last look at a connection and its closing there is nothing but a moment. With one look at states it was ten an end.
	if lost > ends/4 {
		t.Errorf("%d requests in %d ends came on a connection that was being closed", lost, ends)
	}
}
