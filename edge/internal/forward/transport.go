package forward

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
	"github.com/slimfaas/slimfaas/edge/internal/upstream"
)

// Limits of the connections to functions.
const (
	// idleTimeout is shorter than what servers use themselves (2 s and up), so that we close first: a request that meets a
	// connection its function is just closing cannot be sent again.
	idleTimeout       = 1500 * time.Millisecond
	idlePerReplica    = 64
	maxResponseHeader = 64 << 10 // bytes, of all 1xx and the answer together
	// A function that is silent for pingAfter on an HTTP/2 connection is asked whether it lives, and has pingTimeout to say so.
	pingAfter   = 15 * time.Second
	pingTimeout = 5 * time.Second
)

func newPool() *upstream.Pool {
	return upstream.NewPool(upstream.Options{MaxIdle: idlePerReplica, IdleTimeout: idleTimeout, MaxHeader: maxResponseHeader})
}

// newTransport makes the connections to functions: no proxy of the environment, no cookies, no redirects, no compression of
// its own.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            dial.Context,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    idlePerReplica,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		ReadBufferSize:         16 << 10,
		WriteBufferSize:        16 << 10,
	}
}

// newHTTP2 makes connections that speak HTTP/2 from the first byte on (h2c), to functions that are called with gRPC.
func newHTTP2() *http.Transport {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial.Context(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return conn.(*dial.Conn).Conn, nil // what an idle connection of one request at a time must not do, this one may
		},
		Protocols:              &protocols,
		DisableCompression:     true,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
}
