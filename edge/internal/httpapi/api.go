// Package httpapi is the HTTP surface: it lets a request through the gate, finds its function, checks access, and hands it
// to the handler of its route family. One file per family; what a handler does beyond decoding and encoding is a use case
// that app hands in.
package httpapi

import (
	"net/http"
	"strings"

	"github.com/slimfaas/slimfaas/edge/internal/access"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
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
	// InternalOnPublic answers the internal routes on the public listener too, to internal callers.
	InternalOnPublic bool
	// Synced says whether a whole table has been read: before, an unknown function is 503, not 404.
	Synced func() bool
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
}

// New returns an API that answers the families it can answer from the table alone; Handle adds the others.
func New(o Options) *API {
	a := &API{Options: o, handlers: map[route.Family]Handler{}}
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
	headers, preflight := a.Cors.Answer(r.Method, r.Header)
	for _, h := range headers {
		w.Header().Add(h.Name, h.Value)
	}
	if preflight {
		w.WriteHeader(http.StatusNoContent)
		return
	}
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
	r.Body = http.MaxBytesReader(w, r.Body, a.MaxBody)

	in := &Request{Route: rt}
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
	h := a.handlers[rt.Family]
	if h == nil {
		Refuse(w, gate.NotFound())
		return
	}
	h(w, r, in)
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
