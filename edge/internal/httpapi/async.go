package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/problem"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// maxWait bounds ?wait= of /async-calls.
	maxWait = 60 * time.Second
	// queueWithin bounds what the queue is asked besides accepting: callbacks, reads.
	queueWithin = 5 * time.Second
	// headerOutcome repeats the `outcome` member of a refused accept, for callers that see no body (HEAD).
	headerOutcome = "Outcome"
)

// Async is what the routes of async calls need.
type Async struct {
	// Accept enqueues a call and returns its id once it is durable. Its error may be a Refusal.
	Accept func(ctx context.Context, function string, request *wire.StoredRequest, o message.CallOptions) (id string, err error)
	// AcceptLarge likewise, of a request whose body is not in it and is read from body. Its error may also be one of message.Body's.
	AcceptLarge func(ctx context.Context, function string, request *wire.StoredRequest, body *message.Rest, o message.CallOptions) (id string, err error)
	// Do hands an operation to the queue leader.
	Do func(context.Context, *wire.Op) (*wire.OpResult, error)
	// GetCall and GetResult read a call, and what its function answered.
	GetCall   func(context.Context, *wire.GetCallRequest) (*wire.GetCallResponse, error)
	GetResult func(context.Context, *wire.GetResultRequest) (*wire.GetResultResponse, error)
	// Budget bounds calls being taken at one time, MaxBody the body of one, in bytes. Uploads bounds those over
	// wire.MaxInlineBody among them.
	Budget, Uploads *message.Budget
	MaxBody         int64
	Log             *slog.Logger
	seldom          *seldom
}

// seldom logs what may happen thousands of times a second once a second, with how often it did.
type seldom struct {
	last   atomic.Int64 // unix nanoseconds
	missed atomic.Int64
}

func (s *seldom) warn(log *slog.Logger, text string, err error) {
	now, last := time.Now().UnixNano(), s.last.Load()
	if now-last < int64(time.Second) || !s.last.CompareAndSwap(last, now) {
		s.missed.Add(1)
		return
	}
	log.Warn(text, "err", err, "more", s.missed.Swap(0)) //nolint:sloglint // the callers' texts are constants
}

// Refusal is the error of an accept that has no yes to give.
type Refusal interface {
	error
	ID() string
	Code() wire.Code
	// Unknown: it was handed over, and may have been committed.
	Unknown() bool
}

// HandleAsync answers /async-function, its callback and /async-calls.
func (a *API) HandleAsync(o Async) {
	o.seldom = &seldom{}
	a.Handle(route.AsyncFunction, o.accept)
	a.Handle(route.AsyncCallback, o.callback)
	a.Handle(route.AsyncCall, func(w http.ResponseWriter, r *http.Request, in *Request) {
		if r.Method == http.MethodDelete {
			a.cancel(o, w, r, in)
			return
		}
		a.call(o, w, r, in)
	})
	a.Handle(route.AsyncResult, func(w http.ResponseWriter, r *http.Request, in *Request) { a.result(o, w, r, in) })
}

func (o Async) accept(w http.ResponseWriter, r *http.Request, in *Request) {
	options, err := message.OptionsFrom(r.Header)
	if err != nil {
		badRequest(w, err.Error())
		return
	}
	share, err := o.Budget.Begin()
	if err != nil {
		full(w)
		return
	}
	defer share.Release()
	serve.Forgo(r) // what is handed over is accepted, whether the caller waits for it or not
	body, rest, err := message.BodyOrRest(w, r, wire.MaxInlineBody, o.MaxBody, share)
	switch {
	case err != nil:
		refuseBody(w, r, err, o.MaxBody)
		return
	case rest != nil:
		o.acceptLarge(w, r, in, rest, options)
		return
	}
	id, err := o.Accept(r.Context(), in.Function.Name(), message.From(r, in.Rest, in.Query, body, in.Prefix(), in.Caller.ViaProxy), options)
	if err != nil {
		o.refuse(w, err, options.Key != "")
		return
	}
	w.Header()[message.HeaderElementID] = []string{id}
	w.WriteHeader(http.StatusAccepted)
}

// acceptLarge takes a call whose body goes to the queue while it comes.
func (o Async) acceptLarge(w http.ResponseWriter, r *http.Request, in *Request, body *message.Rest, options message.CallOptions) {
	defer body.Close()
	place, err := o.Uploads.Begin()
	if err != nil {
		body.Abandon()
		p := problem.FromCode(wire.Code_CODE_UNAVAILABLE, "This edge is taking as many bodies over 1 MiB as it may at one time (EDGE_ASYNC_UPLOADS). Nothing was done with this one; send it again.")
		w.Header().Set(headerOutcome, "none")
		p.Extra = map[string]any{"outcome": "none"}
		problem.Write(w, p)
		return
	}
	defer place.Release()
	id, err := o.AcceptLarge(r.Context(), in.Function.Name(), message.From(r, in.Rest, in.Query, nil, in.Prefix(), in.Caller.ViaProxy), body, options)
	var refusal Refusal
	switch {
	case err == nil:
		w.Header()[message.HeaderElementID] = []string{id}
		w.WriteHeader(http.StatusAccepted)
	case errors.As(err, &refusal):
		body.Abandon()
		o.refuse(w, err, options.Key != "")
	default:
		body.Abandon()
		refuseBody(w, r, err, o.MaxBody)
	}
}

