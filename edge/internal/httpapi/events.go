package httpapi

import (
	"context"
	"net/http"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/problem"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Events is what /publish-event needs.
type Events struct {
	// Publish starts the delivery of an event. permitted is false when no subscriber may be reached by this caller. ended is
	// called once, when the request is not needed any more.
	Publish func(ctx context.Context, event string, internal bool, request *wire.StoredRequest, ended func()) (report <-chan []*wire.EventResult, permitted bool, err error)
	// Budget bounds events under way at one time, MaxBody the body of one, in bytes.
	Budget  *message.Budget
	MaxBody int64
}

// HandleEvents answers /publish-event.
func (a *API) HandleEvents(o Events) {
	a.Handle(route.PublishEvent, func(w http.ResponseWriter, r *http.Request, in *Request) {
		if !a.Synced() {
			noTable(w)
			return
		}
		o.publish(w, r, in)
	})
}

// eventResult is a line of the report.
type eventResult struct {
	Function   string
	Replica    string
	Status     uint32 // 0: no answer
	Tries      uint32
	Error      string // empty: delivered
	DurationMs uint64
}

func (o Events) publish(w http.ResponseWriter, r *http.Request, in *Request) {
	share, err := o.Budget.Begin()
	if err != nil {
		full(w)
		return
	}
	body, ok := readBody(w, r, o.MaxBody, share)
	if !ok {
		share.Release()
		return
	}
	request := message.From(r, in.Rest, in.Query, body, "", in.Caller.ViaProxy)
	report, permitted, err := o.Publish(r.Context(), in.Name, in.Internal, request, share.Release)
	switch {
	case err != nil:
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "This edge is stopping; nothing was delivered. Publish again."))
		return
	case !permitted:
		Refuse(w, gate.NotFound())
		return
	}
	var results []*wire.EventResult
	select {
	case results = <-report:
	case <-r.Context().Done(): // the caller has gone; deliveries go on
		panic(http.ErrAbortHandler)
	}
	if !PreferencesOf(r.Header["Prefer"]).Representation {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	lines := make([]eventResult, len(results))
	for i, x := range results {
		lines[i] = eventResult{
			Function: x.GetFunction(), Replica: x.GetReplica(), Status: x.GetStatus(), Tries: x.GetTries(),
			Error: x.GetError(), DurationMs: x.GetDurationMs(),
		}
	}
	w.Header().Set("Preference-Applied", "return=representation")
	WriteJSON(w, lines)
}
