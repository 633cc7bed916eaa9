package httpapi

import (
	"net/http"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
)

// HandleWake answers /wake-function and /wake-functions; wake returns at once and coalesces.
func (a *API) HandleWake(wake func(*replica.Function)) {
	a.Handle(route.WakeFunction, func(w http.ResponseWriter, _ *http.Request, in *Request) {
		f, ok := a.Find(in.Name)
		switch {
		case ok:
			wake(f)
			w.WriteHeader(http.StatusNoContent)
		case !a.Synced():
			noTable(w)
		default:
			Refuse(w, gate.NotFound())
		}
	})
	a.Handle(route.WakeFunctions, func(w http.ResponseWriter, _ *http.Request, _ *Request) {
		for _, f := range a.Functions.All() {
			wake(f)
		}
		w.WriteHeader(http.StatusNoContent)
	})
}