// refuse says what became of a call that was not accepted, and what the caller can do. keyed: it had an idempotency key.
func (o Async) refuse(w http.ResponseWriter, err error, keyed bool) {
	var refusal Refusal
	if !errors.As(err, &refusal) {
		o.Log.Error("accepting a call", "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_INTERNAL, "The call was not enqueued; the reason is in the log of this edge."))
		return
	}
	code, outcome := refusal.Code(), "none"
	detail := "Nothing was enqueued: the queue has no majority or cannot be reached. Send the call again."
	switch {
	case refusal.Unknown():
		code, outcome = wire.Code_CODE_UNKNOWN, "unknown"
		detail = "The call was handed to the queue, and whether it is enqueued is not known. GET /async-calls/" + refusal.ID() + " tells; sending it again may run it twice."
		if keyed {
			detail = "The call was handed to the queue, and whether it is enqueued is not known. Send it again with the same " + message.HeaderIdempotencyKey + ": it is enqueued once."
		}
		w.Header()[message.HeaderElementID] = []string{refusal.ID()}
	case code == wire.Code_CODE_FULL:
		detail = "Nothing was enqueued: the queue is full. Send the call again later."
		if keyed {
			detail = "Nothing was enqueued: the queue is full, or remembers as many idempotency keys as it may. Send the call again later, or without " + message.HeaderIdempotencyKey + "."
		}
	case code == wire.Code_CODE_TOO_LARGE:
		detail = "Nothing was enqueued: the request with its headers is larger than a queued call may be (64 KiB beside a body of up to 1 MiB, 256 KiB beside a larger one)."
	case code == wire.Code_CODE_CONFLICT:
		w.Header().Set(headerOutcome, outcome)
		problem.Write(w, problem.Problem{
			Type: "urn:slimfaas:idempotency-key-reused", Title: "The idempotency key was used for another request",
			Status: http.StatusUnprocessableEntity, Extra: map[string]any{"outcome": outcome},
			Detail: "Nothing was enqueued: within the last 24 h another request (method, path, query, content type or body differ) was sent to this function with this " + message.HeaderIdempotencyKey + ". Use a new key for a new request.",
		})
		return
	case code != wire.Code_CODE_UNAVAILABLE:
		o.seldom.warn(o.Log, "the queue did not understand a call", err)
		code, detail = wire.Code_CODE_INTERNAL, "Nothing was enqueued: the queue did not understand this edge. Are both of the same release?"
	}
	if code == wire.Code_CODE_UNKNOWN || code == wire.Code_CODE_UNAVAILABLE {
		o.seldom.warn(o.Log, "calls are not accepted", err)
	}
	w.Header().Set(headerOutcome, outcome)
	p := problem.FromCode(code, detail)
	p.Extra = map[string]any{"outcome": outcome}
	problem.Write(w, p)
}

// readBody reads a body within limit and share, or answers why not.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, share *message.Share) ([]byte, bool) {
	body, err := message.Body(w, r, limit, share)
	if err != nil {
		refuseBody(w, r, err, limit)
		return nil, false
	}
	return body, true
}

// refuseBody answers why a body was not taken.
func refuseBody(w http.ResponseWriter, r *http.Request, err error, limit int64) {
	switch {
	case errors.Is(err, message.ErrTooLarge):
		TooLarge(w, limit)
	case errors.Is(err, message.ErrFull):
		full(w)
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the caller has gone
	default:
		Refuse(w, gate.Refusal{
			Status: http.StatusBadRequest, Type: "bad-request", Title: "Bad request",
			Detail: "The body broke off or came too slowly; nothing was done with it.",
		})
	}
}

// full answers when this edge holds as many bodies as it may.
func full(w http.ResponseWriter) {
	p := problem.FromCode(wire.Code_CODE_FULL, "This edge is taking as many requests as it may hold in memory. Nothing was done with this one; send it again.")
	w.Header().Set(headerOutcome, "none")
	p.Extra = map[string]any{"outcome": "none"}
	problem.Write(w, p)
}

