// Package gate decides whether a request is acceptable at all: method, target, headers, protocol. It answers with the route
// it is for or with a refusal. Pure; everything net/http lets through that we do not want is stopped here, before a function
// or the queue hears of it.
package gate

import (
	"net/textproto"
	"strings"

	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/function"
)

// Limits of one request.
const (
	MaxHeaders     = 100
	MaxHeaderBytes = 16 << 10 // names and values
	MaxPath        = 4 << 10  // bytes, as sent
	MaxQuery       = 8 << 10
)

// Head is what the gate looks at.
type Head struct {
	Method string
	Target string              // the request target as sent
	Header map[string][]string // canonical names
	// Function whose own the request's host name is; empty: the target says what it is for.
	Function string
}

// Refusal says why a request is not taken, ready for problem+json. Status 0 is no refusal.
type Refusal struct {
	Status int
	Type   string // behind urn:slimfaas:
	Title  string
	Detail string
	Allow  []string // with 405
}

// Check decides. With a zero Refusal the route is one the edge answers, by a method it takes there.
func Check(h Head) (route.Route, Refusal) {
	if refused := size(h); refused.Status != 0 {
		return route.Route{}, refused
	}
	if strings.ContainsRune(h.Target, 0) {
		return route.Route{}, bad("the request target contains a NUL")
	}
	if refused := upgrade(h.Header); refused.Status != 0 {
		return route.Route{}, refused
	}
	r := route.Parse(h.Target)
	if h.Function != "" {
		r = route.Own(h.Function, h.Target)
	}
	if h.Method == "CONNECT" || h.Target == "*" {
		return r, method(h.Method, route.Function.Methods())
	}
	if r.Family == route.Unknown {
		return r, NotFound()
	}
	if r.Family.OfFunction() && !function.ValidName(r.Name) {
		return r, NotFound()
	}
	for _, m := range r.Family.Methods() {
		if m == h.Method {
			return r, Refusal{}
		}
	}
	return r, method(h.Method, r.Family.Methods())
}

// NotFound is the one answer for what does not exist and for what the caller may not see.
func NotFound() Refusal {
	return Refusal{
		Status: 404, Type: "not-found", Title: "Not found",
		Detail: "There is nothing at this path, or it is not for this caller. GET /status-functions lists the functions.",
	}
}

func bad(detail string) Refusal {
	return Refusal{Status: 400, Type: "bad-request", Title: "Bad request", Detail: detail}
}

func method(m string, allow []string) Refusal {
	return Refusal{
		Status: 405, Type: "method-not-allowed", Title: "Method not allowed", Allow: allow,
		Detail: m + " is not answered here; " + strings.Join(allow, ", ") + " is.",
	}
}

func size(h Head) Refusal {
	path, query, _ := strings.Cut(h.Target, "?")
	if len(path) > MaxPath || len(query) > MaxQuery {
		return Refusal{
			Status: 414, Type: "uri-too-long", Title: "URI too long",
			Detail: "A path may have 4096 bytes, a query 8192.",
		}
	}
	count, bytes := 0, 0
	for name, values := range h.Header {
		for _, v := range values {
			count++
			bytes += len(name) + len(v)
		}
	}
	if count > MaxHeaders || bytes > MaxHeaderBytes {
		return Refusal{
			Status: 431, Type: "headers-too-large", Title: "Request header fields too large",
			Detail: "A request may have 100 header lines of 16384 bytes together.",
		}
	}
	return Refusal{}
}

// upgrade lets only websocket through: an h2c upgrade would smuggle requests past this gate.
func upgrade(header map[string][]string) Refusal {
	values := header["Upgrade"]
	if len(values) == 0 {
		return Refusal{}
	}
	if len(values) == 1 && strings.EqualFold(textproto.TrimString(values[0]), "websocket") {
		return Refusal{}
	}
	return bad("Upgrade is answered for websocket only; HTTP/2 is spoken by prior knowledge.")
}
