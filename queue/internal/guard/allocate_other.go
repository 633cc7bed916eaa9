//go:build !linux

package guard

import (
	"errors"
	"fmt"
	"os"
)

// allocate makes a file whose blocks are really there.
func allocate(path string, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return fill(f, size)
}
