package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/integration/history"
)

// needRoot skips, or fails under CI=true, where a test cannot make file systems of its own.
func needRoot(t *testing.T, tools ...string) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "root is needed to mount file systems"
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			why = tool + " is not installed"
		}
	}
	switch {
	case why == "":
	case os.Getenv("CI") == "true":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// ownDisks gives each queue node a file system of its own under the state directory. They are unmounted after the stack has
// been stopped.
func ownDisks(t *testing.T, megabytes int) (state string) {
	t.Helper()
	needRoot(t, "mkfs.ext4", "mount", "umount", "fsfreeze")
	state, err := os.MkdirTemp("", "slimfaas-test-") //nolint:usetesting // short: a unix socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	for n := range 3 {
		image, at := filepath.Join(state, fmt.Sprintf("disk-%d", n)), filepath.Join(state, fmt.Sprintf("queue-%d", n))
		if err := os.MkdirAll(at, 0o700); err != nil {
			t.Fatal(err)
		}
		command(t, "truncate", "-s", fmt.Sprintf("%dM", megabytes), image)
		command(t, "mkfs.ext4", "-q", "-m", "0", "-F", image)
		if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("mounting: %v\n%s", err, out)
			}
			t.Skipf("this machine mounts no loop devices: %s", out)
		}
		t.Cleanup(func() {
			_ = exec.Command("fsfreeze", "-u", at).Run() // of a test that ended early
			if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
				t.Errorf("unmounting %s: %v\n%s", at, err, out)
			}
		})
	}
	return state
}

