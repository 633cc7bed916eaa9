package tlsconf

import (
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slimfaas/slimfaas/shared/reload"
)

func writeSite(t *testing.T, a *Authority, dir string, names ...string) (certFile, keyFile string) {
	t.Helper()
	cert, key, err := a.Issue(time.Now().Add(time.Hour), names...)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "site.crt"), filepath.Join(dir, "site.key")
	for path, content := range map[string][]byte{certFile: cert, keyFile: key} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func (s *Site) names(t *testing.T) string {
	t.Helper()
	c, err := s.Config().GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(c.Leaf.DNSNames, ",")
}

func TestASitesNewFilesAreShownAndBrokenOnesAreNot(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := writeSite(t, a, dir, "one.example")
	synctest.Test(t, func(t *testing.T) {
		s, err := OpenSite(certFile, keyFile, slog.New(slog.DiscardHandler))
		if err != nil || s.names(t) != "one.example" {
			t.Fatalf("%v", err)
		}
		done := make(chan error, 1)
		ctx := t.Context()
		go func() { done <- s.Run(ctx) }()
		t.Cleanup(func() { <-done })
		if err := os.WriteFile(keyFile, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * reload.Every)
		if got := s.names(t); got != "one.example" {
			t.Errorf("with a broken key: %s", got)
		}
		writeSite(t, a, dir, "two.example")
		time.Sleep(2 * reload.Every)
		if got := s.names(t); got != "two.example" {
			t.Errorf("after a change: %s", got)
		}
	})
}

func TestASiteIsBothFilesOrNeither(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	if s, err := OpenSite("", "", log); s != nil || err != nil {
		t.Errorf("none named: %v, %v", s, err)
	}
	for _, files := range [][2]string{{"x.crt", ""}, {"", "x.key"}, {"/nowhere/x.crt", "/nowhere/x.key"}} {
		if s, err := OpenSite(files[0], files[1], log); s != nil || err == nil {
			t.Errorf("%q: no error", files)
		}
	}
}
