package integration

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// internalLinks are the listeners of a stack that speak TLS from the first byte, with a role that has business there. Routes
// begin with a line of NATS in the clear; queue/internal/bus tests them.
func internalLinks(c *cluster.Cluster) map[string]link {
	links := map[string]link{}
	for process, ports := range c.Ports() {
		for use, port := range ports {
			l := link{address: fmt.Sprintf("127.0.0.1:%d", port)}
			switch {
			case strings.HasPrefix(process, "queue-") && use == "raft":
				l.names = []string{"queue", "queue-0"}
			case strings.HasPrefix(process, "queue-") && (use == "api" || use == "bus"):
				l.names = []string{"edge", "edge-0"}
			case strings.HasPrefix(process, "scaler-") && use == "api":
				l.names = []string{"queue", "queue-0"}
			default:
				continue
			}
			links[process+" "+use] = l
		}
	}
	return links
}

type link struct {
	address string
	names   []string // of a certificate that is let in
}

// errRefused: the listener closed the connection at or right after the handshake.
var errRefused = errors.New("refused")

// shake makes a handshake and waits for what a listener that refuses a TLS 1.3 client does next. It returns the certificate
// the listener showed.
func (l link) shake(own *tls.Certificate) (*x509.Certificate, error) {
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if own != nil {
		config.Certificates = []tls.Certificate{*own}
	}
	raw, err := net.DialTimeout("tcp", l.address, 2*time.Second)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	conn := tls.Client(raw, config)
	if err := conn.Handshake(); err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	shown := conn.ConnectionState().PeerCertificates[0]
	// A listener that lets us in speaks (HTTP/2 settings, the bus's greeting) or, Raft, waits.
	_ = raw.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	var silence net.Error
	if err == nil || errors.As(err, &silence) && silence.Timeout() {
		return shown, nil
	}
	return shown, fmt.Errorf("%w: %w", errRefused, err)
}

func issue(t *testing.T, a *tlsconf.Authority, until time.Time, names ...string) *tls.Certificate {
	t.Helper()
	cert, key, err := a.Issue(until, names...)
	if err != nil {
		t.Error(err)
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Error(err)
		return nil
	}
	return &pair
}

