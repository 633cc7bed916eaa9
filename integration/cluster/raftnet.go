package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// RaftNet stands between the Raft listeners of the queue nodes: each node dials the others through it, and it can cut any
// direction between any two. A cut holds bytes back as a network does that loses packets: nothing is closed, what TCP would
// send again arrives after the healing, and a new connection does not come about while either direction is cut.
//
// It needs no root. Who dials is found in /proc: the process that owns the other end of the connection.
type RaftNet struct {
	t         testing.TB
	listeners map[string]net.Listener // by target
	life      context.Context
	end       context.CancelFunc
	work      sync.WaitGroup

	mu      sync.Mutex         // guards the fields below
	cluster *Cluster           // nil until Attach
	cuts    map[[2]string]bool // from, to
	changed chan struct{}      // closed and replaced when cuts change
}

// NewRaftNet listens for nodes queue-0 to queue-(n-1). Give its Prelude to the cluster, and the cluster to Attach.
func NewRaftNet(t testing.TB, nodes int) *RaftNet {
	t.Helper()
	life, end := context.WithCancel(context.Background())
	r := &RaftNet{t: t, listeners: map[string]net.Listener{}, life: life, end: end, cuts: map[[2]string]bool{}, changed: make(chan struct{})}
	for i := range nodes {
		name := fmt.Sprintf("queue-%d", i)
		l, err := (&net.ListenConfig{}).Listen(life, "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("listening in front of %s: %v", name, err)
		}
		r.listeners[name] = l
		r.work.Go(func() { r.accept(name, l) })
	}
	t.Cleanup(func() {
		r.end()
		for _, l := range r.listeners {
			_ = l.Close()
		}
		r.work.Wait()
	})
	return r
}

// Prelude of the queue program: the Raft address of every member is that of the net. The node itself listens where it was told.
func (r *RaftNet) Prelude() string {
	var expressions []string
	for name, l := range r.listeners {
		_, port, _ := net.SplitHostPort(l.Addr().String())
		expressions = append(expressions, fmt.Sprintf(`s/%s=127.0.0.1:[0-9]*:/%s=127.0.0.1:%s:/`, name, name, port))
	}
	return Redirect("QUEUE_MEMBERS", expressions...)
}

// Attach says which cluster's nodes these are, before it runs.
func (r *RaftNet) Attach(c *Cluster) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cluster = c
}

// Cut what goes from one node to another; the way back stays open.
func (r *RaftNet) Cut(from, to string) { r.set(func() { r.cuts[[2]string{from, to}] = true }) }

// Isolate a node from all others, both ways.
func (r *RaftNet) Isolate(node string) {
	r.set(func() {
		for other := range r.listeners {
			if other != node {
				r.cuts[[2]string{node, other}], r.cuts[[2]string{other, node}] = true, true
			}
		}
	})
}

// Heal everything.
func (r *RaftNet) Heal() { r.set(func() { clear(r.cuts) }) }

func (r *RaftNet) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

// open waits until the ways are open; false when the net has ended.
func (r *RaftNet) open(ways ...[2]string) bool {
	for {
		r.mu.Lock()
		changed, cut := r.changed, false
		for _, w := range ways {
			cut = cut || r.cuts[w]
		}
		r.mu.Unlock()
		if !cut {
			return r.life.Err() == nil
		}
		select {
		case <-changed:
		case <-r.life.Done():
			return false
		}
	}
}

func (r *RaftNet) accept(to string, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		r.work.Go(func() { r.forward(conn, to) })
	}
}

func (r *RaftNet) forward(conn net.Conn, to string) {
	defer conn.Close()
	r.mu.Lock()
	c := r.cluster
	r.mu.Unlock()
	if c == nil {
		return
	}
	from, err := dialler(c, conn)
	if err != nil {
		return // it has gone again
	}
	there, back := [2]string{from, to}, [2]string{to, from}
	began := time.Now()
	if !r.open(there, back) || time.Since(began) > 100*time.Millisecond {
		return // its packets were lost: whoever still waits dials again
	}
	target, err := (&net.Dialer{Timeout: time.Second}).DialContext(r.life, "tcp", fmt.Sprintf("127.0.0.1:%d", c.Ports()[to]["raft"]))
	if err != nil {
		return
	}
	defer target.Close()
	defer context.AfterFunc(r.life, func() { _, _ = conn.Close(), target.Close() })()
	var both sync.WaitGroup
	both.Go(func() { r.copy(target, conn, there) })
	both.Go(func() { r.copy(conn, target, back) })
	both.Wait()
}

// copy one way until its source ends; what was read before a cut waits with the rest.
func (r *RaftNet) copy(to, from net.Conn, way [2]string) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if !r.open(way) {
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// dialler is the queue node whose process has the other end of a loopback connection.
func dialler(c *Cluster, conn net.Conn) (string, error) {
	peer, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return "", errors.New("not TCP")
	}
	self, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return "", errors.New("not TCP")
	}
	raw, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	local, remote := fmt.Sprintf(":%04X", peer.Port), fmt.Sprintf(":%04X", self.Port)
	inode := ""
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) > 9 && strings.HasSuffix(f[1], local) && strings.HasSuffix(f[2], remote) {
			inode = "socket:[" + f[9] + "]"
		}
	}
	for _, name := range c.Queues() {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.PID(name)))
		for _, f := range files {
			if to, err := os.Readlink(f); err == nil && to == inode {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("nobody has %s", inode)
}

// Pause a process of the stack with SIGSTOP and let it go on with the returned function, at the latest when the test ends.
func (c *Cluster) Pause(name string) (resume func()) {
	c.t.Helper()
	pid := c.PID(name)
	start := startTime(pid)
	c.Signal(name, syscall.SIGSTOP)
	var once sync.Once
	resume = func() {
		once.Do(func() {
			if startTime(pid) == start {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		})
	}
	c.t.Cleanup(resume)
	return resume
}