// fillTo so many percent of a disk is in use, by a file that is not the node's.
func fillTo(t *testing.T, disk string, percent int) {
	t.Helper()
	foreign := filepath.Join(disk, "foreign")
	if percent == 100 { // to the last block
		f, err := os.OpenFile(foreign, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		for chunk := make([]byte, 1<<20); err == nil; {
			if _, err = f.Write(chunk); err != nil && len(chunk) > 4096 {
				chunk, err = chunk[:4096], nil
			}
		}
		must(t, f.Close())
		return
	}
	_ = os.Remove(foreign)
	var s syscall.Statfs_t
	if err := syscall.Statfs(disk, &s); err != nil {
		t.Fatal(err)
	}
	used := s.Blocks - s.Bfree
	if want := (used + s.Bavail) * uint64(percent) / 100; want > used {
		command(t, "fallocate", "-l", strconv.FormatUint((want-used)*uint64(s.Bsize), 10), foreign)
	}
}

// gauge of a queue node without labels.
func gauge(t testing.TB, c *cluster.Cluster, node, name string) float64 {
	t.Helper()
	res, err := cluster.Client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", c.Ports()[node]["admin"]))
	if err != nil {
		return -1
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	for _, l := range strings.Split(string(text), "\n") {
		if v, ok := strings.CutPrefix(l, name+" "); ok {
			f, _ := strconv.ParseFloat(v, 64)
			return f
		}
	}
	return -1
}

// feeder sends calls until it is stopped, and keeps the ledger of them and of the test's own.
type feeder struct {
	history.Ledger
	cluster *cluster.Cluster
	next    atomic.Int64
	ended   chan struct{}
	once    sync.Once
	clients sync.WaitGroup
}

// feed with so many clients, each of which waits between two calls.
func feed(c *cluster.Cluster, clients int, wait time.Duration) *feeder {
	f := &feeder{cluster: c, ended: make(chan struct{})}
	for range clients {
		f.clients.Go(func() {
			for {
				select {
				case <-f.ended:
					return
				default:
				}
				if a := f.call(); a.Outcome != history.OK {
					pace(50 * time.Millisecond) // of a client that was refused
				}
				pace(wait)
			}
		})
	}
	return f
}

// call once, under a key of its own.
func (f *feeder) call() history.Attempt {
	a := enqueue(f.cluster, 0, "work", fmt.Sprintf("%d-0", f.next.Add(1)), "&ms=1")
	f.Add(a)
	return a
}

func (f *feeder) stop() {
	f.once.Do(func() { close(f.ended) })
	f.clients.Wait()
}

func guardedFunction(rec records) string {
	return rec.yaml(fn{name: "work", annotations: map[string]string{
		"ReplicasMin": "1", "NumberParallelRequest": "32", "NumberParallelRequestPerPod": "32",
	}})
}

// level waits for a level of a node's disk.
func level(t *testing.T, c *cluster.Cluster, node string, want float64) {
	t.Helper()
	c.Eventually(30*time.Second, fmt.Sprintf("disk level %g on %s", want, node), func() error {
		if got := gauge(t, c, node, "slimfaas_queue_disk_level"); got != want {
			return fmt.Errorf("level %g", got)
		}
		return nil
	})
}

func disk(c *cluster.Cluster, node string) string { return filepath.Join(c.State, node) }

// Q6: the disk of the leader, of a follower, and of all fills up.
func TestAFullDiskIsRefusedInTimeAndLosesNothing(t *testing.T) {
	inCompany(t)
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{State: ownDisks(t, 256), Functions: guardedFunction(rec)})
	names := []string{"queue-0", "queue-1", "queue-2"}
	pids := map[string]int{}
	for _, name := range names {
		pids[name] = c.PID(name)
	}
	leader := c.QueueLeader(0)
	load := feed(c, 4, 0)
	defer load.stop()
	pace(time.Second) // calls in front of the fault

	fillTo(t, disk(c, leader), 87)
	level(t, c, leader, 1)
	p := wantProblem(t, c, http.MethodPost, "/async-function/work/full", nil, nil, http.StatusTooManyRequests)
	if p.Outcome != "none" {
		t.Errorf("a call refused for the disk says outcome %q", p.Outcome)
	}
	fillTo(t, disk(c, leader), 92)
	c.Eventually(10*time.Second, "another leads", func() error {
		if got := c.QueueLeader(0); got == leader {
			return errNotYet
		}
		return nil
	})
	c.Eventually(10*time.Second, "calls are accepted by it", func() error {
		if a := load.call(); a.Outcome != history.OK {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	if log := c.Log(leader); !strings.Contains(log, "ballast given back") {
		t.Error("the ballast was not given back")
	}

	// To the last block, of a follower by now; and an election with it.
	fillTo(t, disk(c, leader), 100)
	level(t, c, leader, 3)
	second := c.QueueLeader(0)
	c.Kill(second)
	c.Eventually(20*time.Second, "calls are accepted after the election", func() error {
		if a := load.call(); a.Outcome != history.OK {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	fillTo(t, disk(c, leader), 0)
	level(t, c, leader, 0)
	pids[second] = c.PID(second)

	for _, name := range names {
		fillTo(t, disk(c, name), 87)
	}
	for _, name := range names {
		level(t, c, name, 1)
	}
	wantProblem(t, c, http.MethodPost, "/async-function/work/full", nil, nil, http.StatusTooManyRequests)
	for _, name := range names {
		fillTo(t, disk(c, name), 0)
	}
	freed := time.Now()
	c.Eventually(30*time.Second, "calls are accepted with room again", func() error {
		if a := load.call(); a.Outcome != history.OK {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	t.Logf("normal %v after freeing", time.Since(freed).Round(time.Millisecond))
	for _, name := range names {
		if pid := c.PID(name); pid != pids[name] {
			t.Errorf("%s ended: pid %d was %d\n%s", name, pid, pids[name], c.Log(name))
		}
	}
	load.stop()
	checkLedger(t, c, rec, "work", &load.Ledger)
}

// Q7: the leader's disk hangs. Another leads within 10 s, callers are answered, and the old one follows when it is back.
func TestAHungDiskGivesTheLeadershipAway(t *testing.T) {
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{State: ownDisks(t, 256), Functions: guardedFunction(rec)})
	leader := c.QueueLeader(0)
	load := feed(c, 4, 0)
	defer load.stop()
	pace(time.Second)                                                               // calls in front of the fault
	t.Cleanup(func() { _ = exec.Command("fsfreeze", "-u", disk(c, leader)).Run() }) // before the stack is stopped, whatever happens
	command(t, "fsfreeze", "-f", disk(c, leader))
	frozen := time.Now()
	c.Eventually(10*time.Second, "a call is accepted without it", func() error {
		began := time.Now()
		a := load.call()
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("a caller waited %v", took)
		}
		if a.Outcome != history.OK {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	took := time.Since(frozen)
	if now := c.QueueLeader(0); now == leader {
		t.Errorf("%s still leads", leader)
	}
	if took > 10*time.Second {
		t.Errorf("calls were accepted again %v after the disk hung, want ≤ 10 s", took)
	}
	status, _, err := adminStatus(c, leader, "/health")
	if err != nil || status == http.StatusOK {
		t.Errorf("/health of the hung node: %d, %v", status, err)
	}
	command(t, "fsfreeze", "-u", disk(c, leader))
	c.Eventually(20*time.Second, "the old leader follows", func() error {
		if got := gauge(t, c, leader, "slimfaas_queue_write_hanging_seconds"); got != 0 {
			return fmt.Errorf("hanging for %g s", got)
		}
		status, body, err := adminStatus(c, leader, "/ready")
		return wantStatus(status, http.StatusOK, body, err)
	})
	t.Logf("accepted again %v after the disk hung", took.Round(time.Millisecond))
	load.stop()
	checkLedger(t, c, rec, "work", &load.Ledger)
}

// Q11 and Q12: the directory of one node is emptied, missing, an older copy, another's, or damaged. It refuses to take part, says how
// to rejoin, does so, and nothing is lost.
func TestADirectoryThatIsNotItsOwnIsRefusedAndRejoins(t *testing.T) {
	inCompany(t)
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{Functions: guardedFunction(rec)})
	load := feed(c, 2, 100*time.Millisecond) // what the victim is filled with, again and again
	defer load.stop()
	var installation string
	c.Eventually(10*time.Second, "the installation has an id", func() error {
		_, body, err := c.Get(0, "/cluster")
		var info struct{ Installation string }
		if err == nil {
			err = json.Unmarshal(body, &info)
		}
		installation = info.Installation
		if err == nil && installation == "" {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
	const victim = "queue-1"
	dir := disk(c, victim)
	older := filepath.Join(t.TempDir(), "older")
	// Under a stopped process, so that the copy is of one moment.
	c.Signal(victim, syscall.SIGSTOP)
	if err := os.CopyFS(older, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	c.Signal(victim, syscall.SIGCONT)
	pace(3 * time.Second) // calls, and claims told to the others

	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 11))
	empty := func() { must(t, os.RemoveAll(dir)); must(t, os.MkdirAll(dir, 0o700)) }
	for _, fault := range []struct {
		name, says string
		do         func()
	}{
		{"older copy", "older copy", func() { must(t, os.RemoveAll(dir)); must(t, os.CopyFS(dir, os.DirFS(older))) }},
		{"missing", "has lost its raft log", func() { must(t, os.RemoveAll(dir)) }},
		{"emptied", "has lost its raft log", empty},
		{"log emptied", "has lost its raft log", func() { must(t, os.Truncate(filepath.Join(dir, "raft.db"), 0)) }},
		{"flipped bits", "damaged", func() {
			segments, err := filepath.Glob(filepath.Join(dir, "log", "*.log"))
			must(t, err)
			path := segments[0]
			raw, err := os.ReadFile(path)
			must(t, err)
			for range 1 + random.IntN(16) {
				at := bytes.Index(raw[random.IntN(len(raw)/2):], []byte("work")) // in an entry, not in free space
				raw[max(at, 0)] ^= 1 << random.IntN(8)
			}
			for at := 0; at < len(raw)-8; at++ { // and in every copy of a function's name that is left
				if bytes.HasPrefix(raw[at:], []byte("work")) {
					raw[at] ^= 1
				}
			}
			must(t, os.WriteFile(path, raw, 0o600))
		}},
		{"another's", "belongs to", func() { must(t, os.RemoveAll(dir)); must(t, os.CopyFS(dir, os.DirFS(disk(c, "queue-2")))) }},
	} {
		if os.Getenv("SLIMFAAS_FULL") == "" && slices.Contains([]string{"missing", "emptied", "log emptied"}, fault.name) {
			continue // raftnode has them in its own tests
		}
		before := len(c.Log(victim))
		c.Signal(victim, syscall.SIGSTOP)
		fault.do()
		c.Kill(victim)
		c.Eventually(20*time.Second, fault.name+": refused with words", func() error {
			if log := c.Log(victim); !strings.Contains(log[min(before, len(log)):], fault.says) {
				return errors.New(log[min(before, len(log)):])
			}
			return nil
		})
		if fault.name == "another's" {
			empty()
		}
		began := time.Now()
		c.Eventually(20*time.Second, fault.name+": given up", func() error {
			give := exec.Command(filepath.Join(cluster.Bin(), "queue"), "rejoin", installation)
			give.Env = append(c.Env(), "QUEUE_NAME="+victim, "QUEUE_DATA_DIR="+dir, "QUEUE_INSECURE=true")
			out, err := give.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		c.Eventually(60*time.Second, fault.name+": rejoined", func() error {
			if gauge(t, c, victim, "slimfaas_queue_votes") != 1 {
				return errNotYet
			}
			status, body, err := adminStatus(c, victim, "/ready")
			return wantStatus(status, http.StatusOK, body, err)
		})
		t.Logf("%s: rejoined %v after it was given up", fault.name, time.Since(began).Round(time.Millisecond))
	}
	load.stop()
	checkLedger(t, c, rec, "work", &load.Ledger)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// adminStatus asks a process's admin listener.
func adminStatus(c *cluster.Cluster, name, path string) (int, []byte, error) {
	res, err := cluster.Client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", c.Ports()[name]["admin"], path))
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, body, err
}