// TestCertificatesRotateUnderLoad: the whole stack with TLS. Outsiders are refused at every internal listener; then the
// authority and every certificate are replaced while calls are accepted and delivered. Nothing restarts, the queue keeps its
// term, no accepted call is lost, also when the leader dies afterwards and everybody dials anew.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	inCompany(t)
	const clients = 16
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{
		Edges: 2, Scalers: 2, NoRestart: true, Env: []string{"SLIMFAAS_LOCAL_TLS=true"},
		Functions: rec.yaml(fn{name: "work", annotations: map[string]string{
			"NumberParallelRequest": "64", "NumberParallelRequestPerPod": "64", "TimeoutSecondBeforeSetReplicasMin": "600",
		}}),
	})
	secrets := filepath.Join(c.State, "secrets")
	old, err := tlsconf.LoadAuthority(filepath.Join(secrets, "authority", "ca.crt"), filepath.Join(secrets, "authority", "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	next, err := tlsconf.NewAuthority(24 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour)
	links := internalLinks(c)
	if len(links) != 11 { // three nodes' Raft, API and bus, two scalers' API
		t.Fatalf("links %v", slices.Sorted(maps.Keys(links)))
	}

	everyLink := func(check func(name string, l link)) { // at once: a listener that lets somebody in may say nothing
		var work sync.WaitGroup
		for name, l := range links {
			work.Go(func() { check(name, l) })
		}
		work.Wait()
	}
	everyLink(func(name string, l link) {
		if _, err := l.shake(issue(t, old, until, l.names...)); err != nil {
			t.Errorf("%s: who has business there: %v", name, err)
		}
		for what, own := range map[string]*tls.Certificate{
			"no certificate":                   nil,
			"a name without business there":    issue(t, old, until, "visitor"),
			"an expired certificate":           issue(t, old, time.Now().Add(-time.Minute), l.names...),
			"the certificate of another house": issue(t, next, until, l.names...),
		} {
			if _, err := l.shake(own); !errors.Is(err, errRefused) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if err := plain(l.address); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})

	processes := map[string]int{} // pids
	for _, prefix := range []string{"queue-", "edge-", "scaler-"} {
		for _, name := range c.Names(prefix) {
			processes[name] = c.PID(name)
		}
	}
	before, err := c.Info(0)
	if err != nil {
		t.Fatal(err)
	}
	var ledger history.Ledger
	var asked, accepted atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for client := range clients {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				a := enqueue(c, client%2, "work", fmt.Sprintf("%d-0", asked.Add(1)-1), "&ms=5")
				ledger.Add(a)
				if a.Outcome == history.OK {
					accepted.Add(1)
				}
				pace(40 * time.Millisecond) // the client's own pace
			}
		})
	}
	loaded := func(more int64) {
		t.Helper()
		mark := accepted.Load()
		c.Eventually(30*time.Second, "calls are accepted", func() error {
			if n := accepted.Load() - mark; n < more {
				return fmt.Errorf("%d of %d", n, more)
			}
			return nil
		})
	}
	loaded(100)

	role := func(process string) string { r, _, _ := strings.Cut(process, "-"); return r }
	rotate := func(step int, what string, replace func(dir, process string) error) {
		t.Helper()
		began := time.Now()
		for process := range processes {
			if err := replace(filepath.Join(secrets, process), process); err != nil {
				t.Fatal(err)
			}
		}
		c.Eventually(10*time.Second-time.Since(began), what+" is in use everywhere", func() error {
			for process := range processes {
				if got := strings.Count(c.Log(process), "new certificates are in use"); got < step {
					return fmt.Errorf("%s has taken over %d of %d", process, got, step)
				}
			}
			return nil
		})
		t.Logf("%s: in use everywhere after %v", what, time.Since(began).Round(time.Millisecond))
		loaded(50)
	}
	both := slices.Concat(old.PEM(), next.PEM())
	rotate(1, "trust in both authorities", func(dir, _ string) error {
		return tlsconf.Replace(filepath.Join(dir, tlsconf.CAFile), both)
	})
	// Three files one by one: a reading in between finds a certificate that does not fit its key, and waits for the next.
	rotate(2, "certificates of the new authority", func(dir, process string) error {
		return next.Write(dir, both, until, role(process), process)
	})
	rotate(3, "trust in the new authority alone", func(dir, _ string) error {
		return tlsconf.Replace(filepath.Join(dir, tlsconf.CAFile), next.PEM())
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(next.PEM())
	everyLink(func(name string, l link) {
		shown, err := l.shake(issue(t, next, until, l.names...))
		if err != nil {
			t.Errorf("%s: the new authority's certificate: %v", name, err)
		} else if _, err := shown.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
			t.Errorf("%s shows a certificate of the old authority", name)
		}
		if _, err := l.shake(issue(t, old, until, l.names...)); !errors.Is(err, errRefused) {
			t.Errorf("%s: the old authority's certificate: %v", name, err)
		}
	})
	after, err := c.Info(0)
	if err != nil || after.Queue.Term != before.Queue.Term || after.Scaler.Epoch != before.Scaler.Epoch {
		t.Errorf("somebody lost an office: %+v, before %+v, %v", after, before, err)
	}
	for process, pid := range processes {
		if c.PID(process) != pid {
			t.Errorf("%s has restarted", process)
		}
	}

	leader := c.QueueLeader(1)
	c.Kill(leader) // what lived on old connections dials anew
	loaded(200)
	close(stop)
	load.Wait()
	checkLedger(t, c, rec, "work", &ledger)
	if status, body, err := c.Get(0, "/cluster"); err != nil || status != http.StatusOK || !bytes.Contains(body, []byte("scaler-")) {
		t.Errorf("GET /cluster: %d %s %v", status, body, err)
	}
}

// plain is nil when a listener says nothing to somebody without TLS, or no more than that it wants TLS.
func plain(address string) error {
	conn, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return nil
	}
	answer, _ := io.ReadAll(conn)
	if len(answer) > 0 && answer[0] != 0x15 /* a TLS alert */ && !bytes.Contains(answer, []byte("400 Bad Request")) {
		return fmt.Errorf("somebody without TLS was answered %q", answer)
	}
	return nil
}
