package problem

import (
	"encoding/json"
	"maps"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestWriteKeepsItsMembersAndRoundsRetryAfterUp(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	w.Header().Set("Content-Length", "3")
	Write(w, Problem{
		Type: TypeNoReplica, Status: 503, Detail: "no replica of fibonacci became ready in 30 s", RetryAfter: 1200 * time.Millisecond,
		Extra: map[string]any{"outcome": "none", "status": 200},
	})
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"type": TypeNoReplica, "title": "Service Unavailable", "status": 503.0, "detail": "no replica of fibonacci became ready in 30 s", "outcome": "none"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if w.Code != 503 || w.Header().Get("Retry-After") != "2" || w.Header().Get("Content-Type") != ContentType || w.Header().Get("Content-Length") != "" {
		t.Errorf("status %d, headers %v", w.Code, w.Header())
	}
}

func TestExtraThatIsNoJSONDoesNotHideTheProblem(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	Write(w, Problem{Detail: "still here", Extra: map[string]any{"f": func() {}}})
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got["detail"] != "still here" || w.Code != 500 {
		t.Errorf("status %d body %q: %v", w.Code, w.Body, err)
	}
}

func TestEveryCodeHasAStatus(t *testing.T) {
	t.Parallel()
	for _, n := range slices.Sorted(maps.Keys(wire.Code_name)) {
		code := wire.Code(n)
		if code == wire.Code_CODE_UNSPECIFIED || code == wire.Code_CODE_OK {
			continue
		}
		if _, ok := codes[code]; !ok {
			t.Errorf("%v has no status of its own", code)
		}
	}
	if Status(wire.Code_CODE_OK) != 200 || Status(wire.Code(99)) != 500 || Status(wire.Code_CODE_FULL) != 429 {
		t.Error("OK, an unknown code or full has the wrong status")
	}
}
