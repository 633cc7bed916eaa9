package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/problem"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// cancel answers DELETE /async-calls/{id}: to whoever may read the call.
func (a *API) cancel(o Async, w http.ResponseWriter, r *http.Request, in *Request) {
	id, err := message.ParseID(in.Name)
	if err != nil {
		Refuse(w, gate.NotFound())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queueWithin)
	defer cancel()
	answer, err := o.GetCall(ctx, &wire.GetCallRequest{Id: id[:]})
	if err != nil {
		o.unread(w, r, id, err)
		return
	}
	if answer.GetCall() == nil {
		Refuse(w, gate.NotFound())
		return
	}
	if !a.maySee(w, in, answer.GetCall().GetFunction()) {
		return
	}
	result, err := o.Do(ctx, &wire.Op{Op: &wire.Op_Cancel{Cancel: &wire.Cancel{Id: id[:]}}})
	if err != nil {
		o.Log.Warn("call not cancelled", "call", id.String(), "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "The queue did not confirm. GET /async-calls/"+id.String()+" tells whether the call is cancelled; asking again does no harm."))
		return
	}
	switch code := result.GetCode(); code {
	case wire.Code_CODE_OK:
		w.WriteHeader(http.StatusNoContent)
	case wire.Code_CODE_NOT_FOUND:
		Refuse(w, gate.NotFound())
	case wire.Code_CODE_CONFLICT:
		problem.Write(w, problem.FromCode(code, "The call runs at this moment, awaits its callback, or has ended. It can be cancelled before its first try and between two."))
	default:
		o.Log.Error("the queue did not understand a cancel", "call", id.String(), "code", code.String(), "detail", result.GetDetail())
		problem.Write(w, problem.FromCode(wire.Code_CODE_INTERNAL, "The call was not cancelled; the reason is in the log of this edge."))
	}
}

// unread answers when the queue could not be asked.
func (o Async) unread(w http.ResponseWriter, r *http.Request, id message.ID, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the caller has gone
	}
	o.Log.Warn("reading a call", "call", id.String(), "err", err)
	problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "The queue did not answer. Ask again."))
}

// result answers GET /async-calls/{id}/result with what the function answered.
func (a *API) result(o Async, w http.ResponseWriter, r *http.Request, in *Request) {
	id, err := message.ParseID(in.Name)
	if err != nil {
		Refuse(w, gate.NotFound())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queueWithin)
	defer cancel()
	answer, err := o.GetResult(ctx, &wire.GetResultRequest{Id: id[:]})
	if err != nil {
		o.unread(w, r, id, err)
		return
	}
	c := answer.GetCall()
	if c == nil {
		Refuse(w, gate.NotFound())
		return
	}
	if !a.maySee(w, in, c.GetFunction()) {
		return
	}
	switch {
	case c.GetFinishedUnixMs() == 0:
		problem.Write(w, problem.FromCode(wire.Code_CODE_CONFLICT, "The call has not ended yet: it is "+stateNames[c.GetState()]+". GET /async-calls/"+id.String()+"?wait=60s answers when it has."))
	case len(answer.GetAnswer()) == 0:
		noResult(w, "Nothing is kept of what the function answered: the call was sent without SlimFaas-Keep-Result, the time it asked for is over, or the function never answered.")
	default:
		var kept wire.StoredAnswer
		if err := proto.Unmarshal(answer.GetAnswer(), &kept); err != nil {
			o.Log.Error("a kept answer cannot be read", "call", id.String(), "err", err)
			problem.Write(w, problem.FromCode(wire.Code_CODE_INTERNAL, "The kept answer cannot be read; the reason is in the log of this edge."))
			return
		}
		writeStored(w, &kept)
	}
}

func noResult(w http.ResponseWriter, detail string) {
	Refuse(w, gate.Refusal{Status: http.StatusNotFound, Type: "no-result", Title: "No result is kept", Detail: detail})
}

// writeStored gives the function's answer as it was.
func writeStored(w http.ResponseWriter, kept *wire.StoredAnswer) {
	if why := kept.GetOmitted(); why != "" {
		noResult(w, "The function answered "+strconv.Itoa(int(kept.GetStatus()))+", and the body of that answer was not kept: "+why+".")
		return
	}
	h := w.Header()
	for _, header := range kept.GetHeaders() {
		h[http.CanonicalHeaderKey(header.GetName())] = header.GetValues()
	}
	status := int(kept.GetStatus())
	if status < http.StatusOK || status > 999 {
		status = http.StatusOK // no answer of a function has such a one
	}
	if _, typed := h["Content-Type"]; !typed {
		h["Content-Type"] = nil // net/http would guess
	}
	w.WriteHeader(status)
	if status != http.StatusNoContent && status != http.StatusNotModified {
		_, err := w.Write(kept.GetBody())
		if err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
			return // the caller is gone
		}
	}
}
