//go:build bench

package bench

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

const peerMembers = 3

// peer is a JetStream cluster of three processes with one stream of three replicas on files, and a gateway in front of it.
type peer struct {
	leaderURL string // of the member that leads the stream
	gateway   string // host:port
	pids      []int
}

// startPeer starts it; the test's cleanup stops it. sync is "always" or "default".
func startPeer(t *testing.T, sync string) *peer {
	t.Helper()
	dir := t.TempDir()
	ports := freePorts(t, 2*peerMembers+1)
	clients, routes, gateway := ports[:peerMembers], ports[peerMembers:2*peerMembers], ports[2*peerMembers]
	p := &peer{gateway: "127.0.0.1:" + gateway}
	var waits []func()
	launch := func(args ...string) {
		pid, wait := start(t, "peer", args...)
		p.pids, waits = append(p.pids, pid), append(waits, wait)
	}
	for i := range peerMembers {
		launch("server", fmt.Sprintf("n%d", i), filepath.Join(dir, fmt.Sprintf("n%d", i)), clients[i], routes[i], strings.Join(routes, ","), sync)
	}
	for _, wait := range waits {
		wait()
	}
	p.leaderURL = createStream(t, clients)
	launch("gateway", p.gateway, p.leaderURL)
	waits[peerMembers]()
	return p
}

// createStream makes the stream as soon as the cluster can, and tells where its leader answers: what is published there takes
// one hop less.
func createStream(t *testing.T, clients []string) string {
	t.Helper()
	conn, err := nats.Connect("nats://127.0.0.1:" + clients[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := conn.JetStream(nats.MaxWait(2 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	config := &nats.StreamConfig{Name: "CALLS", Subjects: []string{"calls.>"}, Storage: nats.FileStorage, Replicas: peerMembers}
	limit := time.Now().Add(30 * time.Second)
	for {
		_, err := js.AddStream(config)
		if err == nil {
			info, infoErr := js.StreamInfo("CALLS")
			if infoErr == nil && info.Cluster != nil && len(info.Cluster.Replicas) == peerMembers-1 && strings.HasPrefix(info.Cluster.Leader, "n") {
				return "nats://127.0.0.1:" + clients[info.Cluster.Leader[1]-'0']
			}
			err = infoErr
		}
		if time.Now().After(limit) {
			t.Fatalf("the peer's stream is not there after 30 s: %v", err)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// publish measures its own client: synchronous publishers on one connection.
func (p *peer) publish(t *testing.T, callers int, warm, length time.Duration) sample {
	t.Helper()
	conn, err := nats.Connect(p.leaderURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := conn.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	return weighed(p.pids, share(warm, length), func() sample {
		return drive(t, callers, warm, length, func(int) (caller, func()) {
			return func(_ context.Context, n int) error {
				_, err := js.PublishMsg(&nats.Msg{Subject: "calls.sink", Data: payload(n)})
				return err
			}, func() {}
		})
	})
}

// http measures its gateway.
func (p *peer) http(t *testing.T, callers int, warm, length time.Duration) sample {
	t.Helper()
	return weighed(p.pids, share(warm, length), func() sample { return overHTTP(t, p.gateway, callers, warm, length) })
}

func overHTTP(t *testing.T, where string, callers int, warm, length time.Duration) sample {
	t.Helper()
	return drive(t, callers, warm, length, func(int) (caller, func()) {
		c := dial(t, where)
		return func(_ context.Context, n int) error { return c.post("/async-function/sink/x", payload(n)) }, c.close
	})
}

// start a program of bench and give its pid and a function that waits until it has printed "ready". The cleanup stops it.
func start(t *testing.T, program string, args ...string) (pid int, wait func()) {
	t.Helper()
	cmd := exec.Command(filepath.Join(programs, program), args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
	})
	return cmd.Process.Pid, func() {
		t.Helper()
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("%s %v did not say ready: %q %v", program, args, line, err)
		}
	}
}

// freePorts nobody listens on at this moment.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	var open []net.Listener
	for range n {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	for _, l := range open {
		_ = l.Close()
	}
	return ports
}
