package app

import (
	"crypto/tls"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

func newAuthority(t *testing.T) *tlsconf.Authority {
	t.Helper()
	a, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func write(t *testing.T, a *tlsconf.Authority, dir string, names ...string) {
	t.Helper()
	if err := a.Write(dir, nil, time.Now().Add(time.Hour), names...); err != nil {
		t.Fatal(err)
	}
}

func TestWithCertificatesEveryLinkIsTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c := newCluster(t, 3, func(config *Config) {
		dir := t.TempDir() // the secrets of all, and a certificate of its own
		if err := os.CopyFS(dir, os.DirFS(config.SecretsDir)); err != nil {
			t.Fatal(err)
		}
		write(t, a, dir, "queue", config.Name)
		config.SecretsDir = dir
	})
	leader := c.leader()
	for _, r := range c.nodes {
		c.eventually("routes to both others", func() bool { return len(r.bus.Peers()) == 2 })
	}
	edgeDir := t.TempDir()
	write(t, a, edgeDir, "edge")
	edge, err := tlsconf.Open(edgeDir, slog.New(slog.DiscardHandler), "edge")
	if err != nil {
		t.Fatal(err)
	}
	secure := edge.Client(tlsconf.Names("queue"))
	var endpoints []string
	for _, m := range c.members {
		endpoints = append(endpoints, "https://"+m.APIAddress)
	}
	client := queueclient.New(queueclient.Options{Endpoints: endpoints, Token: c.tokens["edge"], Name: "edge-0", TLS: secure})
	defer client.Close()
	if r, err := client.Do(t.Context(), accept(newID(), "f", "x")); err != nil || r.GetCode() != wire.Code_CODE_OK {
		t.Fatal(r, err)
	}
	// What is true of one node's RPC is true of all: no TLS, no certificate, the wrong token for the certificate.
	address, _ := leader.Addr()
	for what, try := range map[string]struct {
		scheme, token string
		config        *tls.Config
	}{
		"no TLS":                    {"http://", "edge", nil},
		"no certificate":            {"https://", "edge", &tls.Config{InsecureSkipVerify: true}},
		"an edge as a queue node":   {"https://", "queue", secure},
		"an edge without its token": {"https://", "", secure},
	} {
		var protocols http.Protocols
		protocols.SetHTTP2(true)
		protocols.SetHTTP1(try.config == nil)
		transport := &http.Transport{Protocols: &protocols, TLSClientConfig: try.config.Clone()}
		t.Cleanup(transport.CloseIdleConnections)
		stub := wireconnect.NewQueueServiceClient(&http.Client{Transport: transport}, try.scheme+address.String(), connect.WithInterceptors(bearer(c.tokens[try.token])))
		if _, err := stub.Cluster(t.Context(), connect.NewRequest(&wire.ClusterRequest{})); err == nil {
			t.Errorf("%s: answered", what)
		}
	}
}

func TestANodeThatOthersReachNeedsCertificatesOrAPermission(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t, secrets: t.TempDir(), tokens: map[string]string{}}
	c.writeSecrets()
	config := Config{
		Name: "queue-0", DataDir: filepath.Join(t.TempDir(), "data"), SecretsDir: c.secrets, Log: slog.New(slog.DiscardHandler),
		RaftAddress: "127.0.0.1:0", APIAddress: "0.0.0.0:0", BusAddress: "127.0.0.1:0", RoutesAddress: "127.0.0.1:0", AdminAddress: "127.0.0.1:0",
	}
	if _, err := New(t.Context(), config); err == nil || !strings.Contains(err.Error(), "API: refusing to serve an internal link unencrypted") {
		t.Fatalf("refused with %v", err)
	}
	a := newAuthority(t)
	write(t, a, c.secrets, "queue", "queue-7")
	if _, err := New(t.Context(), config); err == nil || !strings.Contains(err.Error(), `needs "queue-0"`) {
		t.Fatalf("refused with %v", err)
	}
	if _, err := os.Stat(config.DataDir); err == nil {
		t.Error("a node that was refused has made its data directory")
	}
	write(t, a, c.secrets, "queue", "queue-0")
	c.start(config)
}

func TestWithCertificatesTheNamesAreThoseOfTheLiveMembership(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	certified := func(config *Config) {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(config.SecretsDir)); err != nil {
			t.Fatal(err)
		}
		write(t, a, dir, "queue", config.Name)
		config.SecretsDir = dir
	}
	c := newCluster(t, 1, certified)
	c.leader()
	c.join("queue-1", certified)
	c.join("queue-2", certified)
	write(t, a, c.secrets, "queue") // the operator's
	c.must("add", "queue-1", "queue-2")
	c.wantVoters("queue-0", "queue-1", "queue-2")
	for _, r := range c.nodes { // queue-0 lists nobody but itself, queue-1 does not list queue-2
		c.eventually("routes to both others", func() bool { return len(r.bus.Peers()) == 2 })
	}
	c.must("transfer", "--to", "queue-2")
	edgeDir := t.TempDir()
	write(t, a, edgeDir, "edge")
	edge, err := tlsconf.Open(edgeDir, slog.New(slog.DiscardHandler), "edge")
	if err != nil {
		t.Fatal(err)
	}
	client := queueclient.New(queueclient.Options{ // follows to a node that its list lacks
		Endpoints: []string{"https://" + c.members[0].APIAddress}, Token: c.tokens["edge"], Name: "edge-0", TLS: edge.Client(tlsconf.Names("queue")),
	})
	defer client.Close()
	if r, err := client.Do(t.Context(), accept(newID(), "f", "x")); err != nil || r.GetCode() != wire.Code_CODE_OK {
		t.Fatal(r, err)
	}
	c.must("remove", "queue-2", "queue-1")
	c.eventually("names of members only", func() bool { return slices.Equal(c.nodes[0].memberNames(), []string{"queue-0"}) })
}
