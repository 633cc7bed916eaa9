package serve

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

// An HTTP/2 client that keeps its connection does not hold up a server that shuts down, and one with a request under way does,
// also under TLS, where the connection has another type.
func TestIdleHTTP2ConnectionsDoNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	certificates := httptest.NewTLSServer(http.NotFoundHandler())
	defer certificates.Close()
	for _, secure := range []bool{false, true} {
		held := newGate()
		options := Options{Name: "test", Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/held" {
				held.ServeHTTP(w, r)
			}
		})}
		scheme, c := "http://", client(t, true)
		if secure {
			options.TLS, scheme = certificates.TLS, "https://"
			c.Transport.(*http.Transport).TLSClientConfig = certificates.Client().Transport.(*http.Transport).TLSClientConfig
			c.Transport.(*http.Transport).Protocols.SetHTTP2(true)
		}
		s := New(options)
		if err := s.Listen(t.Context(), "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx, 30*time.Second) }()

		get := func(ctx context.Context, path string) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+s.Addr().String()+path, nil)
			if err != nil {
				return err
			}
			res, err := c.Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			return err
		}
		if err := get(t.Context(), "/"); err != nil {
			t.Fatalf("TLS %v: %v", secure, err)
		}
		given := make(chan error, 1)
		given2, giveUp := context.WithCancel(t.Context())
		go func() { given <- get(given2, "/held") }()
		<-held.in
		if s.conns.quiet() {
			t.Errorf("TLS %v: a request is open and the server thinks itself quiet", secure)
		}
		giveUp()
		<-given
		testkit.Eventually(t, 5*time.Second, "the server is quiet again", s.conns.quiet)

		began := time.Now()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("TLS %v: %v", secure, err)
		}
		if took := time.Since(began); took > 900*time.Millisecond { // the library's second is not waited for
			t.Errorf("TLS %v: the end took %v with an idle connection", secure, took)
		}
		c.CloseIdleConnections()
		testkit.Eventually(t, 5*time.Second, "no connection is remembered", func() bool {
			open, _ := s.Conns()
			return open == 0 && s.conns.quiet()
		})
	}
}
