package queueclient

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/tlsconf"
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

func TestWithTLSTheLeaderIsFollowedAndAnImpostorIsHandedNothing(t *testing.T) {
	t.Parallel()
	a, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	secure := func(c *cluster) { c.tls = certified(t, a, "queue").Server(tlsconf.Names("edge")) }
	c := newCluster(t, 3, secure)
	client := c.client(t, func(o *Options) { o.TLS = certified(t, a, "edge").Client(tlsconf.Names("queue")) })
	for i, n := range c.nodes { // the hints name addresses, the endpoints say http
		c.lead(n)
		id := fmt.Sprint("id", i)
		if _, err := client.Do(within(t, 20*time.Second), accept(id)); err != nil || !c.committed(id) {
			t.Fatalf("%s: %v", id, err)
		}
	}
	for what, change := range map[string]func(*Options){
		"a queue that is none":  func(o *Options) { o.TLS = certified(t, a, "edge").Client(tlsconf.Names("vault")) },
		"an edge that is none":  func(o *Options) { o.TLS = certified(t, a, "visitor").Client(tlsconf.Names("queue")) },
		"an edge without TLS":   func(*Options) {},
		"a foreign certificate": func(o *Options) { o.TLS = certified(t, foreign(t), "edge").Client(tlsconf.Names("queue")) },
	} {
		if _, err := c.client(t, change, hasty).Do(within(t, 5*time.Second), accept(what)); err == nil || c.committed(what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func foreign(t *testing.T) *tlsconf.Authority {
	t.Helper()
	a, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
