// Package apikey knows who holds a key to the door. Keys stand in a file, one a line, and are read again when it changes:
//
//	# name     key, or the SHA-256 of it
//	ci         4f1c…at least 16 characters, no blanks
//	partner    sha256:9b74c9897bac770ffc029102a200c5de…
//
// Several lines may have one name, while a new key replaces an old one.
package apikey

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/slimfaas/slimfaas/shared/reload"
)

const (
	// Header carries a key. It never reaches a function.
	Header = "Slimfaas-Api-Key"
	// shortest a key may be, in bytes: shorter ones are guessed.
	shortest = 16
	// longest is what a caller may show, in bytes; more is no key.
	longest = 512
	hashed  = "sha256:"
)

// holders by the SHA-256 of their keys: looking one up takes a time that tells nothing of the keys.
type holders map[[sha256.Size]byte]string

// Keys of one file. Safe for concurrent use. The nil Keys know nobody.
type Keys struct {
	file    string
	log     *slog.Logger
	current atomic.Pointer[holders]
	content string // that was read last; of Run only
}

// Open reads the file. Nil without an error: none is named, and keys are not asked for.
func Open(file string, log *slog.Logger) (*Keys, error) {
	if file == "" {
		return nil, nil
	}
	k := &Keys{file: file, log: log}
	if _, err := k.reload(); err != nil {
		return nil, err
	}
	log.Info("callers need keys", "file", file, "keys", len(*k.current.Load()))
	return k, nil
}

func (k *Keys) reload() (changed bool, err error) {
	raw, err := os.ReadFile(k.file)
	if err != nil {
		return false, fmt.Errorf("reading the keys of callers: %w", err)
	}
	if k.current.Load() != nil && string(raw) == k.content {
		return false, nil
	}
	next, err := parse(string(raw))
	if err != nil {
		return false, fmt.Errorf("reading the keys of callers: %s: %w", k.file, err)
	}
	k.current.Store(&next)
	k.content = string(raw)
	return true, nil
}

// parse reads the lines; every mistake is named by its line, and no key is.
func parse(content string) (holders, error) {
	all := holders{}
	var errs []error
	n := 0
	for lines := bufio.NewScanner(strings.NewReader(content)); lines.Scan(); {
		n++
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
			continue
		case len(fields) != 2:
			errs = append(errs, fmt.Errorf("line %d: expected a name and a key, with a blank between them", n))
			continue
		}
		sum := sha256.Sum256([]byte(fields[1]))
		if digits, ok := strings.CutPrefix(fields[1], hashed); ok {
			raw, err := hex.DecodeString(digits)
			if err != nil || len(raw) != sha256.Size {
				errs = append(errs, fmt.Errorf("line %d: expected 64 hexadecimal digits behind %q", n, hashed))
				continue
			}
			copy(sum[:], raw)
		} else if len(fields[1]) < shortest {
			errs = append(errs, fmt.Errorf("line %d: the key of %s has %d characters, expected at least %d", n, fields[0], len(fields[1]), shortest))
			continue
		}
		if other, taken := all[sum]; taken && other != fields[0] {
			errs = append(errs, fmt.Errorf("line %d: the key of %s is the one of %s, too", n, fields[0], other))
			continue
		}
		all[sum] = fields[0]
	}
	if len(errs) == 0 && len(all) == 0 {
		errs = append(errs, errors.New("there is no key in it"))
	}
	return all, errors.Join(errs...)
}

// Run looks at the file every two seconds until ctx ends. A mistake in it is logged once, and the keys that were read before stay
// in use.
func (k *Keys) Run(ctx context.Context) error {
	reload.Watch(ctx, k.look, func(err error) {
		k.log.Error("the keys of callers have changed and cannot be used; those before stay in use", "err", err)
	})
	return nil
}

func (k *Keys) look() error {
	changed, err := k.reload()
	if changed {
		k.log.Info("the keys of callers have changed", "keys", len(*k.current.Load()))
	}
	return err
}

// Holder of the key a request shows, in Header or as `Authorization: Bearer`. What was a key is taken from the request: no function
// sees it.
func (k *Keys) Holder(h http.Header) (name string, ok bool) {
	if k == nil {
		return "", false
	}
	if shown := h[Header]; len(shown) == 1 {
		return k.holder(shown[0])
	}
	shown := h["Authorization"]
	if len(shown) != 1 {
		return "", false
	}
	scheme, token, _ := strings.Cut(shown[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	if name, ok = k.holder(strings.TrimSpace(token)); ok {
		delete(h, "Authorization")
	}
	return name, ok
}

func (k *Keys) holder(key string) (name string, ok bool) {
	if len(key) > longest {
		return "", false
	}
	name, ok = (*k.current.Load())[sha256.Sum256([]byte(key))]
	return name, ok
}

// Opens says whether the holder of a key may pass where one of these names is asked for; no names: any holder may.
func Opens(name string, names []string) bool { return len(names) == 0 || slices.Contains(names, name) }
