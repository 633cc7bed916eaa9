// Package secret reads the values that programs prove themselves with: one file per value in one directory, so that nothing
// secret is ever in arguments or in the environment.
package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxSize of a secret file, in bytes: a larger one is a mistake.
const maxSize = 64 << 10

// Read returns the trimmed content of the file name in dir. Its errors say which file is missing and how it is made.
func Read(dir, name string) (string, error) {
	if dir == "" {
		return "", fmt.Errorf("reading the secret %s: no secrets directory is set (…_SECRETS_DIR)", name)
	}
	if name != filepath.Base(name) || name == "." || name == ".." {
		return "", fmt.Errorf("reading the secret %q: not a file name", name)
	}
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the secret %s: %s has no such file; bin/local makes it on a laptop, `scaler certs init` elsewhere: %w", name, dir, err)
	}
	if err != nil {
		return "", fmt.Errorf("reading the secret %s in %s: %w", name, dir, err)
	}
	if info.Size() > maxSize {
		return "", fmt.Errorf("reading the secret %s in %s: %d bytes, more than %d: not a secret of ours", name, dir, info.Size(), maxSize)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the secret %s in %s: %w", name, dir, err)
	}
	value := strings.TrimSpace(string(raw))
	if value == "" {
		return "", fmt.Errorf("reading the secret %s in %s: the file is empty", name, dir)
	}
	return value, nil
}
