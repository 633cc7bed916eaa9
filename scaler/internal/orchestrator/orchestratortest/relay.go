package orchestratortest

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Relay passes connections on to an orchestrator, until it is told to cut them.
type Relay struct {
	// Address is where it listens: of the network it was made for.
	Address string

	mu     sync.Mutex
	open   map[net.Conn]bool
	closed time.Time // no connection is taken before
}

// NewRelay starts a relay to an address of a network, unix or tcp, for as long as the test runs.
func NewRelay(t *testing.T, network, to string) *Relay {
	t.Helper()
	r := &Relay{open: map[net.Conn]bool{}}
	at := "127.0.0.1:0"
	if network == "unix" {
		at = filepath.Join(t.TempDir(), "relay.sock")
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), network, at)
	if err != nil {
		t.Fatal(err)
	}
	r.Address = listener.Addr().String()
	var wait sync.WaitGroup
	t.Cleanup(func() { listener.Close(); r.Cut(0); wait.Wait() }) //nolint:errcheck // the end of a test
	wait.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			wait.Go(func() { r.pass(t.Context(), from, network, to) })
		}
	})
	return r
}

func (r *Relay) pass(ctx context.Context, from net.Conn, network, to string) {
	there, err := (&net.Dialer{}).DialContext(ctx, network, to)
	r.mu.Lock()
	refused := err != nil || time.Now().Before(r.closed)
	if !refused {
		r.open[from], r.open[there] = true, true
	}
	r.mu.Unlock()
	if refused {
		from.Close() //nolint:errcheck // that is the point
		if err == nil {
			there.Close() //nolint:errcheck // nothing was said on it
		}
		return
	}
	var wait sync.WaitGroup
	wait.Go(func() { copyAndClose(there, from) })
	wait.Go(func() { copyAndClose(from, there) })
	wait.Wait()
	r.mu.Lock()
	delete(r.open, from)
	delete(r.open, there)
	r.mu.Unlock()
}

func copyAndClose(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	to.Close()   //nolint:errcheck // both ends are done
	from.Close() //nolint:errcheck // both ends are done
}

// Cut closes every connection, and takes no new one for a while.
func (r *Relay) Cut(refuse time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = time.Now().Add(refuse)
	for conn := range r.open {
		conn.Close() //nolint:errcheck // that is the point
	}
}
