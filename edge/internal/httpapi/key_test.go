package httpapi_test

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/apikey"
	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestKeysOpenWhatAsksForThem(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("ci the-key-of-the-ci\npartner the-key-of-a-partner\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := apikey.Open(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	const ci, partner, bearer, unknown = "SlimFaas-Api-Key: the-key-of-the-ci", "SlimFaas-Api-Key: the-key-of-a-partner",
		"Authorization: Bearer the-key-of-the-ci", "SlimFaas-Api-Key: the-key-of-nobody"
	for _, c := range []struct {
		keys                 *apikey.Keys
		peer, target, header string
		status               int
	}{
		{nil, outsider, "/wake-function/fibonacci", "", 204},
		{nil, outsider, "/function/keyed/x", "", 401},
		{nil, outsider, "/function/keyed/x", ci, 401},
		{nil, insider, "/function/keyed/x", "", 200},
		{keys, outsider, "/wake-function/fibonacci", "", 401},
		{keys, outsider, "/wake-functions", unknown, 401},
		{keys, outsider, "/wake-functions", ci, 204},
		{keys, outsider, "/wake-function/fibonacci", bearer, 204},
		{keys, insider, "/wake-function/fibonacci", "", 204},
		{keys, outsider, "/publish-event/e", "", 401},
		{keys, outsider, "/publish-event/e", partner, 200},
		{keys, outsider, "/function/fibonacci/x", "", 200},
		{keys, outsider, "/function/keyed/x", "", 401},
		{keys, outsider, "/function/keyed/x", bearer, 200},
		{keys, outsider, "/function/partners/x", ci, 403},
		{keys, outsider, "/function/partners/x", partner, 200},
		{keys, outsider, "/function/nothing/x", "", 404},
		{keys, outsider, "/status-functions", "", 200},
	} {
		b := setup(t)
		b.api.Keys = c.keys
		b.api.Handle(route.PublishEvent, func(w http.ResponseWriter, _ *http.Request, _ *httpapi.Request) {
			_, _ = io.WriteString(w, "published")
		})
		for name, holders := range map[string][]string{"keyed": nil, "partners": {"partner"}} {
			b.set.Apply(&wire.FunctionRecord{Name: name, Version: &wire.Version{Epoch: 1, Seq: 1}}, &function.Specification{RequireKey: true, KeyHolders: holders})
		}
		var headers []string
		if c.header != "" {
			headers = append(headers, c.header)
		}
		w := do(b.api.Public(), c.peer, "GET", c.target, headers...)
		if w.Code != c.status {
			t.Errorf("%s from %s with %q and keys %v: %d, want %d", c.target, c.peer, c.header, c.keys != nil, w.Code, c.status)
		}
		if asks := w.Header().Get("WWW-Authenticate") != ""; asks != (w.Code == 401) {
			t.Errorf("%s: %d with WWW-Authenticate: %v", c.target, w.Code, asks)
		}
	}
}
