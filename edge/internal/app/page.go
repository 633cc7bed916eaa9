package app

import (
	"html"
	"net/http"
	"strings"
	"time"
)

// pageAfter is how long a browser is kept waiting before it gets the waiting page: most functions are awake by then, and nobody
// sees it.
const pageAfter = 700 * time.Millisecond

// wantsPage says whether somebody looks at the answer in a browser's window.
func wantsPage(r *http.Request) bool {
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

// waitingPage loads again by itself, each second, until the function answers. Its status keeps it out of caches and search
// engines.
func waitingPage(w http.ResponseWriter, function string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Retry-After", "1")
	h.Set("Refresh", "1")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.WriteHeader(http.StatusServiceUnavailable)
	name := html.EscapeString(function)
	_, _ = w.Write([]byte(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="1">
<title>` + name + ` is waking</title>
<style>body{font:1.1rem/1.5 system-ui,sans-serif;margin:30vh auto 0;max-width:32rem;padding:0 1rem;color:#333}
@media (prefers-color-scheme:dark){body{background:#181818;color:#ddd}}</style></head>
<body><p><strong>` + name + `</strong> was asleep and is waking. This page loads again by itself.</p></body></html>
`)) // nobody is left to tell of an error
}
