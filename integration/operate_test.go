package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/shared/testkit"
)

// operator is a person with bin/queue and the stack's state directory. Nodes beside those of bin/local are processes of ours.
type operator struct {
	t     *testing.T
	c     *cluster.Cluster
	list  []string // QUEUE_MEMBERS entries of everybody ever started
	extra map[string]*extra
}

type extra struct {
	cmd   *exec.Cmd
	dir   string
	admin string // address
	env   []string
}

func newOperator(t *testing.T, c *cluster.Cluster) *operator {
	o := &operator{t: t, c: c, extra: map[string]*extra{}}
	for name, p := range c.Ports() {
		if strings.HasPrefix(name, "queue-") {
			o.list = append(o.list, fmt.Sprintf("%s=127.0.0.1:%d:%d:%d", name, p["raft"], p["api"], p["routes"]))
		}
	}
	slices.Sort(o.list)
	t.Cleanup(func() { // its nodes may be the majority, which the stack needs for its own end
		c.Stop(syscall.SIGTERM)
		for name := range o.extra {
			o.stop(name)
		}
	})
	return o
}

// queue runs a sub-command.
func (o *operator) queue(args ...string) (string, error) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(cluster.Bin(), "queue"), args...)
	cmd.Env = append(o.c.Env(), "QUEUE_MEMBERS="+strings.Join(o.list, ","), "QUEUE_SECRETS_DIR="+filepath.Join(o.c.State, "secrets"))
	out, err := cmd.CombinedOutput()
	o.t.Logf("queue %s: %v\n%s", strings.Join(args, " "), err, out)
	return string(out), err
}

