package keys

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/slimfaas/slimfaas/shared/secret"
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
