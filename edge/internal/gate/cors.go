package gate

import (
	"slices"
	"strings"
)

// Cors is who may read answers from a browser. The zero Cors allows nobody.
type Cors struct {
	any     bool
	origins []string
}

// NewCors reads `*` or a comma list of origins. The original did not trim the items; a blank helps nobody, so we do.
func NewCors(allow string) Cors {
	if strings.TrimSpace(allow) == "*" {
		return Cors{any: true}
	}
	var c Cors
	for o := range strings.SplitSeq(allow, ",") {
		if o = strings.TrimSpace(o); o != "" {
			c.origins = append(c.origins, strings.TrimSuffix(o, "/"))
		}
	}
	return c
}

// Header is one response header.
type Header struct{ Name, Value string }

// Answer gives the headers for a request and says whether it is a preflight, to be answered 204 here and never forwarded.
func (c Cors) Answer(method string, header map[string][]string) (headers []Header, preflight bool) {
	origin := first(header, "Origin")
	if origin == "" {
		return nil, false
	}
	asked := first(header, "Access-Control-Request-Method")
	preflight = method == "OPTIONS" && asked != ""
	switch {
	case c.any:
		headers = append(headers, Header{"Access-Control-Allow-Origin", "*"})
	case slices.Contains(c.origins, origin):
		headers = append(headers, Header{"Access-Control-Allow-Origin", origin}, Header{"Vary", "Origin"})
	default:
		return nil, preflight
	}
	if preflight {
		headers = append(headers, Header{"Access-Control-Allow-Methods", asked})
		if names := strings.Join(header["Access-Control-Request-Headers"], ", "); names != "" {
			headers = append(headers, Header{"Access-Control-Allow-Headers", names})
		}
	}
	return headers, preflight
}

func first(header map[string][]string, name string) string {
	if v := header[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}
