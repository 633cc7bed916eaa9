package app

import (
	"html"
	"net/http"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
)

// pageAfter is how long a browser is kept waiting before it gets the waiting page: most functions are awake by then, and nobody
// sees it.
const pageAfter = 700 * time.Millisecond

// waitingPage loads again by itself, each second, until the function answers. Its status keeps it out of caches and search
// engines.
func waitingPage(w http.ResponseWriter, function string) {
	httpapi.PageHeaders(w)
	h := w.Header()
	h.Set("Retry-After", "1")
	h.Set("Refresh", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	page := httpapi.PageHead(function+" is waking", `<meta http-equiv="refresh" content="1">`) +
		"<p><strong>" + html.EscapeString(function) + "</strong> was asleep and is waking. This page loads again by itself.</p></body></html>\n"
	_, _ = w.Write([]byte(page)) // nobody is left to tell of an error
}