// callback ends a call whose function answered 202. As the original, it answers 200 whether or not the call is known.
func (o Async) callback(w http.ResponseWriter, r *http.Request, in *Request) {
	id, err := message.ParseID(in.Params[0])
	if err != nil {
		badID(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queueWithin)
	defer cancel()
	result, err := o.Do(ctx, &wire.Op{Op: &wire.Op_Callback{Callback: &wire.Callback{
		Id: id[:], Function: in.Function.Name(), Success: strings.EqualFold(in.Params[1], "success"),
	}}})
	if err != nil {
		o.Log.Warn("callback not recorded", "call", id.String(), "fn", in.Function.Name(), "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "The queue did not confirm the callback. Send it again; a second one changes nothing."))
		return
	}
	switch code := result.GetCode(); code {
	case wire.Code_CODE_UNAVAILABLE, wire.Code_CODE_UNKNOWN, wire.Code_CODE_FULL, wire.Code_CODE_INTERNAL, wire.Code_CODE_INVALID:
		o.Log.Warn("callback refused", "call", id.String(), "fn", in.Function.Name(), "code", code.String(), "detail", result.GetDetail())
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "The queue did not record the callback. Send it again; a second one changes nothing."))
	default: // recorded, or there is nothing to record: unknown, ended, another function's
		w.WriteHeader(http.StatusOK)
	}
}

// callStatus is the object of /async-calls; null is unknown.
type callStatus struct {
	ID         string `json:"Id"`
	Function   string
	State      string
	Tries      uint32
	MaxTries   uint32
	EnqueuedAt *string
	StartedAt  *string
	NextTryAt  *string
	FinishedAt *string
	LastStatus *uint32
	LastError  *string
}

var stateNames = map[wire.CallState]string{
	wire.CallState_CALL_STATE_QUEUED: "Queued", wire.CallState_CALL_STATE_RUNNING: "Running", wire.CallState_CALL_STATE_AWAITING: "Running",
	wire.CallState_CALL_STATE_WAITING: "Waiting", wire.CallState_CALL_STATE_SUCCEEDED: "Succeeded", wire.CallState_CALL_STATE_DEAD: "Dead",
	wire.CallState_CALL_STATE_CANCELLED: "Cancelled",
}

// call answers /async-calls/{id}: to whoever may call the function, by the same rules with an empty path.
func (a *API) call(o Async, w http.ResponseWriter, r *http.Request, in *Request) {
	id, err := message.ParseID(in.Name)
	if err != nil {
		Refuse(w, gate.NotFound()) // no call has such an id
		return
	}
	wait, ok := waitOf(in.Query)
	if !ok {
		badRequest(w, "wait is a duration of at most 60s, such as 30s or 500ms.")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait+queueWithin)
	defer cancel()
	answer, err := o.GetCall(ctx, &wire.GetCallRequest{Id: id[:], WaitMs: uint64(wait.Milliseconds())})
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the caller has gone
		}
		o.Log.Warn("reading a call", "call", id.String(), "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "The queue did not answer. Ask again."))
		return
	}
	c := answer.GetCall()
	if c == nil {
		Refuse(w, gate.NotFound())
		return
	}
	if a.maySee(w, in, c.GetFunction()) {
		WriteJSON(w, statusOfCall(id, c))
	}
}

// maySee says whether the caller may know of calls of a function, or answers why not: as if there were none.
func (a *API) maySee(w http.ResponseWriter, in *Request, function string) bool {
	f, known := a.Find(function)
	switch {
	case known && in.MayCall(f, ""), in.Internal:
		return true
	case !known && !a.Synced():
		noTable(w)
	default:
		Refuse(w, gate.NotFound())
	}
	return false
}

func statusOfCall(id message.ID, c *wire.Call) callStatus {
	s := callStatus{
		ID: id.String(), Function: c.GetFunction(), State: stateNames[c.GetState()], Tries: c.GetTries(), MaxTries: c.GetMaxTries(),
		EnqueuedAt: instant(c.GetEnqueuedUnixMs()), StartedAt: instant(c.GetStartedUnixMs()),
		NextTryAt: instant(c.GetNextTryUnixMs()), FinishedAt: instant(c.GetFinishedUnixMs()),
	}
	if status := c.GetLastStatus(); status != 0 {
		s.LastStatus = &status
	}
	if text := c.GetLastError(); text != "" {
		s.LastError = &text
	}
	return s
}

// instant is RFC 3339 in UTC with milliseconds; nil for 0.
func instant(unixMs int64) *string {
	if unixMs == 0 {
		return nil
	}
	text := time.UnixMilli(unixMs).UTC().Format("2006-01-02T15:04:05.000Z07:00")
	return &text
}

// waitOf reads ?wait=: a duration, or whole seconds. Absent is 0; more than maxWait is maxWait.
func waitOf(query string) (time.Duration, bool) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0, false
	}
	text := values.Get("wait")
	if text == "" {
		return 0, true
	}
	if seconds, err := strconv.ParseUint(text, 10, 16); err == nil {
		return min(time.Duration(seconds)*time.Second, maxWait), true
	}
	wait, err := time.ParseDuration(text)
	return min(wait, maxWait), err == nil && wait >= 0
}

func badID(w http.ResponseWriter) { badRequest(w, message.ErrBadID.Error()+".") }

func badRequest(w http.ResponseWriter, detail string) {
	Refuse(w, gate.Refusal{Status: http.StatusBadRequest, Type: "bad-request", Title: "Bad request", Detail: detail})
}
