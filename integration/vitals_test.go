package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// resident memory of a process, in MiB.
func resident(t *testing.T, pid int) float64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// edgeGauge of the edge, summed over functions.
func edgeGauge(c *cluster.Cluster, name string) (sum float64, err error) {
	_, body, err := c.Get(0, "/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == '{' || rest[0] == ' ') {
			fields := strings.Fields(line)
			v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, err
			}
			sum += v
		}
	}
	return sum, nil
}

// connect opens so many connections to the edge and sends the request on each.
func connect(t *testing.T, c *cluster.Cluster, n int, request string) []net.Conn {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(n)+1000 {
		t.Skipf("this process may have %d files open, the test needs %d (ulimit -n)", limit.Cur, n+1000)
	}
	all := make([]net.Conn, 0, n)
	t.Cleanup(func() {
		for _, conn := range all {
			_ = conn.Close()
		}
	})
	for range n {
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(c.URL(0), "http://"), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, conn)
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
