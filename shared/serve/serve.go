// Package serve runs an http.Server with the limits of the house: headers within 5 s and 16 KiB, idle connections for 60 s,
// HTTP/1.1 and HTTP/2 (by prior knowledge without TLS), and a drain that ends within a time the program chooses. There is no write timeout:
// answers may stream for hours.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// House values.
const (
	// HeaderTimeout is how long a client may take to send its headers.
	HeaderTimeout = 5 * time.Second
	// IdleTimeout is how long a connection without a request stays open.
	IdleTimeout = 60 * time.Second
	// MaxHeaderBytes of a request, unless Options say otherwise.
	MaxHeaderBytes = 16 << 10
	// maxStreams is how many requests an HTTP/2 client may have open on one connection, unless Options say otherwise.
	maxStreams = 250
	// An HTTP/2 peer that is silent for pingAfter is asked whether it lives, and cut when it does not say so in pingTimeout
	// or takes no byte for writeTimeout.
	pingAfter    = 15 * time.Second
	pingTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	// quietBeforeClose is how long no request may have been open before a server that shuts down closes its connections.
	quietBeforeClose = 100 * time.Millisecond
)

// Options of a Server.
type Options struct {
	Name    string // of the listener, for logs and errors: public, admin, …
	Handler http.Handler
	Log     *slog.Logger
	// MaxHeaderBytes of a request; 0: 16 KiB. HTTP/1 lets 4 KiB more pass, HTTP/2 counts 32 bytes more per header.
	MaxHeaderBytes int
	// MaxStreams is how many requests one HTTP/2 connection may have open; 0: 250.
	MaxStreams int
	// HTTP1Only leaves HTTP/2 out.
	HTTP1Only bool
	// MaxConns is how many connections may be open; 0: any number. One more closes the one that has been idle for longest, or, where
	// all have a request under way, is closed itself. Upgraded connections do not count.
	MaxConns int
	// TLS, when set, is the only way in: nothing unencrypted is answered.
	TLS *tls.Config
	// ConnContext, when set, derives the context of each connection, as in http.Server.
	ConnContext func(ctx context.Context, c net.Conn) context.Context
}

// Server is one listener and its http.Server: New, Listen, Run, once each and in this order.
type Server struct {
	options  Options
	http     *http.Server
	listener *lastCall
	abort    context.CancelFunc
	conns    *conns
}

// New makes a server that does not listen yet.
func New(o Options) *Server {
	if o.MaxHeaderBytes == 0 {
		o.MaxHeaderBytes = MaxHeaderBytes
	}
	if o.MaxStreams == 0 {
		o.MaxStreams = maxStreams
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(o.TLS != nil && !o.HTTP1Only)
	protocols.SetUnencryptedHTTP2(o.TLS == nil && !o.HTTP1Only)
	// The root of all requests: it ends when the drain's time is up, so that no handler outlives Run by much.
	root, abort := context.WithCancel(context.Background())
	s := &Server{options: o, abort: abort, conns: newConns(o.MaxConns)}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		ConnState:         s.conns.note,
		ReadHeaderTimeout: HeaderTimeout,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    o.MaxHeaderBytes,
		Protocols:         &protocols,
		TLSConfig:         o.TLS.Clone(), // the server adds what HTTP/2 needs to its own
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: o.MaxStreams,
			SendPingTimeout:      pingAfter,
			PingTimeout:          pingTimeout,
			WriteByteTimeout:     writeTimeout,
		},
		ErrorLog:    slog.NewLogLogger(o.Log.With("listener", o.Name).Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return root },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if ctx = known(ctx, c); o.ConnContext != nil {
				ctx = o.ConnContext(ctx, c)
			}
			return ctx
		},
	}
	return s
}

// Conns is how many connections are open, and how many have been closed to keep MaxConns.
func (s *Server) Conns() (open int, turnedAway uint64) { return s.conns.count() }

