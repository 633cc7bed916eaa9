// Package keys makes the secrets of a local stack once, in a folder only its owner can read. Programs are given the folder,
// never a value.
package keys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/nkeys"

	"github.com/slimfaas/slimfaas/shared/secret"
)

// Local is the name of the token of this supervisor's own API.
const Local = "token-local"

// Make fills the folder with what is not there yet: bus keys, the route password, one token per role.
func Make(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder of secrets: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("closing the folder of secrets to others: %w", err)
	}
	for _, role := range []string{"edge", "queue", "scaler"} {
		if err := busKey(dir, "bus-"+role); err != nil {
			return err
		}
	}
	for _, name := range []string{"routes.password", "token-edge", "token-queue", "token-scaler", Local} {
		if _, err := secret.Read(dir, name); err == nil {
			continue
		}
		random := make([]byte, 32)
		_, _ = rand.Read(random) // never fails
		if err := put(dir, name, hex.EncodeToString(random)); err != nil {
			return err
		}
	}
	return nil
}

// busKey makes a seed, or takes the one there is, and writes its public half.
func busKey(dir, name string) error {
	seed, err := secret.Read(dir, name+".seed")
	var pair nkeys.KeyPair
	if err == nil {
		pair, err = nkeys.FromSeed([]byte(seed))
	} else if errors.Is(err, fs.ErrNotExist) {
		if pair, err = nkeys.CreateUser(); err == nil {
			err = putSeed(dir, name+".seed", pair)
		}
	}
	if err != nil {
		return fmt.Errorf("making the bus key %s: %w", name, err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return fmt.Errorf("making the bus key %s: %w", name, err)
	}
	return put(dir, name+".pub", public)
}

func putSeed(dir, name string, pair nkeys.KeyPair) error {
	seed, err := pair.Seed()
	if err != nil {
		return fmt.Errorf("taking the seed: %w", err)
	}
	return put(dir, name, string(seed))
}

// put writes a secret whole or not at all.
func put(dir, name, value string) error {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(value+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing secret %s: %w", name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("putting secret %s in place: %w", name, err)
	}
	return nil
}
