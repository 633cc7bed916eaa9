// Package certs makes the secrets of an installation in Kubernetes once, and renews its certificates.
package certs

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/shared/keys"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// The Secrets. Each pod mounts only the items its program needs; slimfaas-ca is mounted by nobody.
const (
	Authority = "slimfaas-ca"
	Bus       = "slimfaas-bus"
	TLS       = "slimfaas-tls"
)

// QueueNodes is how many names of queue nodes the certificate of the queue carries: slimfaas-queue-0 and following.
const QueueNodes = 7

// Secrets are where they are kept.
type Secrets interface {
	Secret(ctx context.Context, name string) (data map[string][]byte, version string, found bool, err error)
	CreateSecret(ctx context.Context, name string, data map[string][]byte) (created bool, err error)
	ReplaceSecret(ctx context.Context, name, version string, data map[string][]byte) error
}

// Init makes what is not there yet. It may be run any number of times, also several at once.
func Init(ctx context.Context, in Secrets, log *slog.Logger) error {
	const tries = 3 // another may be making the same
	for range tries {
		again, err := initOnce(ctx, in, log)
		if err != nil || !again {
			return err
		}
	}
	return errors.New("the Secrets are changed by somebody else all the time")
}

func initOnce(ctx context.Context, in Secrets, log *slog.Logger) (again bool, err error) {
	dir, have, err := load(ctx, in)
	defer os.RemoveAll(dir) //nolint:errcheck // a folder of this process
	if err != nil {
		return false, err
	}
	missing := slices.DeleteFunc([]string{Authority, Bus, TLS}, func(name string) bool { return have[name] })
	if len(missing) == 0 {
		log.Info("all Secrets are there")
		return false, nil
	}
	made, err := build(dir)
	if err != nil {
		return false, err
	}
	for _, name := range missing { // the authority first: what it issues must not outlive a try that failed
		created, err := in.CreateSecret(ctx, name, made[name])
		if err != nil {
			return false, err
		}
		if !created {
			return true, nil
		}
		log.Info("a Secret was made", "secret", name)
	}
	return false, nil
}

// Renew replaces the certificates when less than a third of their life is left, or at once when forced. Programs read them again by
// themselves.
func Renew(ctx context.Context, in Secrets, now time.Time, force bool, log *slog.Logger) error {
	dir, have, err := load(ctx, in)
	defer os.RemoveAll(dir) //nolint:errcheck // a folder of this process
	if err != nil {
		return err
	}
	if !have[Authority] || !have[Bus] || !have[TLS] {
		return fmt.Errorf("the Secrets %s, %s and %s are not all there: run `scaler certs init` first", Authority, Bus, TLS)
	}
	issuer, err := tlsconf.LoadAuthority(filepath.Join(dir, keys.AuthorityDir, "ca.crt"), filepath.Join(dir, keys.AuthorityDir, "ca.key"))
	if err != nil {
		return err
	}
	if issuer.NotAfter().Before(now.Add(2 * keys.CertificateLife)) {
		return fmt.Errorf("the authority of %s ends at %s: replace it in the three steps of docs/security.md", Authority, issuer.NotAfter().Format(time.RFC3339))
	}
	old, version, _, err := in.Secret(ctx, TLS)
	if err != nil {
		return err
	}
	until, err := end(old)
	if err == nil && until.Sub(now) > keys.CertificateLife/3 && !force {
		log.Info("the certificates are young enough", "until", until)
		return nil
	}
	made, err := build(dir)
	if err != nil {
		return err
	}
	fresh := maps.Clone(old) // what an operator added stays, a bundle of two authorities above all
	for name, content := range made[TLS] {
		if name != tlsconf.CAFile {
			fresh[name] = content
		}
	}
	if err := in.ReplaceSecret(ctx, TLS, version, fresh); err != nil {
		return err
	}
	log.Info("the certificates were renewed", "until", now.Add(keys.CertificateLife))
	return nil
}

// end of the certificates: of the one that ends first.
func end(data map[string][]byte) (first time.Time, err error) {
	for _, role := range roles {
		one, _ := pem.Decode(data[role+".crt"])
		if one == nil {
			return first, fmt.Errorf("%s.crt is no certificate", role)
		}
		certificate, err := x509.ParseCertificate(one.Bytes)
		if err != nil {
			return first, fmt.Errorf("read %s.crt: %w", role, err)
		}
		if first.IsZero() || certificate.NotAfter.Before(first) {
			first = certificate.NotAfter
		}
	}
	return first, nil
}

var roles = []string{"edge", "queue", "scaler"}

// load writes what there is into a folder as package keys has it.
func load(ctx context.Context, in Secrets) (dir string, have map[string]bool, err error) {
	if dir, err = os.MkdirTemp("", "slimfaas-certs-"); err != nil {
		return "", nil, fmt.Errorf("make a folder for the secrets: %w", err)
	}
	have = map[string]bool{}
	for name, into := range map[string]string{Authority: filepath.Join(dir, keys.AuthorityDir), Bus: dir, TLS: ""} {
		data, _, found, err := in.Secret(ctx, name)
		if err != nil {
			return dir, nil, err
		}
		if have[name] = found; !found || into == "" {
			continue
		}
		if err := os.MkdirAll(into, 0o700); err != nil {
			return dir, nil, fmt.Errorf("make a folder for the secrets: %w", err)
		}
		for file, content := range data {
			if file != filepath.Base(file) || strings.HasPrefix(file, ".") {
				continue
			}
			if err := tlsconf.Replace(filepath.Join(into, file), content); err != nil {
				return dir, nil, err
			}
		}
	}
	return dir, have, nil
}

// build completes the folder and gives the content of the Secrets.
func build(dir string) (map[string]map[string][]byte, error) {
	if err := keys.Make(dir); err != nil {
		return nil, err
	}
	var nodes []string
	for i := range QueueNodes {
		nodes = append(nodes, fmt.Sprintf("slimfaas-queue-%d", i))
	}
	made := map[string]map[string][]byte{Authority: {}, Bus: {}, TLS: {}}
	for _, role := range roles {
		var further []string
		if role == "queue" {
			further = nodes
		}
		if err := keys.Certify(dir, role, role, further...); err != nil {
			return nil, err
		}
		for from, to := range map[string]string{tlsconf.CertFile: role + ".crt", tlsconf.KeyFile: role + ".key", tlsconf.CAFile: tlsconf.CAFile} {
			content, err := os.ReadFile(filepath.Join(dir, role, from))
			if err != nil {
				return nil, fmt.Errorf("read a certificate: %w", err)
			}
			made[TLS][to] = content
		}
	}
	for secret, from := range map[string]string{Authority: filepath.Join(dir, keys.AuthorityDir), Bus: dir} {
		entries, err := os.ReadDir(from)
		if err != nil {
			return nil, fmt.Errorf("read the secrets: %w", err)
		}
		for _, entry := range entries {
			if entry.IsDir() || entry.Name() == keys.Local {
				continue
			}
			content, err := os.ReadFile(filepath.Join(from, entry.Name()))
			if err != nil {
				return nil, fmt.Errorf("read the secrets: %w", err)
			}
			made[secret][entry.Name()] = content
		}
	}
	return made, nil
}
