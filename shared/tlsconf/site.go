package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/shared/reload"
)

// Site is the certificate a listener shows to clients of the internet, of whom none is asked. Its files are read again when they
// change. Safe for concurrent use.
type Site struct {
	certFile, keyFile string
	log               *slog.Logger
	current           atomic.Pointer[shown]
}

type shown struct {
	cert, key   string
	certificate tls.Certificate
}

// OpenSite reads a certificate with what lies between it and its authority, and its key, both PEM. Nil without an error: neither
// file is named, and TLS is off.
func OpenSite(certFile, keyFile string, log *slog.Logger) (*Site, error) {
	if certFile == "" && keyFile == "" {
		return nil, nil
	}
	if certFile == "" || keyFile == "" {
		return nil, errors.New("reading the public certificate: a certificate and its key turn TLS on, and one of the two files is not named")
	}
	s := &Site{certFile: certFile, keyFile: keyFile, log: log}
	if _, err := s.Reload(); err != nil {
		return nil, err
	}
	leaf := s.current.Load().certificate.Leaf
	log.Info("the public listener uses TLS", "names", leaf.DNSNames, "until", leaf.NotAfter)
	s.warn()
	return s, nil
}

// Reload takes over the files if they have changed. After an error what was read before stays in use.
func (s *Site) Reload() (changed bool, err error) {
	cert, err := os.ReadFile(s.certFile)
	if err != nil {
		return false, fmt.Errorf("reading the public certificate: %w", err)
	}
	key, err := os.ReadFile(s.keyFile)
	if err != nil {
		return false, fmt.Errorf("reading the key of the public certificate: %w", err)
	}
	before := s.current.Load()
	if before != nil && before.cert == string(cert) && before.key == string(key) {
		return false, nil
	}
	next := &shown{cert: string(cert), key: string(key)}
	if next.certificate, err = tls.X509KeyPair(cert, key); err != nil {
		return false, fmt.Errorf("reading the public certificate: %s and %s: %w", s.certFile, s.keyFile, err)
	}
	if next.certificate.Leaf == nil { // only with GODEBUG=x509keypairleaf=0
		if next.certificate.Leaf, err = x509.ParseCertificate(next.certificate.Certificate[0]); err != nil {
			return false, fmt.Errorf("reading the public certificate: %s: %w", s.certFile, err)
		}
	}
	s.current.Store(next)
	return before != nil, nil
}

// Run looks at the files every two seconds until ctx ends. A mistake in them is logged once, and what was read before stays in use.
func (s *Site) Run(ctx context.Context) error {
	reload.Watch(ctx, func() error {
		changed, err := s.Reload()
		if changed {
			leaf := s.current.Load().certificate.Leaf
			s.log.Info("the public certificate has changed", "names", leaf.DNSNames, "until", leaf.NotAfter)
			s.warn()
		}
		return err
	}, func(err error) {
		s.log.Error("the public certificate has changed and cannot be used; the one before is shown on", "err", err)
	})
	return nil
}

// warn where little is left of the certificate's life.
func (s *Site) warn() {
	leaf := s.current.Load().certificate.Leaf
	if left := time.Until(leaf.NotAfter); left < leaf.NotAfter.Sub(leaf.NotBefore)/warnShare {
		s.log.Warn("the public certificate ends soon", "until", leaf.NotAfter)
	}
}

// Config shows whatever was read last. TLS 1.2 and 1.3.
func (s *Site) Config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &s.current.Load().certificate, nil },
	}
}
