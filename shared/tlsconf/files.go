// Package tlsconf is mutual TLS between the programs: one certificate, its key and the authorities it trusts, read from the
// secrets directory and read again when the files change. Both sides of every connection show a certificate; who may speak is
// said by the DNS names in it (a role such as `edge`, a queue node's own name), never by the address it is reached at: pods
// and loopback have none worth trusting. TLS 1.3 only, no session tickets: a connection lives long, and each new one is
// checked against what the files say at that moment.
package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slimfaas/slimfaas/shared/secret"
)

// Names of the files in the secrets directory. All three, or none: their presence is what turns TLS on.
const (
	CAFile   = "ca.crt"  // the authorities that are trusted, PEM, several while one replaces the other
	CertFile = "tls.crt" // this program's certificate, PEM, with what lies between it and an authority
	KeyFile  = "tls.key" // its key, PEM
)

const (
	// checkEvery is how often the files are looked at: new connections use new files that much later.
	checkEvery = 2 * time.Second
	// warnShare of a certificate's life: less than that left is worth a warning.
	warnShare = 10
	// refusalsEvery bounds how often refused peers are logged.
	refusalsEvery = time.Second
)

// Files are the certificate, key and authorities of a program. Safe for concurrent use; the configurations it gives always
// use what was read last.
type Files struct {
	dir     string
	own     []string
	log     *slog.Logger
	current atomic.Pointer[material]

	mu       sync.Mutex // guards the fields below
	failure  string     // the last one that was logged; empty: the files are what is used
	warned   *material  // whose end has been announced
	refusal  time.Time  // of the last one that was logged
	refusals int        // not logged since then
}

// material is one reading of the three files, whole or not at all.
type material struct {
	content     [3]string
	certificate tls.Certificate // with its Leaf
	roots       *x509.CertPool
}

// Open reads the files in dir. Nil without an error: none of them is there (or dir is empty), and TLS is off. own are DNS
// names the certificate must carry, for a program without them is refused by everybody, and is better told at its start.
func Open(dir string, log *slog.Logger, own ...string) (*Files, error) {
	if dir == "" {
		return nil, nil
	}
	var missing []string
	for _, name := range []string{CAFile, CertFile, KeyFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 3 {
		return nil, nil
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("reading the certificates in %s: %s is missing: all of %s, %s and %s turn TLS on, none of them leaves it off",
			dir, strings.Join(missing, " and "), CAFile, CertFile, KeyFile)
	}
	f := &Files{dir: dir, own: own, log: log}
	if _, err := f.Reload(); err != nil {
		return nil, err
	}
	leaf := f.current.Load().certificate.Leaf
	log.Info("internal links use TLS", "names", leaf.DNSNames, "until", leaf.NotAfter)
	return f, nil
}

// Reload takes over the files if they have changed. After an error what was read before stays in use: files are replaced one
// by one, and a certificate without its key, or that its own authorities do not vouch for, would cut this program off.
func (f *Files) Reload() (changed bool, err error) {
	var content [3]string
	for i, name := range []string{CAFile, CertFile, KeyFile} {
		if content[i], err = secret.Read(f.dir, name); err != nil {
			return false, err
		}
	}
	before := f.current.Load()
	if before != nil && before.content == content {
		return false, nil
	}
	m, err := parse(content, f.own)
	if err != nil {
		return false, fmt.Errorf("reading the certificates in %s: %w", f.dir, err)
	}
	f.current.Store(m)
	return before != nil, nil
}

func parse(content [3]string, own []string) (*material, error) {
	m := &material{content: content, roots: x509.NewCertPool()}
	if !m.roots.AppendCertsFromPEM([]byte(content[0])) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", CAFile)
	}
	var err error
	if m.certificate, err = tls.X509KeyPair([]byte(content[1]), []byte(content[2])); err != nil {
		return nil, fmt.Errorf("%s and %s: %w", CertFile, KeyFile, err)
	}
	if m.certificate.Leaf == nil { // only with GODEBUG=x509keypairleaf=0
		if m.certificate.Leaf, err = x509.ParseCertificate(m.certificate.Certificate[0]); err != nil {
			return nil, fmt.Errorf("%s: %w", CertFile, err)
		}
	}
	chain := []*x509.Certificate{m.certificate.Leaf}
	for _, raw := range m.certificate.Certificate[1:] {
		between, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", CertFile, err)
		}
		chain = append(chain, between)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := vouched(chain, m.roots, usage); err != nil {
			return nil, fmt.Errorf("%s against %s: %w", CertFile, CAFile, err)
		}
	}
	for _, name := range own {
		if !carries(m.certificate.Leaf, []string{name}) {
			return nil, fmt.Errorf("%s carries the DNS names %q, and needs %q for this program", CertFile, m.certificate.Leaf.DNSNames, name)
		}
	}
	return m, nil
}

