package httpapi

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/problem"
)

// HandleHealth answers /health and /ready as the original does, with ready deciding the latter, and /metrics when metrics is
// not nil.
func (a *API) HandleHealth(ready func() error, metrics http.Handler) {
	a.Handle(route.Health, func(w http.ResponseWriter, _ *http.Request, _ *Request) { text(w, http.StatusOK, "OK") })
	a.Handle(route.Ready, func(w http.ResponseWriter, _ *http.Request, _ *Request) {
		if ready() != nil { // why is for the admin listener
			text(w, http.StatusServiceUnavailable, "NOT_READY")
			return
		}
		text(w, http.StatusOK, "READY")
	})
	if metrics != nil {
		a.Handle(route.Metrics, func(w http.ResponseWriter, r *http.Request, _ *Request) { metrics.ServeHTTP(w, r) })
	}
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the caller is gone when this fails
}

// TooLarge answers a body over the limit, in bytes.
func TooLarge(w http.ResponseWriter, limit int64) {
	problem.Write(w, problem.Problem{
		Type: "urn:slimfaas:body-too-large", Title: "Body too large", Status: http.StatusRequestEntityTooLarge,
		Detail: "A body may have " + strconv.FormatInt(limit, 10) + " bytes here.",
	})
}

// noTable answers while this edge has not read the function table once.
func noTable(w http.ResponseWriter) {
	problem.Write(w, problem.Problem{
		RetryAfter: time.Second,
		Type:       "urn:slimfaas:no-table", Title: "The edge is starting", Status: http.StatusServiceUnavailable,
		Detail: "This edge has not read the function table yet, so it cannot tell which functions exist. Try again in a second.",
	})
}
