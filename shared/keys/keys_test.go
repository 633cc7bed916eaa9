package keys

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

func TestSecretsAreMadeOnceAndClosedToOthers(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "secrets")
	if err := Make(dir); err != nil {
		t.Fatal(err)
	}
	names := []string{
		"bus-edge.seed", "bus-edge.pub", "bus-queue.seed", "bus-queue.pub", "bus-scaler.seed", "bus-scaler.pub",
		"routes.password", "token-edge", "token-queue", "token-scaler", "token-local",
	}
	first := map[string]string{}
	for _, name := range names {
		value, err := secret.Read(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		first[name] = value
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
	if !nkeys.IsValidPublicUserKey(first["bus-edge.pub"]) {
		t.Errorf("bus-edge.pub is no user key: %s", first["bus-edge.pub"])
	}
	if err := os.Remove(filepath.Join(dir, "token-edge")); err != nil {
		t.Fatal(err)
	}
	if err := Make(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		value, err := secret.Read(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		if changed := value != first[name]; changed != (name == "token-edge") {
			t.Errorf("%s: changed %v", name, changed)
		}
	}
}

func TestEachProcessIsGivenWhatItsRoleNeedsAndACertificate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "secrets")
	if err := Make(dir); err != nil {
		t.Fatal(err)
	}
	var first []byte
	for range 2 { // a second start: the same authority, new certificates
		for role, name := range map[string]string{"edge": "edge-0", "queue": "queue-1", "scaler": "scaler-0"} {
			if err := Certify(dir, role, name); err != nil {
				t.Fatal(err)
			}
			own := filepath.Join(dir, name)
			if f, err := tlsconf.Open(own, slog.New(slog.DiscardHandler), role, name); f == nil || err != nil {
				t.Fatal(f, err)
			}
			var got []string
			entries, _ := os.ReadDir(own)
			for _, e := range entries {
				got = append(got, e.Name())
			}
			want := append([]string{"ca.crt", "tls.crt", "tls.key"}, needs[role]...)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s has %q, needs %q", name, got, want)
			}
		}
		ca, err := os.ReadFile(filepath.Join(dir, "authority", "ca.crt"))
		if err != nil || first != nil && !bytes.Equal(ca, first) {
			t.Errorf("another authority, %v", err)
		}
		first = ca
	}
	if f, err := tlsconf.Open(dir, slog.New(slog.DiscardHandler)); f != nil || err != nil {
		t.Errorf("everybody's folder turns TLS on: %v, %v", f, err)
	}
}
