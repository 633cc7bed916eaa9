// Package httpapi is the HTTP surface: it lets a request through the gate, finds its function, checks access, and hands it
// to the handler of its route family. One file per family; what a handler does beyond decoding and encoding is a use case
// that app hands in.
package httpapi

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/access"
	"github.com/slimfaas/slimfaas/edge/internal/accesslog"
	"github.com/slimfaas/slimfaas/edge/internal/apikey"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/edge/internal/shed"
	"github.com/slimfaas/slimfaas/edge/internal/tracing"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/problem"
)

// Options of the surface.
type Options struct {
	Functions *replica.Set
	Access    access.Rules
	Cors      gate.Cors
	// MaxBody is the largest request body in bytes; more is 413.
	MaxBody int64
	// Keys of callers; nil: none is asked for, but by functions, which nobody outside can call then.
	Keys *apikey.Keys
	// Log writes a line a request; nil: none is written. Shed refuses requests of the public listener; nil: it does not.
	Log  *accesslog.Log
	Shed *shed.Shedder
	// Tracer makes a span of every request; nil: none.
	Tracer *tracing.Tracer
	// InternalOnPublic answers the internal routes on the public listener too, to internal callers.
	InternalOnPublic bool
	// Synced says whether a whole table has been read: before, an unknown function is 503, not 404.
	Synced func() bool
	// AwaitSynced waits for that, until ctx ends; nil: nobody waits.
	AwaitSynced func(ctx context.Context) error
}

// Request is what passed the gate.
type Request struct {
	route.Route
	// Function is set for families that call one; the caller may see it.
	Function *replica.Function
	// Caller is who asks, behind trusted proxies.
	Caller access.Caller
	// Internal says whether the caller is internal.
	Internal bool
}

// Handler answers one route family.
type Handler func(w http.ResponseWriter, r *http.Request, in *Request)

// API dispatches requests. Handle everything before the first request.
type API struct {
	Options
	handlers map[route.Family]Handler
	began    time.Time
	awaiting atomic.Int64 // requests that wait for the table
}

// New returns an API that answers the families it can answer from the table alone; Handle adds the others.
func New(o Options) *API {
	a := &API{Options: o, handlers: map[route.Family]Handler{}, began: time.Now()}
	a.Handle(route.StatusFunction, a.statusFunction)
	a.Handle(route.StatusFunctions, a.statusFunctions)
	a.Handle(route.StatusStream, a.statusStream)
	return a
}

// Handle sets the handler of a family.
func (a *API) Handle(f route.Family, h Handler) { a.handlers[f] = h }

// Handler answers as the handler of a family does that is set by the time of the request.
func (a *API) Handler(f route.Family) Handler {
	return func(w http.ResponseWriter, r *http.Request, in *Request) { a.handlers[f](w, r, in) }
}

// Public is the handler of the public listener.
func (a *API) Public() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, false) })
}

// Internal is the handler of the internal listener: the same routes and those for internal callers; a caller on loopback is
// always internal there.
func (a *API) Internal() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, true) })
}

func (a *API) serve(w http.ResponseWriter, r *http.Request, inside bool) {
	in := &Request{}
	if a.Log == nil && a.Tracer == nil {
		a.answer(w, r, in, inside)
		return
	}
	began := time.Now()
	noted := &accesslog.Writer{ResponseWriter: w}
	answered := false
	var span tracing.Request
	if !quiet(route.Parse(r.RequestURI).Family) {
		r, span = a.Tracer.Request(r)
	}
	defer func() { // also when the answer breaks off, which is a panic
		a.note(r, in, noted, began, !answered)
		name := ""
		if in.Function != nil {
			name = in.Function.Name()
		}
		path, _, _ := strings.Cut(r.RequestURI, "?")
		span.End(path, name, noted.Status, !answered)
	}()
	a.answer(noted, r, in, inside)
	answered = true
}

// quiet families are asked by monitors, which nobody reads about.
func quiet(f route.Family) bool { return f == route.Health || f == route.Ready || f == route.Metrics }

// note a request in the access log.
func (a *API) note(r *http.Request, in *Request, w *accesslog.Writer, began time.Time, aborted bool) {
	if a.Log == nil || quiet(in.Family) {
		return
	}
	e := accesslog.Entry{
		Began: began, Method: r.Method, Agent: r.UserAgent(), Status: w.Status, Bytes: w.Bytes, Aborted: aborted,
		Trace: accesslog.TraceID(r.Header.Get("Traceparent")),
	}
	e.Path, _, _ = strings.Cut(r.RequestURI, "?")
	if in.Caller.Addr.IsValid() {
		e.Caller = in.Caller.Addr.String()
	}
	if in.Function != nil {
		e.Function = in.Function.Name()
	}
	a.Log.Write(e)
}

