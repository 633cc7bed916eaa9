//go:build timing

package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

func memoryAtMost(t *testing.T, what string, got, want float64) {
	t.Helper()
	t.Logf("figure memory %s %.0f MiB (want ≤ %.0f)", what, got, want)
	if got > want {
		t.Errorf("%s: the edge has %.0f MiB, want ≤ %.0f", what, got, want)
	}
}

func TestTimingMemoryOfParkedRequests(t *testing.T) {
	const parked = 10_000
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{
		Env:       []string{"EDGE_PARKED_PER_FUNCTION=20000", "EDGE_PARKED_TOTAL=20000", "EDGE_MAX_CONNECTIONS=20000"},
		Functions: rec.yaml(fn{name: "late", env: map[string]string{"START_DELAY_MS": "3600000"}}),
	})
	connect(t, c, parked, "GET /function/late/ HTTP/1.1\r\nHost: e\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	c.Eventually(60*time.Second, "all are parked", func() error {
		if n, err := edgeGauge(c, "slimfaas_edge_parked"); err != nil || n < parked {
			return fmt.Errorf("%v are, %w", n, err)
		}
		return nil
	})
	memoryAtMost(t, "10,000 parked requests", resident(t, c.PID("edge-0")), 250)
}

func TestTimingMemoryOfWebSockets(t *testing.T) {
	const sockets = 5000
	function := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return // health
		}
		conn, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, in)
	}))
	t.Cleanup(function.Close)
	c := cluster.Start(t, cluster.Options{
		Env:       []string{"EDGE_MAX_CONNECTIONS=20000"},
		Functions: newRecords(t).yaml(fn{name: "sockets", debugURL: function.URL}),
	})
	for i, conn := range connect(t, c, sockets, "GET /function/sockets/ HTTP/1.1\r\nHost: e\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n") {
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		line, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
		if err != nil || !strings.Contains(line, "101") {
			t.Fatalf("socket %d: %q %v", i, line, err)
		}
	}
	memoryAtMost(t, "5,000 open WebSockets", resident(t, c.PID("edge-0")), 250)
}

func TestTimingMemoryOfIdleFunctions(t *testing.T) {
	const functions = 1000
	rec := newRecords(t)
	list := make([]fn, functions)
	for i := range list {
		list[i] = fn{name: fmt.Sprintf("idle%d", i)}
	}
	c := cluster.Start(t, cluster.Options{Ports: functions, Functions: rec.yaml(list...)})
	c.Eventually(30*time.Second, "the edge knows all functions", func() error {
		if n, err := edgeGauge(c, "slimfaas_edge_functions"); err != nil || n < functions {
			return fmt.Errorf("%v, %w", n, err)
		}
		return nil
	})
	pace(5 * time.Second) // idle
	memoryAtMost(t, "1,000 idle functions", resident(t, c.PID("edge-0")), 40)
}