func (o *operator) must(args ...string) string {
	o.t.Helper()
	out, err := o.queue(args...)
	if err != nil {
		o.t.Fatalf("queue %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// start a node that waits to be added, and give its entry.
func (o *operator) start(name string) string {
	o.t.Helper()
	at := testkit.FreeAddresses(o.t, 5)
	port := func(i int) string { return strings.TrimPrefix(at[i], "127.0.0.1:") }
	entry := fmt.Sprintf("%s=127.0.0.1:%s:%s:%s", name, port(0), port(1), port(2))
	o.list = append(o.list, entry)
	o.extra[name] = &extra{dir: o.t.TempDir(), admin: at[4], env: append(o.c.Env(),
		"QUEUE_NAME="+name, "QUEUE_JOIN=true", "QUEUE_MEMBERS="+strings.Join(o.list, ","), "QUEUE_SECRETS_DIR="+filepath.Join(o.c.State, "secrets"),
		"QUEUE_RAFT_ADDRESS="+at[0], "QUEUE_API_ADDRESS="+at[1], "QUEUE_ROUTES_ADDRESS="+at[2], "QUEUE_BUS_ADDRESS="+at[3], "QUEUE_ADMIN_ADDRESS="+at[4], "LOG_FORMAT=text")}
	o.run(name)
	return entry
}

func (o *operator) run(name string) {
	o.t.Helper()
	x := o.extra[name]
	log, err := os.OpenFile(filepath.Join(o.c.State, "logs", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		o.t.Fatal(err)
	}
	defer log.Close()
	x.cmd = exec.Command(filepath.Join(cluster.Bin(), "queue"))
	x.cmd.Env = append(x.env, "QUEUE_DATA_DIR="+x.dir)
	x.cmd.Stdout, x.cmd.Stderr = log, log
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: 0, Setpgid: true}
	if err := x.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
}

func (o *operator) stop(name string) {
	x := o.extra[name]
	if x == nil || x.cmd == nil {
		return
	}
	_ = x.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = x.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		o.t.Errorf("%s does not stop", name)
		_ = x.cmd.Process.Kill()
		<-done
	}
	x.cmd = nil
}

// status as --json has it; it may be degraded.
func (o *operator) status() (s struct {
	Installation, Leader string
	Nodes                []struct{ Name, Role, Error string }
}) {
	o.t.Helper()
	out, _ := o.queue("status", "--json")
	from, to := strings.Index(out, "{"), strings.LastIndex(out, "}")
	if from < 0 || json.Unmarshal([]byte(out[from:to+1]), &s) != nil {
		o.t.Fatalf("status: %s", out)
	}
	return s
}

func (o *operator) voters() (names []string) {
	for _, n := range o.status().Nodes {
		if n.Role != "non-voter" {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (o *operator) want(names ...string) {
	o.t.Helper()
	if got := o.voters(); !slices.Equal(got, names) {
		o.t.Fatalf("voters are %v, want %v", got, names)
	}
}

// producer offers async calls until it is stopped, repeating one that was not accepted until it is, and remembers the ids.
type producer struct {
	accepted sync.Map // element id → true
	count    atomic.Int64
	refused  atomic.Int64
	worst    atomic.Int64 // ms between two accepts of one caller
	stop     chan struct{}
	wait     sync.WaitGroup
}

func produce(c *cluster.Cluster, callers int) *producer {
	p := &producer{stop: make(chan struct{})}
	for range callers {
		p.wait.Go(func() {
			last := time.Now()
			for {
				select {
				case <-p.stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				answer, err := cluster.Client.Post(c.URL(0)+"/async-function/fun/x", "text/plain", strings.NewReader("call"))
				if err != nil {
					p.refused.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				if answer.StatusCode != http.StatusAccepted {
					p.refused.Add(1)
					continue
				}
				p.accepted.Store(answer.Header.Get("SlimFaas-Element-Id"), true)
				p.count.Add(1)
				gap := time.Since(last).Milliseconds()
				last = time.Now()
				for old := p.worst.Load(); gap > old && !p.worst.CompareAndSwap(old, gap); old = p.worst.Load() {
				}
			}
		})
	}
	return p
}

// reach waits for so many accepts.
func (p *producer) reach(c *cluster.Cluster, n int64) {
	c.Eventually(20*time.Second, fmt.Sprintf("%d accepted calls", n), func() error {
		if got := p.count.Load(); got < n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// end the producing and check that every accepted call reached the function.
func (p *producer) end(t *testing.T, c *cluster.Cluster, r records) {
	t.Helper()
	close(p.stop)
	p.wait.Wait()
	c.Eventually(60*time.Second, "every accepted call has been delivered", func() error {
		seen := map[string]bool{}
		for _, l := range r.started(t, "fun") {
			seen[l.Header.Get("SlimFaas-Element-Id")] = true
		}
		missing := 0
		p.accepted.Range(func(id, _ any) bool {
			if !seen[id.(string)] {
				missing++
			}
			return true
		})
		if missing > 0 {
			return fmt.Errorf("%d of %d accepted calls are missing", missing, p.count.Load())
		}
		return nil
	})
	t.Logf("%d calls accepted and delivered, %d refused, longest gap of one caller %d ms", p.count.Load(), p.refused.Load(), p.worst.Load())
}

func operated(t *testing.T, queues int) (*cluster.Cluster, records, *operator) {
	r := newRecords(t)
	c := cluster.Start(t, cluster.Options{Queues: queues, Functions: r.yaml(fn{name: "fun", annotations: map[string]string{"ReplicasMin": "1", "NumberParallelRequest": "32"}})})
	return c, r, newOperator(t, c)
}

// One node, three, five, three, and then each kind of node replaced: the leader, a dead follower (Q16: never under two healthy
// voters, nothing lost). SLIMFAAS_FULL=1 replaces twenty, else two.
func TestOperateScalesTheQueueAndReplacesItsNodesUnderLoad(t *testing.T) {
	inCompany(t)
	c, r, o := operated(t, 1)
	load := produce(c, 3)
	one, two := o.start("queue-1"), o.start("queue-2")
	o.must("add", one, two)
	o.want("queue-0", "queue-1", "queue-2")
	three, four := o.start("queue-3"), o.start("queue-4")
	o.must("add", three, four)
	o.want("queue-0", "queue-1", "queue-2", "queue-3", "queue-4")
	o.must("transfer", "--to", "queue-3") // the edge follows to a node its list lacks
	o.must("remove", "queue-3", "queue-1")
	o.stop("queue-3")
	o.stop("queue-1")
	o.want("queue-0", "queue-2", "queue-4")

	rounds := 2 // a leader and a dead follower
	if os.Getenv("SLIMFAAS_FULL") != "" {
		rounds = 20
	}
	for i := range rounds {
		s := o.status()
		old := s.Leader
		if i%2 == 1 { // a dead follower
			for _, n := range s.Nodes {
				if n.Name != s.Leader && n.Name != "queue-0" {
					old = n.Name
				}
			}
			o.stop(old)
		}
		if old == "queue-0" { // bin/local's: it stays, as the one in the edge's list
			o.must("transfer")
			old = o.status().Leader
		}
		o.must("replace", old, o.start(fmt.Sprintf("node-%d", i+3)))
		o.stop(old)
		if got := o.voters(); len(got) != 3 || slices.Contains(got, old) {
			t.Fatalf("after replacing %s the voters are %v", old, got)
		}
	}
	load.end(t, c, r)
	o.must("status")
}

func TestOperateBacksUpRestoresAndRecoversRealDirectories(t *testing.T) {
	inCompany(t)
	c, r, o := operated(t, 3)
	load := produce(c, 3)
	load.reach(c, 50)
	file := filepath.Join(t.TempDir(), "backup")
	o.must("backup", file) // under load
	load.end(t, c, r)
	if out := o.must("inspect", file); !strings.Contains(out, "checksum right") || !strings.Contains(out, "true") {
		t.Errorf("inspect: %s", out)
	}
	out, err := o.queue("inspect", filepath.Join(c.State, "queue-0"))
	if err == nil {
		t.Errorf("a running node's directory was read: %s", out)
	}
	c.Stop(syscall.SIGTERM)
	hashes := map[string]bool{}
	for i := range 3 {
		out := o.must("inspect", filepath.Join(c.State, fmt.Sprintf("queue-%d", i)))
		hashes[regexp.MustCompile(`hash ([0-9a-f]{16})`).FindStringSubmatch(out)[1]] = true
	}
	if len(hashes) != 1 {
		t.Errorf("three stopped nodes have %d states", len(hashes))
	}
	installation := regexp.MustCompile(`installation ([0-9a-f]{32})`).FindStringSubmatch(o.must("inspect", file))[1]

	t.Run("restore", func(t *testing.T) {
		for i := range 3 {
			name := fmt.Sprintf("queue-%d", i)
			dir := filepath.Join(c.State, name)
			if err := os.Rename(dir, filepath.Join(c.State, "before-"+name)); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(cluster.Bin(), "queue"), "restore", file)
			cmd.Env = append(c.Env(), "QUEUE_NAME="+name, "QUEUE_DATA_DIR="+dir, "QUEUE_MEMBERS="+strings.Join(o.list, ","))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("restore: %v %s", err, out)
			}
		}
		c.Run()
		again := produce(c, 2)
		again.reach(c, 20)
		if s := o.status(); s.Installation != installation {
			t.Errorf("the installation is %s, was %s", s.Installation, installation)
		}
		again.end(t, c, r)
		c.Stop(syscall.SIGTERM)
	})
	t.Run("recover", func(t *testing.T) {
		dir := filepath.Join(c.State, "queue-0")
		cmd := exec.CommandContext(t.Context(), filepath.Join(cluster.Bin(), "queue"), "recover", "--data-dir", dir)
		cmd.Env = c.Env()
		cmd.Stdin = bytes.NewBufferString(installation + "\n") // as typed
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "is alone") {
			t.Fatalf("recover: %v %s", err, out)
		}
		if out := o.must("inspect", dir); strings.Count(out, "member since") != 1 {
			t.Errorf("members after recover: %s", out)
		}
	})
}
