package testkit

import (
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
)

// Ports that tests choose: below the range the kernel hands out by itself, where a connection of anybody could take a port between
// the choosing and the listening.
const firstPort, ports = 10000, 9000

// nextPort counts on from a place that is far from those of the test processes that run side by side, whose pids are near.
var nextPort atomic.Uint32

func init() { nextPort.Store(uint32(os.Getpid()) * 2654435761) }

// FreeAddresses gives n loopback addresses nobody listens on. None is given twice by one process before all were.
func FreeAddresses(t testing.TB, n int) []string {
	t.Helper()
	addresses := make([]string, 0, n)
	for range ports {
		if len(addresses) == n {
			return addresses
		}
		port := firstPort + int(nextPort.Add(1)%ports)
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		_ = l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	t.Fatalf("no %d free ports", n)
	return nil
}
