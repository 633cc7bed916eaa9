package certs_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/certs"
)

// shelf keeps Secrets with the API server's rules.
type shelf struct {
	mu      sync.Mutex
	secrets map[string]map[string][]byte
	version map[string]int
}

func newShelf() *shelf {
	return &shelf{secrets: map[string]map[string][]byte{}, version: map[string]int{}}
}

func (s *shelf) Secret(_ context.Context, name string) (map[string][]byte, string, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, found := s.secrets[name]
	return maps.Clone(data), strconv.Itoa(s.version[name]), found, nil
}

func (s *shelf) CreateSecret(_ context.Context, name string, data map[string][]byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, found := s.secrets[name]; found {
		return false, nil
	}
	s.secrets[name] = maps.Clone(data)
	return true, nil
}

func (s *shelf) ReplaceSecret(_ context.Context, name, version string, data map[string][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version != strconv.Itoa(s.version[name]) {
		return errors.New("conflict")
	}
	s.version[name]++
	s.secrets[name] = maps.Clone(data)
	return nil
}

var silent = slog.New(slog.DiscardHandler)

func certificate(t *testing.T, raw []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(raw)
	if block == nil {
		t.Fatalf("no certificate: %q", raw)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestInitMakesEverythingOnce(t *testing.T) {
	t.Parallel()
	in := newShelf()
	var work sync.WaitGroup
	for range 3 { // a Job that was started again while the first still runs
		work.Go(func() {
			if err := certs.Init(t.Context(), in, silent); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	for name, want := range map[string][]string{
		certs.Authority: {"ca.crt", "ca.key"},
		certs.Bus: {
			"bus-edge.pub", "bus-edge.seed", "bus-queue.pub", "bus-queue.seed", "bus-scaler.pub", "bus-scaler.seed", "routes.password", "token-edge",
			"token-queue", "token-scaler",
		},
		certs.TLS: {"ca.crt", "edge.crt", "edge.key", "queue.crt", "queue.key", "scaler.crt", "scaler.key"},
	} {
		if got := slices.Sorted(maps.Keys(in.secrets[name])); !slices.Equal(got, want) {
			t.Errorf("%s holds %v", name, got)
		}
	}
	authority := certificate(t, in.secrets[certs.Authority]["ca.crt"])
	queue := certificate(t, in.secrets[certs.TLS]["queue.crt"])
	if err := queue.CheckSignatureFrom(authority); err != nil {
		t.Errorf("the authority that is kept did not issue what is kept: %v", err)
	}
	for _, name := range []string{"queue", "slimfaas-queue-0", "slimfaas-queue-6"} {
		if !slices.Contains(queue.DNSNames, name) {
			t.Errorf("the queue's certificate carries %v", queue.DNSNames)
		}
	}
	before := maps.Clone(in.secrets[certs.TLS])
	if err := certs.Init(t.Context(), in, silent); err != nil || !bytes.Equal(before["edge.key"], in.secrets[certs.TLS]["edge.key"]) {
		t.Errorf("a second run changed something: %v", err)
	}
	delete(in.secrets, certs.TLS) // a half-done first run
	if err := certs.Init(t.Context(), in, silent); err != nil {
		t.Fatal(err)
	}
	if err := certificate(t, in.secrets[certs.TLS]["edge.crt"]).CheckSignatureFrom(authority); err != nil {
		t.Errorf("another authority issued what was missing: %v", err)
	}
}

func TestRenewalKeepsTheAuthority(t *testing.T) {
	t.Parallel()
	in := newShelf()
	if err := certs.Renew(t.Context(), in, time.Now(), false, silent); err == nil {
		t.Error("nothing was renewed without an error")
	}
	if err := certs.Init(t.Context(), in, silent); err != nil {
		t.Fatal(err)
	}
	bundle := []byte("two authorities")
	in.secrets[certs.TLS]["ca.crt"] = bundle
	before := maps.Clone(in.secrets[certs.TLS])
	for _, step := range []struct {
		in      time.Duration
		force   bool
		changes bool
	}{{0, false, false}, {200 * 24 * time.Hour, false, false}, {300 * 24 * time.Hour, false, true}, {0, true, true}} {
		if err := certs.Renew(t.Context(), in, time.Now().Add(step.in), step.force, silent); err != nil {
			t.Fatal(err)
		}
		after := in.secrets[certs.TLS]
		if changed := !bytes.Equal(after["edge.crt"], before["edge.crt"]); changed != step.changes {
			t.Errorf("%+v: changed %v", step, changed)
		}
		if !bytes.Equal(after["ca.crt"], bundle) {
			t.Error("the bundle was replaced")
		}
		before = maps.Clone(after)
	}
	if err := certs.Renew(t.Context(), in, time.Now().Add(9*365*24*time.Hour), false, silent); err == nil {
		t.Error("an authority near its end was not told")
	}
}
