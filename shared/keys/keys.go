// Package keys makes the secrets of an installation once, in a folder only its owner can read: on a laptop programs are given the
// folder, in Kubernetes its files become Secrets. Nobody is given a value in arguments or in the environment.
package keys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// Local is the name of the token of bin/local's own API.
const Local = "token-local"

// AuthorityDir is the folder of the authority's ca.crt and ca.key, in that of the secrets; no program is given it.
const AuthorityDir = "authority"

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// CertificateLife is how long a certificate is valid.
	CertificateLife = 365 * 24 * time.Hour
)

// needs are the secrets a role is given when each process has a folder of its own.
var needs = map[string][]string{
	"edge":   {"bus-edge.seed", "token-edge"},
	"queue":  {"bus-queue.seed", "bus-edge.pub", "bus-queue.pub", "bus-scaler.pub", "routes.password", "token-edge", "token-queue", "token-scaler"},
	"scaler": {"bus-scaler.seed", "token-scaler", "token-queue", Local},
}

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

// Certify gives a process of a role a folder of its own in dir: the secrets it needs, no others, and a new certificate that
// carries role, name and the further names. The authority that issues it is made once.
func Certify(dir, role, name string, further ...string) error {
	issuer, err := authority(filepath.Join(dir, AuthorityDir))
	if err != nil {
		return err
	}
	own := filepath.Join(dir, name)
	if err := os.MkdirAll(own, 0o700); err != nil {
		return fmt.Errorf("making the folder of %s's secrets: %w", name, err)
	}
	for _, file := range needs[role] {
		value, err := secret.Read(dir, file)
		if err != nil {
			return err
		}
		if err := put(own, file, value); err != nil {
			return err
		}
	}
	return issuer.Write(own, nil, time.Now().Add(CertificateLife), append([]string{role, name}, further...)...)
}

// authority takes the one there is, unless its end is near.
func authority(dir string) (*tlsconf.Authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if a, err := tlsconf.LoadAuthority(certFile, keyFile); err == nil && time.Until(a.NotAfter()) > 2*CertificateLife {
		return a, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the authority's folder: %w", err)
	}
	a, err := tlsconf.NewAuthority(authorityLife)
	if err != nil {
		return nil, err
	}
	return a, a.Save(certFile, keyFile)
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
	return tlsconf.Replace(filepath.Join(dir, name), []byte(value+"\n"))
}
