package tlsconf

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(24 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// program writes a certificate into a directory of its own and opens it.
func program(t *testing.T, a *Authority, names ...string) (*Files, string) {
	t.Helper()
	dir := t.TempDir()
	write(t, a, dir, nil, names...)
	f, err := Open(dir, quiet, names...)
	if err != nil || f == nil {
		t.Fatal(f, err)
	}
	return f, dir
}

func write(t *testing.T, a *Authority, dir string, bundle []byte, names ...string) {
	t.Helper()
	if err := a.Write(dir, bundle, time.Now().Add(time.Hour), names...); err != nil {
		t.Fatal(err)
	}
}

// shake hands over loopback; the server sends a byte, for with TLS 1.3 a client learns of its refusal only when it reads.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var both sync.WaitGroup
	both.Go(func() {
		c, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, serverErr = c.Write([]byte{1})
	})
	both.Go(func() {
		var d net.Dialer
		raw, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			clientErr = err
			return
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
		_, clientErr = io.ReadFull(tls.Client(raw, client), make([]byte, 1))
	})
	both.Wait()
	return serverErr, clientErr
}

func TestOnlyExpectedNamesOfOurAuthorityMeet(t *testing.T) {
	t.Parallel()
	ours, foreign := newAuthority(t), newAuthority(t)
	queue, _ := program(t, ours, "queue", "queue-0")
	edge, _ := program(t, ours, "edge")
	stranger, _ := program(t, foreign, "edge")
	server := queue.Server(Names("edge", "scaler"))
	for _, c := range []struct {
		what           string
		client         *tls.Config
		server, dialer string // expected in the error of that side; empty: well
	}{
		{"an edge", edge.Client(Names("queue")), "", ""},
		{"an edge that wants this very node", edge.Client(Names("queue-0")), "", ""},
		{"an edge that wants another node", edge.Client(Names("queue-1")), "bad certificate", `carries the DNS names ["queue" "queue-0"], expected one of ["queue-1"]`},
		{"a queue node, where none is expected", queue.Client(Names("queue")), `carries the DNS names ["queue" "queue-0"], expected one of ["edge" "scaler"]`, "bad certificate"},
		{"a stranger that trusts anybody", anybody(stranger), "unknown authority", "bad certificate"},
		{"a stranger", stranger.Client(Names("queue")), "bad certificate", "unknown authority"},
		{"somebody without a certificate", &tls.Config{InsecureSkipVerify: true}, "didn't provide a certificate", "certificate required"},
		{"TLS 1.2", &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, "unsupported versions", "protocol version"},
	} {
		serverErr, clientErr := shake(t, server, c.client)
		for _, side := range []struct {
			name string
			err  error
			want string
		}{{"server", serverErr, c.server}, {"client", clientErr, c.dialer}} {
			if (side.err == nil) != (side.want == "") || side.err != nil && !strings.Contains(side.err.Error(), side.want) {
				t.Errorf("%s: the %s says %v, expected %q", c.what, side.name, side.err, side.want)
			}
		}
	}
}

func anybody(f *Files) *tls.Config {
	c := f.Client(Names())
	c.VerifyConnection = nil
	return c
}

func TestExpiredPeersAreRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	queue, _ := program(t, a, "queue")
	cert, key, err := a.Issue(time.Now().Add(-time.Minute), "edge")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	expired := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
	if err, _ := shake(t, queue.Server(Names("edge")), expired); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("the server says %v", err)
	}
	if _, err := shake(t, expired, queue.Client(Names("edge"))); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("the client says %v", err)
	}
}

func TestNewFilesServeTheNextConnection(t *testing.T) {
	t.Parallel()
	old, next := newAuthority(t), newAuthority(t)
	both := slices.Concat(old.PEM(), next.PEM())
	queue, queueDir := program(t, old, "queue")
	edge, edgeDir := program(t, old, "edge")
	lagging, _ := program(t, old, "edge")
	server, client := queue.Server(Names("edge")), edge.Client(Names("queue"))
	meet := func(step string) {
		t.Helper()
		for _, f := range []*Files{queue, edge} {
			if changed, err := f.Reload(); err != nil {
				t.Fatalf("%s: %v, %v", step, changed, err)
			}
		}
		if serverErr, clientErr := shake(t, server, client); serverErr != nil || clientErr != nil {
			t.Fatalf("%s: %v, %v", step, serverErr, clientErr)
		}
	}
	meet("before")
	for _, dir := range []string{queueDir, edgeDir} { // everybody trusts both, then has new certificates, then trusts the new one only
		if err := Replace(filepath.Join(dir, CAFile), both); err != nil {
			t.Fatal(err)
		}
		meet("both authorities")
	}
	write(t, next, queueDir, both, "queue")
	meet("the queue's new certificate")
	write(t, next, edgeDir, both, "edge")
	meet("both new certificates")
	for _, dir := range []string{queueDir, edgeDir} {
		if err := Replace(filepath.Join(dir, CAFile), next.PEM()); err != nil {
			t.Fatal(err)
		}
	}
	meet("the new authority alone")
	if err, _ := shake(t, server, anybody(lagging)); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a certificate of the old authority: %v", err)
	}
}

