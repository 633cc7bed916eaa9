package httpapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestTheRootSaysWhatThereIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.api.HandleHome("edge <1>")
	b.set.Apply(&wire.FunctionRecord{
		Name: "mistaken", Version: &wire.Version{Epoch: 1, Seq: 1}, Reason: "its <annotations>", Problems: []string{"x"},
	}, &function.Specification{})
	var home struct {
		Version   string
		Functions []struct {
			Name, State, Reason          string
			NumberReady, NumberRequested int
		}
		Links []struct{ Path string }
	}
	w := do(b.api.Public(), outsider, "GET", "/", "Accept: */*")
	if err := json.Unmarshal(w.Body.Bytes(), &home); err != nil || w.Code != 200 {
		t.Fatal(w.Code, err)
	}
	states := map[string]string{}
	for _, f := range home.Functions {
		states[f.Name] = f.State
	}
	if home.Version != "edge <1>" || len(home.Links) == 0 || states["fibonacci"] != "Ready" || states["secret"] != "Asleep" || states["mistaken"] != "Broken" {
		t.Errorf("%s", w.Body)
	}
	w = do(b.api.Public(), outsider, "GET", "/", "Accept: text/html")
	page := w.Body.String()
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") || !strings.Contains(page, "<td>fibonacci<td>Ready<td>1 of 2") ||
		!strings.Contains(page, "its &lt;annotations&gt;") || strings.Contains(page, "<annotations>") {
		t.Errorf("%v %s", w.Header(), page)
	}
	for _, l := range home.Links {
		if w := do(b.api.Public(), outsider, "GET", l.Path); l.Path != "/metrics" && w.Code != 200 {
			t.Errorf("the link %s leads to %d", l.Path, w.Code)
		}
	}
}
