package httpapi_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
)

func TestOnlySomebodyWhoLooksGetsThePage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method string
		header http.Header
		want   bool
	}{
		{"GET", http.Header{"Accept": {"text/html,application/xhtml+xml,*/*;q=0.8"}}, true},
		{"GET", http.Header{"Accept": {"image/png", "TEXT/HTML;q=0.9"}, "Sec-Fetch-Mode": {"navigate"}}, true},
		{"GET", http.Header{"Accept": {"text/html"}, "Sec-Fetch-Mode": {"cors"}}, false},
		{"GET", http.Header{"Accept": {"text/html"}, "Upgrade": {"websocket"}}, false},
		{"POST", http.Header{"Accept": {"text/html"}}, false},
		{"GET", http.Header{"Accept": {"*/*"}}, false},
		{"GET", http.Header{"Accept": {"application/json, text/htmlx"}}, false},
		{"GET", nil, false},
	} {
		r := httptest.NewRequest(c.method, "/function/f/", nil)
		for k, v := range c.header {
			r.Header[k] = v
		}
		if got := httpapi.WantsPage(r); got != c.want {
			t.Errorf("%s %v: %v", c.method, c.header, got)
		}
	}
}
