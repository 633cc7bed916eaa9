package httpapi_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// eventsBundle is the surface with a publisher the test plays: "inside" has a private subscription.
type eventsBundle struct {
	*bundle
	published []*wire.StoredRequest
	ended     int
	err       error
}

func setupEvents(t *testing.T) *eventsBundle {
	t.Helper()
	b := &eventsBundle{bundle: setup(t)}
	b.api.MaxBody = 1 << 20
	b.api.HandleEvents(httpapi.Events{
		Publish: func(_ context.Context, event string, internal bool, request *wire.StoredRequest, ended func()) (<-chan []*wire.EventResult, bool, error) {
			defer ended()
			b.ended++
			if event != "reload" && (event != "inside" || !internal) {
				return nil, false, nil
			}
			b.published = append(b.published, request)
			report := make(chan []*wire.EventResult, 1)
			report <- []*wire.EventResult{{Function: "f", Replica: "fn-f-0", Status: 200, Tries: 2, DurationMs: 12}, {Function: "f", Replica: "fn-f-1", Tries: 1, Error: "connection refused"}}
			return report, true, b.err
		},
		Budget: message.NewBudget(1, 1<<20), MaxBody: 1000,
	})
	return b
}

func TestPublishAnswers(t *testing.T) {
	t.Parallel()
	b := setupEvents(t)
	for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"} {
		for _, target := range []string{"/publish-event/reload", "/publish-event/reload/a%2Fb/?x=1"} {
			if w := do(b.api.Public(), outsider, method, target); w.Code != 204 || w.Body.Len() != 0 {
				t.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
			}
		}
	}
	if got := b.published[1]; got.GetMethod() != "GET" || got.GetPath() != "/a%2Fb/" || got.GetQuery() != "x=1" {
		t.Errorf("published %v", got)
	}
	wantProblem(t, "unknown", do(b.api.Public(), outsider, "POST", "/publish-event/toto"), 404)
	wantProblem(t, "another case", do(b.api.Public(), outsider, "POST", "/publish-event/Reload"), 404)
	wantProblem(t, "private, from outside", do(b.api.Public(), outsider, "POST", "/publish-event/inside", "X-Forwarded-For: 10.0.0.1"), 404)
	if w := do(b.api.Public(), insider, "POST", "/publish-event/inside"); w.Code != 204 {
		t.Errorf("private, from inside: %d", w.Code)
	}
	for preference, want := range map[string]int{
		"return=representation": 200, `RETURN="representation"; x=1`: 200, "respond-async, return=representation": 200, "return=minimal": 204, "representation": 204,
	} {
		w := do(b.api.Public(), outsider, "POST", "/publish-event/reload", "Prefer: "+preference)
		if w.Code != want {
			t.Errorf("Prefer: %s: %d, want %d", preference, w.Code, want)
		}
		if report := `[{"Function":"f","Replica":"fn-f-0","Status":200,"Tries":2,"Error":"","DurationMs":12},{"Function":"f","Replica":"fn-f-1","Status":0,"Tries":1,"Error":"connection refused","DurationMs":0}]`; want == 200 && w.Body.String() != report {
			t.Errorf("report %s", w.Body)
		}
	}
	r := httptest.NewRequest("POST", "/publish-event/reload", strings.NewReader(strings.Repeat("x", 1001)))
	r.RemoteAddr = outsider
	w := httptest.NewRecorder()
	before := b.ended
	b.api.Public().ServeHTTP(w, r)
	wantProblem(t, "a large body", w, 413)
	if b.ended != before {
		t.Error("a body over the limit was published")
	}
	b.err = errors.New("stopping")
	wantProblem(t, "stopping", do(b.api.Public(), outsider, "POST", "/publish-event/reload"), 503)
	b.synced = false
	wantProblem(t, "no table yet", do(b.api.Public(), outsider, "POST", "/publish-event/reload"), 503)
}