func TestFilesThatDoNotFitLeaveTheOldOnesInUse(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	for what, c := range map[string]struct {
		spoil func(dir string) error
		says  string
	}{
		"a key of another certificate": {func(dir string) error {
			_, key, err := a.Issue(time.Now().Add(time.Hour), "edge")
			return errors.Join(err, Replace(filepath.Join(dir, KeyFile), key))
		}, "private key does not match"},
		"an authority that does not vouch": {func(dir string) error {
			return Replace(filepath.Join(dir, CAFile), other.PEM())
		}, "unknown authority"},
		"a certificate for another program": {func(dir string) error {
			return a.Write(dir, nil, time.Now().Add(time.Hour), "scaler")
		}, `needs "edge"`},
		"an expired certificate": {func(dir string) error {
			return a.Write(dir, nil, time.Now().Add(-time.Minute), "edge")
		}, "expired"},
		"a file that is gone": {func(dir string) error { return os.Remove(filepath.Join(dir, KeyFile)) }, "no such file"},
		"no PEM":              {func(dir string) error { return Replace(filepath.Join(dir, CAFile), []byte("x")) }, "no certificate in PEM"},
	} {
		f, dir := program(t, a, "edge")
		before := f.current.Load()
		if err := c.spoil(dir); err != nil {
			t.Fatal(err)
		}
		if changed, err := f.Reload(); changed || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v; expected %q", what, changed, err, c.says)
		}
		if f.current.Load() != before {
			t.Errorf("%s: the old ones are not in use", what)
		}
		if _, err := Open(dir, quiet, "edge"); err == nil {
			t.Errorf("%s: a start takes it", what)
		}
	}
}

func TestNoneOfTheFilesIsOffAndSomeAreAMistake(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, d := range []string{"", dir} {
		if f, err := Open(d, quiet); f != nil || err != nil {
			t.Errorf("Open(%q) = %v, %v", d, f, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, CAFile), newAuthority(t).PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, quiet); err == nil || !strings.Contains(err.Error(), "tls.crt and tls.key is missing") {
		t.Errorf("Open says %v", err)
	}
}

func TestRunTakesNewFilesOverAndSaysWhatItCannot(t *testing.T) {
	t.Parallel()
	var log lines
	synctest.Test(t, func(t *testing.T) {
		// The bubble's clock stands in the year 2000, and so do its certificates.
		a := newAuthority(t)
		dir := t.TempDir()
		write(t, a, dir, nil, "edge")
		f, err := Open(dir, slog.New(slog.NewTextHandler(&log, nil)), "edge")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { _ = f.Run(ctx) })
		synctest.Wait()
		before := f.NotAfter()
		if err := Replace(filepath.Join(dir, CAFile), []byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * checkEvery)
		synctest.Wait()
		if got := strings.Count(log.String(), "cannot be used"); got != 1 {
			t.Errorf("said %d times:\n%s", got, &log)
		}
		write(t, a, dir, nil, "edge")
		time.Sleep(checkEvery)
		synctest.Wait()
		if !strings.Contains(log.String(), "new certificates are in use") || !f.NotAfter().After(before) {
			t.Errorf("until %v, before %v:\n%s", f.NotAfter(), before, &log)
		}
		time.Sleep(57 * time.Minute)
		synctest.Wait()
		if got := strings.Count(log.String(), "ends soon"); got != 1 {
			t.Errorf("warned %d times:\n%s", got, &log)
		}
		stop()
		run.Wait()
	})
}

// lines of a log; locked, for the bubble's clock orders nothing in the eyes of the race detector.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestAnAuthorityIsReadBackAsItWas(t *testing.T) {
	t.Parallel()
	a, dir := newAuthority(t), t.TempDir()
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if err := a.Save(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	b, err := LoadAuthority(certFile, keyFile)
	if err != nil || !bytes.Equal(a.PEM(), b.PEM()) || !a.NotAfter().Equal(b.NotAfter()) {
		t.Fatal(b, err)
	}
	cert, key, err := b.Issue(time.Now().Add(time.Hour), "edge")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "edge"}); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
}
