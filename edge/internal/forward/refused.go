package forward

import (
	"errors"
	"net/http"
	"time"

	"github.com/slimfaas/slimfaas/shared/problem"
)

// refused answers for a function that did not. Nothing has been written to the caller yet.
func (f *Forwarder) refused(w http.ResponseWriter, x *exchange, err error) {
	if (x.inbound.Err() != nil || x.watch.Gone()) && !x.tooSlow.Load() {
		panic(http.ErrAbortHandler) // the caller has gone; there is nobody to tell
	}
	var tooLarge *http.MaxBytesError
	broke := false
	p := problem.Problem{
		Type: "urn:slimfaas:bad-gateway", Title: "The function's answer broke", Status: http.StatusBadGateway,
		Detail: "The connection to the replica broke before its answer's headers. The function may have run; SlimFaas does not repeat a call of which a byte was sent.",
	}
	switch {
	case errors.As(err, &tooLarge):
		p = problem.Problem{
			Type: "urn:slimfaas:body-too-large", Title: "Body too large", Status: http.StatusRequestEntityTooLarge,
			Detail: "The body is larger than this edge forwards.",
		}
	case x.tooSlow.Load():
		w.Header().Set("Connection", "close")
		p = problem.Problem{
			Type: "urn:slimfaas:body-too-slow", Title: "The body came too slowly", Status: http.StatusRequestTimeout,
			Detail: "No byte of the body came for " + f.BodyIdle.String() + ", or less than 512 bytes a second. The function has seen the beginning of the request, and that it broke off.",
		}
	case x.unreadable.Load():
		w.Header().Set("Connection", "close")
		p = problem.Problem{
			Type: "urn:slimfaas:bad-request", Title: "The body cannot be read", Status: http.StatusBadRequest,
			Detail: "The body broke off, or its chunks or trailers are malformed. The function has seen the beginning of the request, and that it broke off.",
		}
	case errors.Is(err, errNoHeaders):
		broke = true
		p = problem.Problem{
			Type: "urn:slimfaas:timeout", Title: "The function did not answer in time", Status: http.StatusGatewayTimeout,
			Detail: "No answer headers within " + x.HeaderTimeout.String() + " (DefaultSync.HttpTimeout of SlimFaas/Configuration).",
		}
	case errors.Is(err, errAllRefused):
		p = problem.Problem{
			RetryAfter: time.Second,
			Type:       "urn:slimfaas:unreachable", Title: "No replica took the connection", Status: http.StatusServiceUnavailable,
			Detail: "Every ready replica refused the connection, or did not take it in time; nothing was sent. GET /explain tells what is known of them.",
		}
	default:
		broke = true
	}
	if broke {
		x.lease.Broke()
	}
	f.log.Info("call not answered by its function", "fn", x.lease.Function.Name(), "replica", x.lease.Name, "status", p.Status, "err", err)
	problem.Write(w, p)
}
