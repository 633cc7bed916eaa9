package serve

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// certified is a program with a certificate.
func certified(t *testing.T, a *tlsconf.Authority, names ...string) *tlsconf.Files {
	t.Helper()
	dir := t.TempDir()
	if err := a.Write(dir, nil, time.Now().Add(time.Hour), names...); err != nil {
		t.Fatal(err)
	}
	f, err := tlsconf.Open(dir, slog.New(slog.DiscardHandler), names...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestWithTLSATokenNeedsTheCertificateOfItsRole(t *testing.T) {
	t.Parallel()
	a, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	handler := RequireToken(map[string]string{"edge": "e", "scaler": "s"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto+" "+Role(r.Context()))
	}))
	url, _, _ := start(t, Options{Handler: handler, TLS: certified(t, a, "queue").Server(tlsconf.Names("edge", "scaler"))}, time.Second)
	get := func(url, token string, config *tls.Config) (int, string) {
		t.Helper()
		var p http.Protocols
		p.SetHTTP2(config != nil)
		p.SetHTTP1(config == nil)
		transport := &http.Transport{Protocols: &p, TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		answer, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			return 0, err.Error()
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(body)
	}
	secure := strings.Replace(url, "http://", "https://", 1)
	edge := certified(t, a, "edge").Client(tlsconf.Names("queue"))
	for _, c := range []struct {
		what, url, token string
		config           *tls.Config
		status           int
		body             string
	}{
		{"an edge", secure, "e", edge, http.StatusOK, "HTTP/2.0 edge"},
		{"an edge with the scaler's token", secure, "s", edge, http.StatusUnauthorized, ""},
		{"an edge without a token", secure, "", edge, http.StatusUnauthorized, ""},
		{"a node of the queue", secure, "e", certified(t, a, "queue").Client(tlsconf.Names("queue")), 0, ""},
		{"no certificate", secure, "e", &tls.Config{InsecureSkipVerify: true}, 0, ""},
		{"no TLS", url, "e", nil, http.StatusBadRequest, ""},
	} {
		if status, body := get(c.url, c.token, c.config); status != c.status || c.body != "" && body != c.body {
			t.Errorf("%s: %d %s", c.what, status, body)
		}
	}
}
