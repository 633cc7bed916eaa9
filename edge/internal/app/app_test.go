package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/app"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

func options(t *testing.T) app.Options {
	t.Helper()
	nobody := refusing(t)
	return app.Options{
		Name: "edge-0", PublicAddress: "127.0.0.1:0", InternalAddress: "127.0.0.1:0", AdminAddress: "127.0.0.1:0",
		QueueAPI: []string{"http://" + nobody}, BusURLs: []string{"nats://" + nobody}, Cors: gate.NewCors("*"), PublicMetrics: true,
		MaxBody: 1 << 20, ParkedPer: 10, ParkedTotal: 10, MaxHeld: 10, MaxHeldBytes: 1 << 20, AsyncMaxBody: 1 << 20,
		Taking: 10, TakingBytes: 1 << 20, EventConcurrency: 10, Drain: time.Second,
	}
}

// refusing is an address nobody listens on.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := testkit.Client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// An edge starts, answers truthfully and stops in time while there is no queue node and no bus.
func TestAnEdgeAlone(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a, err := app.New(ctx, options(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	public, admin := "http://"+a.PublicAddr().String(), "http://"+a.AdminAddr().String()
	for url, want := range map[string]string{
		public + "/health":           "200 OK",
		public + "/ready":            "503 NOT_READY",
		admin + "/ready":             "503 NOT_READY",
		public + "/function/fib/x":   "503",
		public + "/status-functions": "200 []",
		public + "/metrics":          "200",
		admin + "/metrics":           "200",
		public + "/nowhere":          "404",
	} {
		code, body := get(t, url)
		if got := fmt.Sprint(code, " ", body); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %.80s, want %s", url, got, want)
		}
	}
	if _, body := get(t, admin+"/metrics"); !strings.Contains(body, "slimfaas_edge_bus_connected 0") {
		t.Error("the edge's own figures are missing")
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("stopped with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the edge does not stop")
	}
}

// With a certificate the public listener speaks TLS and HTTP/2 and nothing else; the others are as ever.
func TestThePublicListenerWithACertificate(t *testing.T) {
	t.Parallel()
	authority, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key, err := authority.Issue(time.Now().Add(time.Hour), "edge.example")
	if err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.CertFile, o.KeyFile = filepath.Join(t.TempDir(), "crt"), filepath.Join(t.TempDir(), "key")
	if err := errors.Join(os.WriteFile(o.CertFile, certificate, 0o600), os.WriteFile(o.KeyFile, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a, err := app.New(ctx, o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	if err := a.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM())
	for _, h2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "edge.example", MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: h2}
		resp, err := (&http.Client{Transport: transport}).Get("https://" + a.PublicAddr().String() + "/health")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		transport.CloseIdleConnections()
		if resp.StatusCode != 200 || (resp.ProtoMajor == 2) != h2 {
			t.Errorf("HTTP/2 %v: %s %s", h2, resp.Proto, resp.Status)
		}
	}
	if code, _ := get(t, "http://"+a.PublicAddr().String()+"/health"); code != 400 {
		t.Errorf("unencrypted: %d", code)
	}
	if code, _ := get(t, "http://"+a.InternalAddr().String()+"/health"); code != 200 {
		t.Errorf("internal: %d", code)
	}
}
