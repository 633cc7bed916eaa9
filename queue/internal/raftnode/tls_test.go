package raftnode

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

func newAuthority(t *testing.T) *tlsconf.Authority {
	t.Helper()
	a, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// certify writes a certificate into a new directory.
func certify(t *testing.T, a *tlsconf.Authority, names ...string) (*tlsconf.Files, string) {
	t.Helper()
	dir := t.TempDir()
	if err := a.Write(dir, nil, time.Now().Add(time.Hour), names...); err != nil {
		t.Fatal(err)
	}
	f, err := tlsconf.Open(dir, testLog(t), names...)
	if err != nil {
		t.Fatal(err)
	}
	return f, dir
}

// secureCluster has TLS; dirs are the nodes' certificates.
func secureCluster(t *testing.T, a *tlsconf.Authority) (c *cluster, dirs []string) {
	c = newCluster(t, 3, func(config *Config) {
		var dir string
		config.TLS, dir = certify(t, a, "queue", config.Name)
		dirs = append(dirs, dir)
	})
	return c, dirs
}

func TestOnlyMembersSpeakRaft(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c, _ := secureCluster(t, a)
	c.mustPropose(accept(1, []byte("x")))
	c.settle()
	address := c.configs[0].Members[0].RaftAddress
	member, _ := certify(t, a, "queue", "queue-1")
	outsider, _ := certify(t, a, "queue", "queue-9")
	edge, _ := certify(t, a, "edge")
	stranger, _ := certify(t, newAuthority(t), "queue-1")
	for _, d := range []struct {
		what   string
		config *tls.Config // nil: no TLS
		in     bool
	}{
		{"a member", member.Client(tlsconf.Names("queue-0")), true},
		{"a queue node that is no member", outsider.Client(tlsconf.Names("queue-0")), false},
		{"an edge", edge.Client(tlsconf.Names("queue-0")), false},
		{"a member's name from another authority", trusting(stranger), false},
		{"nobody", &tls.Config{InsecureSkipVerify: true}, false},
		{"somebody without TLS", nil, false},
	} {
		// Let in, a connection waits for a command and says nothing; refused, it is closed.
		raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn := raw
		if d.config != nil {
			conn = tls.Client(raw, d.config)
		}
		patience := 500 * time.Millisecond // for the silence of one that is in
		if !d.in {
			patience = 5 * time.Second
		}
		_ = raw.SetDeadline(time.Now().Add(patience))
		if d.config == nil {
			_, _ = conn.Write(make([]byte, 256)) // RPC type 0: an append
		}
		_, err = io.ReadFull(conn, make([]byte, 1))
		if in := isTimeout(err); in != d.in {
			t.Errorf("%s: %v", d.what, err)
		}
		_ = raw.Close()
	}
}

func trusting(f *tlsconf.Files) *tls.Config {
	c := f.Client(tlsconf.Names())
	c.VerifyConnection = nil
	return c
}

func TestANodeDialsTheMemberItMeansAndNoOther(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	impostor, _ := certify(t, a, "queue", "queue-1")
	l, err := tls.Listen("tcp", "127.0.0.1:0", impostor.Server(tlsconf.Names("queue-0")))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	own, _ := certify(t, a, "queue", "queue-0")
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	for name, well := range map[string]bool{"queue-1": true, "queue-2": false} {
		members := []Member{{Name: "queue-0"}, {Name: "queue-1"}, {Name: "queue-2"}}
		members[slices.IndexFunc(members, func(m Member) bool { return m.Name == name })].RaftAddress = l.Addr().String()
		s := &stream{life: t.Context(), tls: own, members: &addresses{listed: members}}
		conn, err := s.Dial(raft.ServerAddress(l.Addr().String()), 5*time.Second)
		if (err == nil) != well {
			t.Errorf("%s: %v", name, err)
		}
		if conn != nil {
			_ = conn.Close()
		}
	}
}

func TestASilentDiallerIsCutAndManyHoldUpNobody(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c, _ := secureCluster(t, a)
	first := c.leader()
	address := c.configs[first].Members[first].RaftAddress
	var silent []net.Conn
	for range 2 * maxHandshakes {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, conn)
	}
	c.mustPropose(accept(1, []byte("x"))) // connections that stand are not in the way of the bound
	for _, conn := range silent {
		_ = conn.SetReadDeadline(time.Now().Add(2 * ioTimeout))
		if _, err := conn.Read(make([]byte, 1)); isTimeout(err) {
			t.Fatal("a silent connection is still open")
		}
		_ = conn.Close()
	}
	next := (first + 1) % 3
	c.kill(next) // its connections are made anew
	c.start(next)
	c.mustPropose(accept(2, []byte("y")))
	c.settle()
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestCertificatesAndAuthorityRotateWithoutARestart(t *testing.T) {
	t.Parallel()
	old, next := newAuthority(t), newAuthority(t)
	c, dirs := secureCluster(t, old)
	c.mustPropose(accept(1, []byte("x")))
	both := append(append([]byte{}, old.PEM()...), next.PEM()...)
	until := time.Now().Add(time.Hour)
	for _, step := range []func(dir, name string) error{
		func(dir, name string) error { return old.Write(dir, both, until, "queue", name) },
		func(dir, name string) error { return next.Write(dir, both, until, "queue", name) },
		func(dir, name string) error { return next.Write(dir, nil, until, "queue", name) },
	} {
		for i, dir := range dirs {
			if err := step(dir, c.configs[i].Name); err != nil {
				t.Fatal(err)
			}
			if changed, err := c.configs[i].TLS.Reload(); !changed || err != nil {
				t.Fatal(changed, err)
			}
		}
	}
	first := c.leader()
	c.kill(first) // the two others go on with the files they read while they ran
	c.mustPropose(accept(2, []byte("y")))
	c.start(first)
	c.mustPropose(accept(3, []byte("z")))
	c.settle()
	late, _ := certify(t, old, "queue", "queue-1")
	conn, err := tls.Dial("tcp", c.configs[0].Members[0].RaftAddress, trusting(late))
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if err == nil || isTimeout(err) {
		t.Errorf("a certificate of the authority that went: %v", err)
	}
}
