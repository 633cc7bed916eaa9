package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// pattern is a body of a length without end in memory, and its sum.
type pattern struct {
	left int64
	at   byte
	sum  hash.Hash
}

func newPattern(size int64) *pattern { return &pattern{left: size, sum: sha256.New()} }

func (p *pattern) Read(into []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(into)), p.left, 64<<10)
	for i := range n {
		into[i] = p.at
		p.at++
	}
	p.left -= n
	p.sum.Write(into[:n])
	return int(n), nil
}

// peak is the most memory a process has had resident since reset, in MiB.
func peak(t *testing.T, pid int, reset bool) float64 {
	t.Helper()
	if reset {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// TestChaosE5BigBodies: bodies that no memory should hold, with and without a length, up and down, one after another: each byte
// arrives, and the edge's memory stays as it is. The limit of asynchronous ones is TestBodies'.
func TestChaosE5BigBodies(t *testing.T) {
	n := newNemesis(t)
	size := int64(n.runs(24, 1024)) << 20
	var got atomic.Pointer[string]
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/down" {
			if r.URL.Query().Has("length") {
				w.Header().Set("Content-Length", fmt.Sprint(size))
			}
			body := newPattern(size)
			_, _ = io.Copy(w, body)
			sum := hex.EncodeToString(body.sum.Sum(nil))
			got.Store(&sum)
			return
		}
		sum := sha256.New()
		_, _ = io.Copy(sum, r.Body)
		text := hex.EncodeToString(sum.Sum(nil))
		got.Store(&text)
	}))
	t.Cleanup(sink.Close)
	c := cluster.Start(t, cluster.Options{Queues: 1, Env: []string{fmt.Sprintf("EDGE_MAX_BODY_BYTES=%d", size)}, Functions: newRecords(t).yaml(fn{
		name: "big", debugURL: sink.URL, annotations: map[string]string{"Configuration": `{"DefaultSync":{"HttpTimeout":600}}`},
	})})
	client := &http.Client{Timeout: 10 * time.Minute, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	c.Eventually(20*time.Second, "a function that answers", func() error {
		status, body, err := c.Get(0, "/function/big/")
		return wantStatus(status, 200, body, err)
	})
	pid := c.PID("edge-0")
	for _, how := range []struct {
		name, path string
		up, length bool
	}{
		{"up, with a length", "/up", true, true}, {"up, without", "/up", true, false},
		{"down, with a length", "/down?length", false, true}, {"down, without", "/down", false, false},
	} {
		t.Run(how.name, func(t *testing.T) {
			before := peak(t, pid, true)
			began := time.Now()
			method, sent := http.MethodGet, newPattern(0)
			if how.up {
				method, sent = http.MethodPost, newPattern(size)
			}
			request, err := http.NewRequestWithContext(t.Context(), method, c.URL(0)+"/function/big"+how.path, sent)
			if err != nil {
				t.Fatal(err)
			}
			if how.up && how.length {
				request.ContentLength = size
			} else if !how.up {
				request.Body = nil
			}
			answer, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			received := sha256.New()
			read, err := io.Copy(received, answer.Body)
			if err != nil || answer.StatusCode != http.StatusOK {
				t.Fatalf("%d, %d bytes: %v", answer.StatusCode, read, err)
			}
			want := hex.EncodeToString(sent.sum.Sum(nil))
			if !how.up {
				want = hex.EncodeToString(received.Sum(nil))
				if read != size {
					t.Errorf("%d bytes came down", read)
				}
			}
			c.Eventually(10*time.Second, "the function has seen the end", func() error {
				if sum := got.Load(); sum == nil || *sum != want {
					return errNotYet
				}
				return nil
			})
			after := peak(t, pid, false)
			t.Logf("figure E5 %s: %d MiB in %v, peak RSS of the edge %.0f MiB, before %.0f", how.name, size>>20, time.Since(began).Round(time.Millisecond), after, before)
			if n.full && after > before+50 {
				t.Errorf("the edge took %.0f MiB more", after-before)
			}
		})
	}
}