// overloaded answers while this edge has too much to do, with the original's words.
func (a *API) overloaded(w http.ResponseWriter, r *http.Request) bool {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	after, refuses := a.Shed.Refuses(path)
	if refuses {
		problem.Write(w, problem.Problem{
			Type: "urn:slimfaas:overloaded", Title: "Service temporarily overloaded. Please retry later.", Status: http.StatusTooManyRequests, RetryAfter: after,
			Detail: "This edge uses more of its processors than EDGE_RATE_LIMIT_CPU_HIGH allows; nothing was done with the request.",
		})
	}
	return refuses
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, in *Request, inside bool) {
	// RFC 9112 §6.1: a connection that has carried both framings must not carry another request, for whoever is in front may have
	// found another end to this one. net/http does not say that there was a length too.
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 && r.Header["Upgrade"] == nil {
		w.Header().Set("Connection", "close")
	}
	headers, preflight := a.Cors.Answer(r.Method, r.Header)
	for _, h := range headers {
		w.Header().Add(h.Name, h.Value)
	}
	if preflight {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if !inside && a.overloaded(w, r) {
		return
	}
	a.awaitTable(r)
	owner, _ := a.Functions.ByHost(r.Host)
	rt, refused := gate.Check(gate.Head{Method: r.Method, Target: r.RequestURI, Header: r.Header, Function: owner})
	if refused.Status != 0 {
		Refuse(w, refused)
		return
	}
	if r.ContentLength > a.MaxBody {
		TooLarge(w, a.MaxBody)
		return
	}
	if r.Body != http.NoBody {
		r.Body = http.MaxBytesReader(w, r.Body, a.MaxBody)
	}

	in.Route = rt
	peer := access.Peer(r.RemoteAddr)
	in.Caller = a.Access.Caller(peer, r.Header["X-Forwarded-For"])
	in.Internal = inside && peer.IsLoopback() || a.Access.Internal(in.Caller, a.Functions.TrustedAddr)
	if rt.Family.Internal() && (!in.Internal || !inside && !a.InternalOnPublic) {
		Refuse(w, gate.NotFound())
		return
	}
	if rt.Family.OfFunction() {
		f, ok := a.Find(rt.Name)
		switch {
		case !ok && !a.Synced():
			noTable(w)
			return
		case !ok || !in.MayCall(f, rt.Rest):
			Refuse(w, gate.NotFound())
			return
		}
		in.Function = f
	}
	if !a.opens(w, r, in) {
		return
	}
	h := a.handlers[rt.Family]
	if h == nil {
		Refuse(w, gate.NotFound())
		return
	}
	h(w, r, in)
}

// An edge has its table within milliseconds of its start, and a balancer that asks nobody sends it requests before.
const (
	tablePatience = 5 * time.Second // from the start
	mostAwaiting  = 1000
)

// awaitTable lets a request that needs the table wait for it while the edge starts.
func (a *API) awaitTable(r *http.Request) {
	if a.Synced() || a.AwaitSynced == nil {
		return
	}
	left := tablePatience - time.Since(a.began)
	if left <= 0 {
		return
	}
	if quiet(route.Parse(r.RequestURI).Family) {
		return
	}
	defer a.awaiting.Add(-1)
	if a.awaiting.Add(1) > mostAwaiting {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), left)
	defer cancel()
	_ = a.AwaitSynced(ctx) // what comes then is told by Synced
}

// opens says whether the caller has the key that is asked for here, and answers where it has not.
func (a *API) opens(w http.ResponseWriter, r *http.Request, in *Request) bool {
	var holders []string
	needed := in.Family.Keyed() && a.Keys != nil
	if in.Function != nil && in.Function.Spec().RequireKey && in.Family != route.AsyncCallback {
		needed, holders = true, in.Function.Spec().KeyHolders
	}
	if !needed || in.Internal {
		return true
	}
	name, known := a.Keys.Holder(r.Header)
	if known && apikey.Opens(name, holders) {
		return true
	}
	p := problem.Problem{
		Status: http.StatusUnauthorized, Type: "urn:slimfaas:key-required", Title: "A key is required",
		Detail: "Show one in the header SlimFaas-Api-Key, or as Authorization: Bearer. Keys are given by whoever runs this SlimFaas (EDGE_API_KEYS_FILE).",
	}
	switch {
	case known:
		p.Status, p.Type, p.Title = http.StatusForbidden, "urn:slimfaas:key-not-for-this", "The key does not open this"
		p.Detail = "The function is for holders of other keys (SlimFaas/RequireKey)."
	default:
		w.Header().Set("WWW-Authenticate", `Bearer realm="slimfaas"`)
	}
	problem.Write(w, p)
	return false
}

// Find looks a function up by its exact name, and only if the whole is no name, as name.namespace.
func (a *API) Find(name string) (*replica.Function, bool) {
	if f, ok := a.Functions.Get(name); ok {
		return f, true
	}
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return nil, false
	}
	f, ok := a.Functions.Get(name[:dot])
	if !ok || f.Record().GetNamespace() != name[dot+1:] {
		return nil, false
	}
	return f, true
}

// MayCall says whether the caller may call the path (raw, as sent) of the function.
func (in *Request) MayCall(f *replica.Function, path string) bool {
	return in.Internal || f.Spec().PathVisibility(path) == function.Public
}

// Refuse writes a refusal of the gate as problem+json.
func Refuse(w http.ResponseWriter, refused gate.Refusal) {
	if len(refused.Allow) > 0 {
		w.Header().Set("Allow", strings.Join(refused.Allow, ", "))
	}
	problem.Write(w, problem.Problem{
		Type: "urn:slimfaas:" + refused.Type, Title: refused.Title, Status: refused.Status, Detail: refused.Detail,
	})
}

// NotImplemented answers a route that exists and is not built yet.
func NotImplemented(w http.ResponseWriter, detail string) {
	problem.Write(w, problem.Problem{
		Type: "urn:slimfaas:not-yet", Title: "Not built yet", Status: http.StatusNotImplemented, Detail: detail,
	})
}
