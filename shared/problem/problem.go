// Package problem writes our own error answers as application/problem+json (RFC 9457), so that a person who reads one knows
// what to do next, and maps the result codes of the wire to HTTP statuses in one place.
package problem

import (
	"encoding/json"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// ContentType of every answer written here.
const ContentType = "application/problem+json"

// Types used by more than one program. A type is part of the interface: it is never reworded.
const (
	TypeInvalid     = "urn:slimfaas:invalid"
	TypeNotFound    = "urn:slimfaas:not-found"
	TypeConflict    = "urn:slimfaas:conflict"
	TypeStale       = "urn:slimfaas:stale"
	TypeTooLarge    = "urn:slimfaas:too-large"
	TypeFull        = "urn:slimfaas:full"
	TypeUnavailable = "urn:slimfaas:unavailable"
	TypeUnknown     = "urn:slimfaas:outcome-unknown"
	TypeInternal    = "urn:slimfaas:internal"
	TypeNoReplica   = "urn:slimfaas:no-replica"
	TypeForbidden   = "urn:slimfaas:unauthorized"
)

// Problem is one error answer.
type Problem struct {
	Type   string // urn:slimfaas:…; empty: about:blank
	Title  string // the same for every problem of a type; empty: the status text
	Status int    // 0: 500
	Detail string // what happened this time and what to do about it
	// RetryAfter becomes the Retry-After header in whole seconds, rounded up. 0: no header.
	RetryAfter time.Duration
	// Extra members of the JSON object, beside those above, which it cannot replace.
	Extra map[string]any
}

// Write sends p. Headers that belong to the answer may be set on w before; a Content-Length set before is dropped.
func Write(w http.ResponseWriter, p Problem) {
	if p.Status == 0 {
		p.Status = http.StatusInternalServerError
	}
	if p.Type == "" {
		p.Type = "about:blank"
	}
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	members := make(map[string]any, len(p.Extra)+4)
	maps.Copy(members, p.Extra)
	members["type"], members["title"], members["status"] = p.Type, p.Title, p.Status
	if p.Detail != "" {
		members["detail"] = p.Detail
	}
	body, err := json.Marshal(members)
	if err != nil { // an Extra that is no JSON: a bug of ours that must not hide the problem itself
		body, _ = json.Marshal(map[string]any{"type": p.Type, "title": p.Title, "status": p.Status, "detail": p.Detail})
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", ContentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(p.RetryAfter.Seconds())), 10))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}

// codes is the one table from the wire to HTTP.
var codes = map[wire.Code]Problem{
	wire.Code_CODE_INVALID:     {Type: TypeInvalid, Title: "The request is malformed", Status: http.StatusBadRequest},
	wire.Code_CODE_NOT_FOUND:   {Type: TypeNotFound, Title: "Not found", Status: http.StatusNotFound},
	wire.Code_CODE_CONFLICT:    {Type: TypeConflict, Title: "The current state forbids it", Status: http.StatusConflict},
	wire.Code_CODE_STALE:       {Type: TypeStale, Title: "Superseded", Status: http.StatusConflict},
	wire.Code_CODE_TOO_LARGE:   {Type: TypeTooLarge, Title: "Too large", Status: http.StatusRequestEntityTooLarge},
	wire.Code_CODE_FULL:        {Type: TypeFull, Title: "A limit is reached", Status: http.StatusTooManyRequests, RetryAfter: time.Second},
	wire.Code_CODE_UNAVAILABLE: {Type: TypeUnavailable, Title: "The queue cannot be reached", Status: http.StatusServiceUnavailable, RetryAfter: time.Second},
	wire.Code_CODE_UNKNOWN:     {Type: TypeUnknown, Title: "It is not known whether the request was carried out", Status: http.StatusServiceUnavailable, RetryAfter: time.Second},
	wire.Code_CODE_INTERNAL:    {Type: TypeInternal, Title: "Internal error", Status: http.StatusInternalServerError},
}

// FromCode is the problem of a result code, with the words of this case. A code without a meaning here (also CODE_OK) is
// an internal error.
func FromCode(code wire.Code, detail string) Problem {
	p, ok := codes[code]
	if !ok {
		p = codes[wire.Code_CODE_INTERNAL]
	}
	p.Detail = detail
	return p
}

// Status is the HTTP status of a result code; CODE_OK is 200.
func Status(code wire.Code) int {
	if code == wire.Code_CODE_OK {
		return http.StatusOK
	}
	return FromCode(code, "").Status
}