// Listen opens the listener, so that a port that is taken is an error of the start and not of a goroutine. Connections wait in
// the backlog until Run.
func (s *Server) Listen(ctx context.Context, addr string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listening for %s on %s: %w", s.options.Name, addr, err)
	}
	s.listener = &lastCall{TCPListener: l.(*net.TCPListener)} //nolint:forcetypeassert // what "tcp" gives
	return nil
}

// Addr is where the server listens (host:port with the real port), nil before Listen.
func (s *Server) Addr() net.Addr {
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Run serves until ctx ends, then takes what waits in the backlog and closes the listener, lets open requests go on for at most drain, and cuts what is left. It
// returns nil after a drain in time, an error that says so after a cut, and at once when serving fails. What comes before
// closing the listener (readiness off, a wait for balancers) and hijacked connections are the program's to end.
func (s *Server) Run(ctx context.Context, drain time.Duration) error {
	defer s.abort()
	if s.listener == nil {
		return fmt.Errorf("serving %s: not listening", s.options.Name)
	}
	guarded, relieve := context.WithCancel(context.WithoutCancel(ctx))
	var guard sync.WaitGroup
	guard.Go(func() { s.conns.standGuard(guarded) })
	defer guard.Wait()
	defer relieve()
	served := make(chan error, 1)
	go func() {
		if s.options.TLS != nil {
			served <- s.http.ServeTLS(s.listener, "", "")
		} else {
			served <- s.http.Serve(s.listener)
		}
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", s.options.Name, err)
	case <-ctx.Done():
	}
	s.listener.end()
	failed := <-served
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	s.awaitFirstRequests(bounded)
	s.closeIdle(bounded)
	var closing sync.WaitGroup
	closing.Go(func() { s.closeQuiet(bounded) })
	err := s.http.Shutdown(bounded)
	cancel()
	closing.Wait()
	if errors.Is(err, context.DeadlineExceeded) {
		s.abort()
		_ = s.http.Close()
		err = fmt.Errorf("draining %s: requests were still open after %v and have been cut", s.options.Name, drain)
	}
	if err == nil && !errors.Is(failed, errEnded) {
		err = fmt.Errorf("serving %s: %w", s.options.Name, failed)
	}
	return err
}

// handle a request. While the server ends, its connection is closed behind the answer; one that was closed as the request came gets
// none, and what nobody can be told of is not begun.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 {
		if c := of(r); c != nil && !c.http2.Load() {
			c.http2.Store(true)
		}
	}
	if s.listener.ending.Load() {
		if c := of(r); c != nil && c.closed.Load() {
			panic(http.ErrAbortHandler)
		}
		if r.Header["Upgrade"] == nil {
			w.Header().Set("Connection", "close")
		}
	}
	s.options.Handler.ServeHTTP(w, r)
}

// closeIdle closes the idle connections on which no request has come. Shutdown, which follows, looks at states only.
func (s *Server) closeIdle(ctx context.Context) {
	const looks = 50
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range looks {
		if s.conns.closeUntouched() == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// awaitFirstRequests waits until the requests of connections that have just come are being served: after Shutdown the standard library
// reads a request and closes the connection without a word.
func (s *Server) awaitFirstRequests(ctx context.Context) {
	const looks = 4 // a request is noted as read a moment before it is safe
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for seen := 0; seen < looks; seen++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if s.conns.expecting() {
			seen = -1
		}
	}
}

// closeQuiet closes the unused connections of a server that is shutting down once none has had a request for a while. One that gets
// a request at that moment is served. The standard library leaves an idle HTTP/2 connection open for a second after its GOAWAY, for requests that crossed it on the way.
func (s *Server) closeQuiet(ctx context.Context) {
	const looks = 5
	tick := time.NewTicker(quietBeforeClose / looks)
	defer tick.Stop()
	for seen := 0; seen < looks; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		seen++
		if !s.conns.quiet() {
			seen = 0
		}
	}
	s.conns.closeUnused()
}

// Close ends a server that will not be Run.
func (s *Server) Close() {
	s.abort()
	if s.listener != nil {
		_ = s.listener.Close()
	}
}
