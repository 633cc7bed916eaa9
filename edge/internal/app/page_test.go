package app

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestThePageNamesTheFunctionAndNobodyKeepsIt(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	waitingPage(w, "<f>")
	body := w.Body.String()
	if w.Code != 503 || !strings.Contains(body, "&lt;f&gt; is waking") || strings.Contains(body, "<f>") {
		t.Errorf("%d %s", w.Code, body)
	}
	if h := w.Header(); h.Get("Refresh") != "1" || h.Get("Cache-Control") != "no-store" || !strings.HasPrefix(h.Get("Content-Type"), "text/html") {
		t.Errorf("%v", h)
	}
}
