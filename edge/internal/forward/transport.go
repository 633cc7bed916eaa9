package forward

import (
	"net/http"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
)

// Limits of the connections to functions.
const (
	// idleTimeout is shorter than what servers use themselves (2 s and up), so that we close first: a request that meets a
	// connection its function is just closing cannot be sent again.
	idleTimeout       = 1500 * time.Millisecond
	idlePerReplica    = 64
	maxResponseHeader = 64 << 10 // bytes, of all 1xx and the answer together
)

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
