package httpapi

import (
	"encoding/json"
	"net/http"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// functionStatus is the object of /status-function; the order of its properties is part of the contract.
type functionStatus struct {
	NumberReady     int
	NumberRequested int
	PodType         string
	Visibility      string
	Name            string
}

func statusOf(f *replica.Function) functionStatus {
	rec := f.Record()
	s := functionStatus{
		NumberRequested: int(rec.GetWanted()), PodType: rec.GetKind(),
		Visibility: f.Spec().DefaultVisibility.String(), Name: f.Name(),
	}
	if s.PodType == "" {
		s.PodType = "Deployment"
	}
	for _, r := range rec.GetReplicas() {
		if r.GetState() == wire.ReplicaState_REPLICA_STATE_READY {
			s.NumberReady++
		}
	}
	return s
}

func (a *API) statusFunction(w http.ResponseWriter, _ *http.Request, in *Request) {
	f, ok := a.Find(in.Name)
	switch {
	case ok:
		WriteJSON(w, statusOf(f))
	case !a.Synced():
		noTable(w)
	default:
		Refuse(w, gate.NotFound())
	}
}

func (a *API) statusFunctions(w http.ResponseWriter, _ *http.Request, _ *Request) {
	all := a.Functions.All()
	list := make([]functionStatus, len(all)) // an empty list is [], never null
	for i, f := range all {
		list[i] = statusOf(f)
	}
	WriteJSON(w, list)
}

func (a *API) statusStream(w http.ResponseWriter, _ *http.Request, _ *Request) {
	NotImplemented(w, "The status stream comes with a later issue; GET /status-functions has the same figures.")
}

// WriteJSON answers 200 with v, in the casing of its Go names, as the original does.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	body, err := json.Marshal(v)
	if err != nil { // a value of ours that cannot be encoded is a bug; say so rather than half a body
		http.Error(w, "encoding the answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(body) // the caller is gone when this fails
}
