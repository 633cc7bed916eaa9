package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one cluster.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's authority: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's authority: %w", err)
	}
	a := &authority{dir: dir, key: key}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		return nil, fmt.Errorf("read the cluster's authority: %w", err)
	}
	return a, write(filepath.Join(dir, "ca.crt"), "CERTIFICATE", raw)
}

// issue writes name.crt and name.key.
func (a *authority) issue(name string, subject pkix.Name, names []string, addresses ...net.IP) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the certificate %s: %w", name, err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) //nolint:errcheck // never fails
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: subject, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, DNSNames: names, IPAddresses: addresses,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return fmt.Errorf("make the certificate %s: %w", name, err)
	}
	if err := write(filepath.Join(a.dir, name+".crt"), "CERTIFICATE", raw); err != nil {
		return err
	}
	return writeKey(filepath.Join(a.dir, name+".key"), key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key %s: %w", path, err)
	}
	return write(path, "EC PRIVATE KEY", raw)
}

func write(path, kind string, raw []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600)
}

// pki makes all certificates, the key of service accounts, and a kubeconfig with a token for each user.
func (c *Cluster) pki() error {
	dir := filepath.Join(c.dir, "pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of certificates: %w", err)
	}
	ca, err := newAuthority(dir)
	if err != nil {
		return err
	}
	own, service := net.ParseIP(Address), net.ParseIP(serviceAddress)
	if err := ca.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"},
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, net.IPv4(127, 0, 0, 1), own, service); err != nil {
		return err
	}
	if err := ca.issue("kubelet-client", pkix.Name{Organization: []string{"system:masters"}, CommonName: "kube-apiserver-kubelet-client"}, nil); err != nil {
		return err
	}
	if err := ca.issue("kubelet", pkix.Name{Organization: []string{"system:nodes"}, CommonName: "system:node:" + nodeName}, []string{nodeName}, own); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the key of service accounts: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encode the key of service accounts: %w", err)
	}
	if err := write(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", public); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "sa.key"), key); err != nil {
		return err
	}
	var tokens []byte
	for name, who := range map[string][2]string{
		"admin": {"kubernetes-admin", "system:masters"}, "kcm": {"system:kube-controller-manager", ""}, "scheduler": {"system:kube-scheduler", ""},
		"kubelet": {"system:node:" + nodeName, "system:nodes"}, "proxy": {"system:kube-proxy", ""}, "kwok": {"kwok", "system:masters"},
	} {
		token := rand.Text()
		tokens = fmt.Appendf(tokens, "%s,%s,%s,%q\n", token, who[0], name, who[1])
		config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: k, cluster: {server: "https://%s:6443", certificate-authority: %s/ca.crt}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: k, user: u}}]
current-context: c
`, Address, dir, token)
		if err := os.WriteFile(c.kubeconfig(name), []byte(config), 0o600); err != nil {
			return fmt.Errorf("write the kubeconfig of %s: %w", name, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, "tokens.csv"), tokens, 0o600)
}
