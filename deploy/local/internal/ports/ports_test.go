package ports

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func none(int) bool { return false }

func take(t *testing.T, name string) *Block {
	t.Helper()
	block, err := TakeBlock(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = block.Release() })
	return block
}

func TestTwoStacksThatRunHaveNoPortInCommon(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ports.json")
	first, second := take(t, path), take(t, path)
	if first.first == second.first {
		t.Errorf("both have the ports from %d", first.first)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if again := take(t, path); again.has(second.first) {
		t.Error("a block was given that is still held")
	}
}

func TestPortsStayAcrossRestartsAndABusyOneIsChosenAnew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ports.json")
	wants := []Want{{Process: "queue-0", Use: "raft"}, {Process: "queue-0", Use: "api"}, {Process: "edge-0", Use: "admin"}}
	block := take(t, path)
	first, err := block.Choose(path, wants, none)
	if err != nil {
		t.Fatal(err)
	}
	second, err := block.Choose(path, wants, none)
	if err != nil {
		t.Fatal(err)
	}
	if first.String() != second.String() {
		t.Errorf("the second start has %v, the first had %v", second, first)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first["queue-0"]["api"]))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	third, err := block.Choose(path, wants, none)
	if err != nil {
		t.Fatal(err)
	}
	if third["queue-0"]["api"] == first["queue-0"]["api"] {
		t.Error("a port somebody listens on was chosen")
	}
	if third["queue-0"]["raft"] != first["queue-0"]["raft"] || third["edge-0"]["admin"] != first["edge-0"]["admin"] {
		t.Errorf("ports that were free changed: %v, before %v", third, first)
	}
}

func TestABusyFixedPortNamesPortAndHolder(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	path := filepath.Join(t.TempDir(), "ports.json")
	_, err = take(t, path).Choose(path, []Want{{Process: "edge-0", Use: "public", Fixed: port}}, none)
	var busy *Busy
	if !errors.As(err, &busy) {
		t.Fatalf("got %v, want a Busy", err)
	}
	for _, part := range []string{fmt.Sprint(port), "edge-0", fmt.Sprintf("pid %d", os.Getpid())} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestChosenPortsAvoidTheFunctions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ports.json")
	block := take(t, path)
	book, err := block.Choose(path, []Want{{Process: "a", Use: "x"}}, func(port int) bool { return port == block.first })
	if err != nil {
		t.Fatal(err)
	}
	if book["a"]["x"] == block.first {
		t.Error("a port of the functions was chosen")
	}
}

func TestARangeGoesRoundBeforeItRepeats(t *testing.T) {
	t.Parallel()
	low, _ := ours()
	r := NewRange(low, low+3)
	seen := map[int]bool{}
	for range 3 {
		port, err := r.Take()
		if err != nil {
			t.Skipf("the machine uses this range: %v", err)
		}
		r.Give(port)
		if seen[port] {
			t.Errorf("port %d came back at once", port)
		}
		seen[port] = true
	}
	for range 4 {
		if _, err := r.Take(); err != nil {
			t.Skipf("the machine uses this range: %v", err)
		}
	}
	if _, err := r.Take(); err == nil {
		t.Error("a fifth port of four was handed out")
	}
}
