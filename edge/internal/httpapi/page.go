package httpapi

import (
	"html"
	"net/http"
	"strings"
)

// WantsPage says whether somebody looks at the answer in a browser's window.
func WantsPage(r *http.Request) bool {
	if r.Method != http.MethodGet || r.Header.Get("Upgrade") != "" {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" && mode != "navigate" {
		return false // a script or a picture of a page
	}
	for _, line := range r.Header["Accept"] {
		for media := range strings.SplitSeq(line, ",") {
			media, _, _ = strings.Cut(media, ";")
			if strings.EqualFold(strings.TrimSpace(media), "text/html") {
				return true
			}
		}
	}
	return false
}

// PageHeaders are those of every page of ours: nothing is kept, nothing is loaded, nothing is run.
func PageHeaders(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
}

// PageHead begins a page. more goes into its head as it is.
func PageHead(title, more string) string {
	return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">` + more + `
<title>` + html.EscapeString(title) + `</title>
<style>body{font:1.1rem/1.5 system-ui,sans-serif;margin:10vh auto 0;max-width:60rem;padding:0 1rem;color:#333}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
@media (prefers-color-scheme:dark){body{background:#181818;color:#ddd}a{color:#8bf}}</style></head>
<body>`
}
