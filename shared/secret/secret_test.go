package secret

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadTrimsAndNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{"token-edge": " abc\n", "empty": "\n", "huge": strings.Repeat("x", maxSize+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := Read(dir, "token-edge"); v != "abc" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
	for _, c := range []struct{ dir, name, want string }{
		{dir, "bus-edge.seed", "no such file"},
		{dir, "bus-edge.seed", dir},
		{dir, "empty", "empty"},
		{dir, "huge", "not a secret of ours"},
		{dir, "../token-edge", "not a file name"},
		{"", "token-edge", "no secrets directory"},
	} {
		if v, err := Read(c.dir, c.name); err == nil || !strings.Contains(err.Error(), c.want) || v != "" {
			t.Errorf("Read(%q, %q) = %q, %v; want an error with %q", c.dir, c.name, v, err, c.want)
		}
	}
}
