package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/problem"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// maxDeadPage is the most calls one page lists.
	maxDeadPage = 1000
	// deadWithin bounds what is done to every dead call of a function.
	deadWithin = 60 * time.Second
)

// DeadLetters is the part of the queue's client for dead calls.
type DeadLetters struct {
	List    func(context.Context, *wire.ListDeadRequest) (*wire.ListDeadResponse, error)
	Redrive func(context.Context, *wire.RedriveRequest) (*wire.RedriveResponse, error)
	Purge   func(context.Context, *wire.PurgeRequest) (*wire.PurgeResponse, error)
}

// deadLetters answers /dead-letters: list, redrive, purge. A function that has left the table may have dead calls still, so its
// name is taken as it is.
func (a *API) deadLetters(o Operator, w http.ResponseWriter, r *http.Request, in *Request) {
	query, err := url.ParseQuery(in.Query)
	if err != nil {
		badRequest(w, "The query cannot be read: "+err.Error()+".")
		return
	}
	function, rest := a.fullName(in.Name), strings.TrimSuffix(in.Rest, "/")
	switch {
	case r.Method == http.MethodGet && rest == "":
		o.listDead(w, r, function, query)
	case r.Method == http.MethodPost && rest == "/redrive":
		o.eachDead(w, r, function, query, "Redriven", func(ctx context.Context, id []byte) (uint64, error) {
			answer, err := o.Dead.Redrive(ctx, &wire.RedriveRequest{Function: function, Id: id})
			return answer.GetCount(), err
		})
	case r.Method == http.MethodDelete && rest == "":
		o.eachDead(w, r, function, query, "Purged", func(ctx context.Context, id []byte) (uint64, error) {
			answer, err := o.Dead.Purge(ctx, &wire.PurgeRequest{Function: function, Id: id})
			return answer.GetCount(), err
		})
	case rest == "":
		Refuse(w, gate.Refusal{
			Status: http.StatusMethodNotAllowed, Type: "method-not-allowed", Title: "Method not allowed", Allow: []string{"GET", "DELETE"},
			Detail: "GET lists dead calls, DELETE forgets them; POST /dead-letters/{function}/redrive puts them back into the queue.",
		})
	default:
		Refuse(w, gate.NotFound())
	}
}

func (o Operator) listDead(w http.ResponseWriter, r *http.Request, function string, query url.Values) {
	ask := &wire.ListDeadRequest{Function: function}
	if text := query.Get("limit"); text != "" {
		limit, err := strconv.ParseUint(text, 10, 32)
		if err != nil || limit < 1 || limit > maxDeadPage {
			badRequest(w, "limit is a number from 1 to "+strconv.Itoa(maxDeadPage)+".")
			return
		}
		ask.Limit = uint32(limit)
	}
	var ok bool
	if ask.After, ok = idOf(w, query, "after"); !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queueWithin)
	defer cancel()
	answer, err := o.Dead.List(ctx, ask)
	if err != nil {
		o.Log.Warn("listing dead calls", "fn", function, "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "The queue did not answer. Ask again."))
		return
	}
	if answer.GetCode() == wire.Code_CODE_NOT_FOUND {
		p := problem.FromCode(wire.Code_CODE_NOT_FOUND, "The call in after is no dead call of "+function+" (any more). Begin again from the newest, without after.")
		problem.Write(w, p)
		return
	}
	list := []callStatus{}
	for _, c := range answer.GetCalls() {
		if len(c.GetId()) == len(message.ID{}) {
			list = append(list, statusOfCall(message.ID(c.GetId()), c))
		}
	}
	WriteJSON(w, list)
}

// eachDead does something to one dead call, or to all of a function.
func (o Operator) eachDead(
	w http.ResponseWriter, r *http.Request, function string, query url.Values, done string, do func(context.Context, []byte) (uint64, error),
) {
	id, ok := idOf(w, query, "id")
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), deadWithin)
	defer cancel()
	count, err := do(ctx, id)
	switch {
	case err == nil:
		o.Log.Info("an operator dealt with dead calls", "fn", function, "did", done, "calls", count)
		WriteJSON(w, map[string]uint64{done: count})
	case errors.Is(err, queueclient.ErrNotHandedOver):
		o.Log.Warn("dead calls were not dealt with", "fn", function, "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "Nothing was done: the queue has no majority or cannot be reached. Ask again."))
	default:
		o.Log.Warn("it is not known how many dead calls were dealt with", "fn", function, "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNKNOWN, "Some of the calls were dealt with, perhaps all. GET /dead-letters/"+function+" shows what is left; asking again goes on."))
	}
}

// idOf reads an id of the query; nil when there is none.
func idOf(w http.ResponseWriter, query url.Values, name string) (id []byte, ok bool) {
	if !query.Has(name) {
		return nil, true
	}
	parsed, err := message.ParseID(query.Get(name))
	if err != nil {
		badRequest(w, name+": "+message.ErrBadID.Error()+".")
		return nil, false
	}
	return parsed[:], true
}
