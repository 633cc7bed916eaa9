//go:build timing

package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// TestTimingTLS: what mutual TLS on every internal link costs the accept: our client, 1 KiB of random bytes, three nodes, two
// stacks beside one another that take turns.
func TestTimingTLS(t *testing.T) {
	const rounds, length = 5, 3 * time.Second
	rec := newRecords(t)
	stack := func(with string) *queueclient.Client {
		c := cluster.Start(t, cluster.Options{Functions: rec.yaml(fn{name: "idle"}), Env: []string{"SLIMFAAS_LOCAL_TLS=" + with}})
		secrets := filepath.Join(c.State, "secrets")
		token, err := secret.Read(secrets, "token-edge")
		if err != nil {
			t.Fatal(err)
		}
		files, err := tlsconf.Open(filepath.Join(secrets, "edge-0"), slog.New(slog.DiscardHandler)) // of a plain stack: none
		if err != nil {
			t.Fatal(err)
		}
		o := queueclient.Options{Token: token, Name: "timing", RPCTimeout: 10 * time.Second}
		if files != nil {
			o.TLS = files.Client(tlsconf.Names("queue"))
		}
		for i := range 3 {
			o.Endpoints = append(o.Endpoints, fmt.Sprintf("http://127.0.0.1:%d", c.Ports()[fmt.Sprintf("queue-%d", i)]["api"]))
		}
		client := queueclient.New(o)
		t.Cleanup(client.Close)
		return client
	}
	clients := map[string]*queueclient.Client{"plain": stack("false"), "TLS": stack("true")}
	for _, callers := range []int{64, 512} {
		rates, medians := map[string][]float64{}, map[string][]time.Duration{}
		for round := range rounds {
			order := []string{"plain", "TLS"}
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, name := range order {
				rate, median := acceptRate(t, clients[name], callers, length)
				rates[name], medians[name] = append(rates[name], rate), append(medians[name], median)
			}
		}
		for name := range rates {
			slices.Sort(rates[name])
			slices.Sort(medians[name])
		}
		t.Logf("%d callers, median of %d rounds of %v: plain %.0f accepts/s (p50 %v), TLS %.0f accepts/s (p50 %v), TLS/plain %.2f; plain %.0f, TLS %.0f",
			callers, rounds, length, rates["plain"][rounds/2], medians["plain"][rounds/2].Round(10*time.Microsecond),
			rates["TLS"][rounds/2], medians["TLS"][rounds/2].Round(10*time.Microsecond),
			rates["TLS"][rounds/2]/rates["plain"][rounds/2], rates["plain"], rates["TLS"])
	}
}

// acceptRate is accepts per second and the median latency, of calls for a function that nobody has.
func acceptRate(t *testing.T, client *queueclient.Client, callers int, length time.Duration) (float64, time.Duration) {
	t.Helper()
	payload := make([]byte, 1<<10)
	_, _ = rand.Read(payload)
	ctx, cancel := context.WithTimeout(t.Context(), length+10*time.Second)
	defer cancel()
	var all sync.WaitGroup
	took := make([][]time.Duration, callers)
	began := time.Now()
	for i := range callers {
		all.Go(func() {
			for time.Since(began) < length {
				id := make([]byte, 16)
				_, _ = rand.Read(id)
				id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80 // UUIDv7 in shape
				sent := time.Now()
				r, err := client.Do(ctx, &wire.Op{Op: &wire.Op_Accept{Accept: &wire.Accept{
					Id: id, Function: "nobody", Payload: bytes.Clone(payload), Size: uint64(len(payload)),
				}}})
				if err != nil || r.GetCode() != wire.Code_CODE_OK {
					t.Errorf("accept: %v, %v", r, err)
					return
				}
				took[i] = append(took[i], time.Since(sent))
			}
		})
	}
	all.Wait()
	elapsed := time.Since(began)
	flat := slices.Concat(took...)
	if len(flat) == 0 {
		t.Fatal("nothing was accepted")
	}
	slices.Sort(flat)
	return float64(len(flat)) / elapsed.Seconds(), flat[len(flat)/2]
}
