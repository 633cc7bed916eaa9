package tlsconf

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// backdate is how far a certificate's life begins in the past: clocks differ.
const backdate = time.Hour

// Authority issues certificates for a laptop and for tests; elsewhere an operator's own does (cert-manager, a company's CA).
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// NewAuthority makes one that lives for the given time.
func NewAuthority(life time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making an authority's key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "SlimFaas internal links"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making an authority: %w", err)
	}
	return authority(raw, key)
}

// LoadAuthority reads one that Save has written.
func LoadAuthority(certFile, keyFile string) (*Authority, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("reading the authority: its key is none of ours")
	}
	return authority(pair.Certificate[0], key)
}

func authority(raw []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the authority: %w", err)
	}
	return &Authority{certificate: certificate, key: key, pem: block("CERTIFICATE", raw)}, nil
}

// PEM of the authority's certificate; several, one after the other, are a ca.crt that trusts each.
func (a *Authority) PEM() []byte { return a.pem }

// NotAfter is when it ends, and everything it has issued with it.
func (a *Authority) NotAfter() time.Time { return a.certificate.NotAfter }

// Save writes certificate and key.
func (a *Authority) Save(certFile, keyFile string) error {
	key, err := keyPEM(a.key)
	if err != nil {
		return err
	}
	return errors.Join(Replace(keyFile, key), Replace(certFile, a.pem))
}

// Issue makes a certificate, and its key, that carries the names and serves both sides of a connection until notAfter.
func (a *Authority) Issue(notAfter time.Time, names ...string) (certificate, key []byte, err error) {
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the key of %q: %w", names, err)
	}
	begin := time.Now()
	if notAfter.Before(begin) {
		begin = notAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: begin.Add(-backdate), NotAfter: notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.certificate, own.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing the certificate of %q: %w", names, err)
	}
	if key, err = keyPEM(own); err != nil {
		return nil, nil, err
	}
	return block("CERTIFICATE", raw), key, nil
}

// Write issues a certificate into dir, in the files Open reads. bundle is the ca.crt; nil: this authority alone.
func (a *Authority) Write(dir string, bundle []byte, notAfter time.Time, names ...string) error {
	certificate, key, err := a.Issue(notAfter, names...)
	if err != nil {
		return err
	}
	if bundle == nil {
		bundle = a.pem
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{CAFile, bundle}, {KeyFile, key}, {CertFile, certificate}} {
		if err := Replace(filepath.Join(dir, f.name), f.content); err != nil {
			return err
		}
	}
	return nil
}

// Replace writes a file only its owner can read, whole or not at all.
func Replace(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("putting %s in place: %w", path, err)
	}
	return nil
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return block("PRIVATE KEY", raw), nil
}

func block(kind string, raw []byte) []byte {
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: kind, Bytes: raw}) // a buffer takes everything
	return b.Bytes()
}

func serial() *big.Int {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	raw[0] &= 0x7f           // positive
	return new(big.Int).SetBytes(raw[:])
}