// Run looks at the files until ctx ends. It logs what it takes over and what it cannot.
func (f *Files) Run(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		f.look()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *Files) look() {
	changed, err := f.Reload()
	m := f.current.Load()
	leaf := m.certificate.Leaf
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil && err.Error() != f.failure:
		f.failure = err.Error()
		f.log.Warn("the certificates have changed and cannot be used; the ones before stay in use", "err", err)
	case err == nil:
		f.failure = ""
	}
	if changed {
		f.log.Info("new certificates are in use", "names", leaf.DNSNames, "until", leaf.NotAfter)
	}
	if left := time.Until(leaf.NotAfter); left < leaf.NotAfter.Sub(leaf.NotBefore)/warnShare && f.warned != m {
		f.warned = m
		f.log.Warn("the certificate ends soon: replace tls.crt and tls.key, nothing needs a restart", "until", leaf.NotAfter)
	}
}

// NotAfter is when the certificate in use ends.
func (f *Files) NotAfter() time.Time { return f.current.Load().certificate.Leaf.NotAfter }

// Server is for listeners: callers need a certificate that carries one of names, asked for at each connection.
func (f *Files) Server(names func() []string) *tls.Config {
	return f.config(names, x509.ExtKeyUsageClientAuth)
}

// Client is for dialling: who answers needs a certificate that carries one of names. The address dialled does not matter.
func (f *Files) Client(names func() []string) *tls.Config {
	return f.config(names, x509.ExtKeyUsageServerAuth)
}

// Mesh is for peers that dial one another with one configuration for both directions.
func (f *Files) Mesh(names func() []string) *tls.Config {
	return f.config(names, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

// Names is a fixed list for Server, Client and Mesh.
func Names(names ...string) func() []string { return func() []string { return names } }

func (f *Files) config(names func() []string, usages ...x509.ExtKeyUsage) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &f.current.Load().certificate, nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &f.current.Load().certificate, nil
		},
		// The library's own check is bound to a fixed pool and to the name that was dialled. VerifyConnection takes its place on
		// both sides, with the pool of this moment and our names; it runs on every connection.
		InsecureSkipVerify:     true,
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection:       func(s tls.ConnectionState) error { return f.check(s, names(), usages) },
		SessionTicketsDisabled: true,
		// Small first records are for browsers that wait for a first byte; each would be a write of its own.
		DynamicRecordSizingDisabled: true,
	}
}

// check refuses a peer that our authorities do not vouch for now, or that is not one of names.
func (f *Files) check(s tls.ConnectionState, names []string, usages []x509.ExtKeyUsage) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the peer shows no certificate")
	}
	leaf := s.PeerCertificates[0]
	err := vouched(s.PeerCertificates, f.current.Load().roots, usages...)
	if err == nil && !carries(leaf, names) {
		err = fmt.Errorf("its certificate carries the DNS names %q, expected one of %q", leaf.DNSNames, names)
	}
	if err != nil {
		err = fmt.Errorf("refusing a peer: %w", err)
		f.refused(leaf, err)
	}
	return err
}

// refused logs in moderation: a peer that dials again and again must not fill a disk.
func (f *Files) refused(leaf *x509.Certificate, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.refusal) < refusalsEvery {
		f.refusals++
		return
	}
	f.log.Warn("a peer's certificate is refused", "names", leaf.DNSNames, "until", leaf.NotAfter, "err", err, "unlogged", f.refusals)
	f.refusal, f.refusals = now, 0
}

// vouched checks the chain, leaf first, for any of the usages.
func vouched(chain []*x509.Certificate, roots *x509.CertPool, usages ...x509.ExtKeyUsage) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: usages})
	return err
}

// carries compares whole names: a wildcard is no name of ours.
func carries(leaf *x509.Certificate, names []string) bool {
	return slices.ContainsFunc(leaf.DNSNames, func(have string) bool {
		return slices.ContainsFunc(names, func(want string) bool { return strings.EqualFold(have, want) })
	})
}

// Carries says whether the peer of this connection showed a certificate with the name.
func Carries(s *tls.ConnectionState, name string) bool {
	return s != nil && len(s.PeerCertificates) > 0 && carries(s.PeerCertificates[0], []string{name})
}
