package bus

import (
	"crypto/tls"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
	"github.com/slimfaas/slimfaas/shared/wire"
)

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

func newAuthority(t *testing.T) *tlsconf.Authority {
	t.Helper()
	a, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// record of a log.
type record struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *record) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *record) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestRoutesAndClientsNeedTheRightCertificate(t *testing.T) {
	t.Parallel()
	k, a := newKeyring(t), newAuthority(t)
	members := tlsconf.Names("queue-0", "queue-1", "queue-2", "queue-3")
	clients := tlsconf.Names("edge", "scaler")
	routes := testkit.FreeAddresses(t, 5)
	var log record
	node := func(i int, name string, files *tlsconf.Files) *Server {
		t.Helper()
		s, err := Start(t.Context(), Config{
			Node: name, ClientAddress: "127.0.0.1:0", RoutesAddress: routes[i], Peers: slices.Delete(slices.Clone(routes), i, i+1), RoutesPassword: "secret",
			Keys: k.public, ClientTLS: files.Server(clients), RoutesTLS: files.Mesh(members), Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Stop)
		return s
	}
	first := node(0, "queue-0", certified(t, a, "queue-0"))
	second := node(1, "queue-1", certified(t, a, "queue-1"))
	unnamed := node(2, "queue-2", certified(t, a, "edge"))                   // knows the password, and is no member
	stranger := node(3, "queue-3", certified(t, newAuthority(t), "queue-3")) // another authority's
	third := node(4, "queue-2", certified(t, a, "queue-2"))
	want := func(s *Server, peers ...string) {
		t.Helper()
		eventually(t, strings.Join(peers, " "), func() bool { return slices.Equal(s.Peers(), peers) })
	}
	want(first, "queue-1", "queue-2")
	want(second, "queue-0", "queue-2")
	want(third, "queue-0", "queue-1")
	for _, s := range []*Server{unnamed, stranger} {
		if got := s.Peers(); len(got) != 0 {
			t.Errorf("let in by %v", got)
		}
	}
	if strings.Contains(log.String(), "DO NOT USE") {
		t.Error("the server's warning about its own verification was logged")
	}

	edge, _ := k.connect(t, first.URL(), RoleEdge, nats.Secure(certified(t, a, "edge").Client(tlsconf.Names("queue-0"))), nats.TLSHandshakeFirst())
	if err := edge.Publish(wire.SubjectWake, []byte("x")); err != nil {
		t.Error(err)
	}
	if err := edge.Flush(); err != nil {
		t.Error(err)
	}
	seed := nats.Nkey(k.public[RoleEdge], k.pair[RoleEdge].Sign)
	for what, o := range map[string][]nats.Option{
		"no TLS":                {},
		"no certificate":        {nats.Secure(&tls.Config{InsecureSkipVerify: true}), nats.TLSHandshakeFirst()},
		"a node as a client":    {nats.Secure(certified(t, a, "queue-1").Client(tlsconf.Names("queue-0"))), nats.TLSHandshakeFirst()},
		"another authority":     {nats.Secure(certified(t, newAuthority(t), "edge").Client(tlsconf.Names("queue-0"))), nats.TLSHandshakeFirst()},
		"another node is meant": {nats.Secure(certified(t, a, "edge").Client(tlsconf.Names("queue-9"))), nats.TLSHandshakeFirst()},
	} {
		c, err := nats.Connect(first.URL(), append(o, seed, nats.Timeout(time.Second))...)
		if err == nil {
			err = c.Flush()
			c.Close()
		}
		if err == nil {
			t.Errorf("%s: let in", what)
		}
	}
	// The node's own client uses no socket, and needs no certificate.
	own, _ := k.connect(t, "", RoleQueue, nats.InProcessServer(first))
	if err := own.Flush(); err != nil {
		t.Error(err)
	}
}
