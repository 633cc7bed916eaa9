package raftnode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/shared/testkit"
)

// votes waits until every node that is up votes.
func (c *cluster) votes() {
	c.t.Helper()
	defer func() {
		for _, n := range c.nodes {
			if n != nil && c.t.Failed() {
				heard := n.gate.heard.Load()
				c.t.Logf("%s is %v, heard %+v, raft %v", n.Name(), n.gate.is(), heard, n.raft.Stats())
			}
		}
	}()
	eventually(c.t, "vote of every node", func() bool {
		for _, n := range c.nodes {
			if n != nil && n.gate.is() != member {
				return false
			}
		}
		return true
	})
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func replaceDir(t *testing.T, dir, by string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if by == "" {
		return
	}
	if err := os.CopyFS(dir, os.DirFS(by)); err != nil {
		t.Fatal(err)
	}
}

// refusal of a directory, at the start or as soon as others have been asked.
func (c *cluster) refusal(i int) error {
	c.t.Helper()
	n, err := Open(c.configs[i])
	if err != nil {
		return err
	}
	c.nodes[i] = n
	defer c.kill(i)
	select {
	case err := <-n.Done():
		if n.gate.is() == member {
			c.t.Error("a node that refuses its directory has had a vote")
		}
		return err
	case <-time.After(10 * time.Second):
		c.t.Fatalf("the directory was not refused within 10 s, standing %v", n.gate.is())
		return nil
	}
}

func TestALostOrOlderDirectoryIsRefusedAndTheNodeRejoins(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(config *Config) {
		config.SnapshotEntries, config.TrailingBytes, config.PayloadLogBytes = 50, 4<<10, 4<<10
	})
	c.leader()
	c.votes()
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}})
	for i := range uint64(30) {
		c.mustPropose(accept(i+1, []byte("payload")))
	}
	const victim = 1
	dir := c.configs[victim].Dir
	c.kill(victim)
	older := copyDir(t, dir)
	c.start(victim)
	for i := range uint64(200) {
		c.mustPropose(accept(1000+i, []byte("payload")))
	}
	c.settle()
	eventually(t, "claims told", func() bool {
		for i, n := range c.nodes {
			if i == victim {
				continue
			}
			n.peers.mu.Lock()
			told := n.peers.by[c.configs[victim].Name].Now.Commit
			n.peers.mu.Unlock()
			if told < c.nodes[victim].Commit() {
				return false
			}
		}
		return true
	})
	for _, damage := range []struct {
		name    string
		prepare func()
		want    error
	}{
		{"log older", func() { replaceFile(t, filepath.Join(dir, "raft.db"), filepath.Join(older, "raft.db")) }, ErrOlderCopy},
		{"older copy", func() { replaceDir(t, dir, older) }, ErrOlderCopy},
		{"missing", func() { replaceDir(t, dir, "") }, ErrLostLog},
		{"log emptied", func() { _ = os.Truncate(filepath.Join(dir, "raft.db"), 0) }, ErrLostLog},
		{"marker lost", func() { _ = os.Remove(filepath.Join(dir, "member")) }, ErrLostLog},
		{"another's dir", func() { replaceDir(t, dir, c.configs[2].Dir) }, ErrForeignDir},
	} {
		name := damage.name
		c.kill(victim)
		damage.prepare()
		err := c.refusal(victim)
		if name == "log older" && errors.Is(err, ErrLostLog) {
			t.Log("a segment that the older log counts on was cut off since: lost, and rightly refused")
			damage.want = ErrLostLog
		}
		if !errors.Is(err, damage.want) || (!errors.Is(damage.want, ErrForeignDir) && !strings.Contains(err.Error(), "queue rejoin ")) {
			t.Fatalf("%s: refused with %v, want %v and the way back", name, err, damage.want)
		}
		if name == "another's dir" {
			replaceDir(t, dir, "")
		}
		if err := GiveUp(dir, c.configs[victim].Name, "the-cluster"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		began := time.Now()
		c.start(victim)
		c.votes()
		c.settle()
		t.Logf("%s: refused, rejoined after %v", name, time.Since(began).Round(10*time.Millisecond))
		c.mustPropose(accept(uint64(10_000+began.UnixNano()), nil))
		eventually(t, "claims told again", func() bool {
			ok := true
			for i, n := range c.nodes {
				if i != victim {
					n.peers.mu.Lock()
					ok = ok && n.peers.by[c.configs[victim].Name].Now.Commit >= c.nodes[victim].Commit()
					n.peers.mu.Unlock()
				}
			}
			return ok
		})
	}
	c.kill(victim)
	c.configs[victim].Dir = filepath.Join(t.TempDir(), "other")
	if err := GiveUp(c.configs[victim].Dir, c.configs[victim].Name, "another-cluster"); err != nil {
		t.Fatal(err)
	}
	if err := c.refusal(victim); !errors.Is(err, ErrForeignDir) {
		t.Fatalf("joining another cluster: %v", err)
	}
}

func replaceFile(t *testing.T, path, by string) {
	t.Helper()
	raw, err := os.ReadFile(by)
	if err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A blank node under an old name, together with one that lacks an entry, is a majority that never saw it.
func TestABlankNodeHasNoVote(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.votes()
	leader := c.leader()
	c.mustPropose([]command.Command{command.SetInstallation{ID: "the-cluster"}}) // what a leader does first
	lagging, blank := (leader+1)%3, (leader+2)%3
	c.kill(lagging)
	c.mustPropose(accept(1, nil)) // on the leader and the one that will be blank
	c.kill(leader)
	c.kill(blank)
	replaceDir(t, c.configs[blank].Dir, "")
	c.start(lagging)
	// The blank one knows nobody who leads: it neither votes nor stands, and says so.
	n := c.start(blank)
	select {
	case err := <-n.Done():
		if !errors.Is(err, ErrLostLog) {
			t.Fatalf("%v", err)
		}
	case <-time.After(15 * time.Second):
		t.Fatalf("the blank node was not refused, standing %v", n.gate.is())
	}
	if c.nodes[lagging].IsLeader() || n.IsLeader() {
		t.Fatal("a leader was elected that lacks what was acknowledged")
	}
	c.kill(blank)
	if err := GiveUp(c.configs[blank].Dir, c.configs[blank].Name, "the-cluster"); err != nil {
		t.Fatal(err)
	}
	n = c.start(blank)
	heard := c.nodes[lagging].peers
	eventually(t, "acquaintance", func() bool {
		return heard.count(func(o *peer) bool { return o.seen && o.last.Standing == joining.String() }) == 1
	})
	c.start(leader)
	c.votes()
	c.settle()
	n.View(func(m *fsm.Machine) {
		if _, ok := m.Call(idOf(1)); !ok {
			t.Fatal("an acknowledged call is lost")
		}
	})
}

// Whatever bit flips in the log's file, the node comes back with the same state or refuses it.
func TestFlippedBitsAreNeverServed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) { config.SnapshotEntries = 60 })
	c.leader()
	for i := range uint64(100) {
		c.mustPropose(accept(i+1, []byte(strings.Repeat("payload ", 40))))
	}
	sum, err := payloadSum(c.nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	want := strconv.FormatUint(sum, 10) + "-" + strconv.FormatUint(c.settle(), 10)
	c.kill(0)
	good := copyDir(t, c.configs[0].Dir)
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	cases := 8
	if os.Getenv("SLIMFAAS_FULL") != "" {
		cases = 200
	}
	var refused, same atomic.Int32
	t.Run("cases", func(t *testing.T) {
		for i := range cases {
			dir := copyDir(t, good)
			name := flipBits(t, dir, random)
			t.Run(fmt.Sprintf("%d in %s (seed %d)", i, name, seed), func(t *testing.T) {
				t.Parallel() // each waits for an election most of its time
				got, said := serveOnce(t, processConfig{Name: c.configs[0].Name, Members: c.configs[0].Members, Dir: dir})
				switch {
				case got == "":
					if refused.Add(1); said == "" {
						t.Error("refused without a word")
					}
				case got != want:
					t.Error("served another state")
				default:
					same.Add(1)
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
		}
	})
	t.Logf("%d refused, %d unharmed", refused.Load(), same.Load())
	if refused.Load() == 0 {
		t.Error("nothing was ever refused")
	}
}

// flipBits of one of a data directory's files, and say which.
func flipBits(t *testing.T, dir string, random *rand.Rand) (name string) {
	t.Helper()
	files := []string{filepath.Join(dir, "raft.db")}
	segments, _ := filepath.Glob(filepath.Join(dir, "log", "*.log"))
	files = append(append(files, segments...), filepath.Join(dir, snapshotFile))
	path := files[random.IntN(len(files))]
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(raw, "\x00")) // a segment's space is taken before it is written
	for range 1 + random.IntN(16) {
		raw[random.IntN(used)] ^= 1 << random.IntN(8)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Base(path)
}

// serveOnce starts a node in a process of its own, for the log's library panics in goroutines of its own, and gives the hash of
// the state it serves; empty when it ends instead, with what it said.
func serveOnce(t *testing.T, config processConfig) (hash, said string) {
	t.Helper()
	config.Control = testkit.FreeAddresses(t, 1)[0]
	p := &process{t: t, config: config}
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	var words bytes.Buffer
	p.command = exec.Command(os.Args[0])
	p.command.Env = append(os.Environ(), nodeProcessEnv+"="+string(encoded))
	p.command.Stderr = &words
	if p.stdin, err = p.command.StdinPipe(); err == nil {
		err = p.command.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.command.Wait() }()
	defer func() {
		_ = p.command.Process.Kill()
		_ = p.stdin.Close()
		<-ended
	}()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case <-ended:
			return "", words.String()
		case <-deadline:
			t.Fatal("neither in office nor ended after 20 s")
		default:
		}
		if answer, _, err := p.ask("office", time.Second); err == nil && answer == "yes" {
			if hash, _, err = p.ask("hash", time.Second); err == nil {
				return hash, ""
			}
		}
		time.Sleep(5 * time.Millisecond) // between questions to another process
	}
}

// A leader whose disk hangs is followed by another within seconds, and its callers get an answer in time.
func TestALeaderWhoseWritesHangIsReplaced(t *testing.T) {
	t.Parallel()
	var hangs [3]sync.RWMutex // held for writing: the disk hangs
	var next atomic.Int32
	c := newCluster(t, 3, func(config *Config) {
		config.WriteTimeout = 500 * time.Millisecond
		disk := &hangs[next.Add(1)-1]
		config.file = func(f logFile) logFile { return hangingFile{f, disk} }
	})
	c.votes()
	old := c.leader()
	n := c.nodes[old]
	hangs[old].Lock()
	free := sync.OnceFunc(hangs[old].Unlock)
	defer free()
	began := time.Now()
	var caller sync.WaitGroup
	caller.Go(func() {
		_, _, err := n.Propose(t.Context(), accept(1, nil))
		if took := time.Since(began); took > proposeTimeout+time.Second || !errors.Is(err, ErrUnknown) {
			t.Errorf("the caller was answered %v after %v", err, took)
		}
	})
	eventually(t, "another leader", func() bool {
		for i, other := range c.nodes {
			if i != old && other.InOffice() {
				return true
			}
		}
		return false
	})
	if n.InOffice() || n.IsLeader() {
		t.Error("the hung node still says that it leads")
	}
	t.Logf("another leads after %v", time.Since(began).Round(time.Millisecond))
	caller.Wait()
	free()
	eventually(t, "the old one follows", func() bool { return !n.gate.mute.Load() && n.Hanging() == 0 })
	c.mustPropose(accept(2, nil))
	c.settle()
}

type hangingFile struct {
	logFile
	disk *sync.RWMutex
}

func (h hangingFile) StoreLogs(logs []*raft.Log) error {
	h.disk.RLock()
	defer h.disk.RUnlock()
	return h.logFile.StoreLogs(logs)
}

func TestAFullDiskRefusesHandsOverAndHalts(t *testing.T) {
	t.Parallel()
	var said lines
	var all [3]atomic.Int64
	var next atomic.Int32
	c := newCluster(t, 3, func(config *Config) {
		used := &all[next.Add(1)-1]
		config.Log = slog.New(slog.NewTextHandler(&said, nil))
		config.stat = func(string) (guard.Space, error) {
			return guard.Space{Used: float64(used.Load()), Free: 1 << 30, Total: 2 << 30}, nil
		}
	})
	c.votes()
	leader := c.leader()
	n, used := c.nodes[leader], &all[leader]
	used.Store(86)
	eventually(t, "refusal", func() bool { return n.Refusal() != "" })
	if n.disk.Level() != guard.Refusing || !n.InOffice() {
		t.Fatalf("at 86 %%: %v", n.disk.Level())
	}
	used.Store(91)
	eventually(t, "another leader", func() bool { return !n.IsLeader() })
	if !said.have("handing the leadership over") { // and did not lose it to this machine's load
		t.Error("the leadership was not handed over")
	}
	c.mustPropose(accept(1, nil))
	used.Store(97)
	eventually(t, "halt", func() bool { return n.disk.Level() == guard.Halted })
	before, err := n.logStore.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20) {
		c.mustPropose(accept(10+i, nil))
	}
	if after, _ := n.logStore.LastIndex(); after > before+2 { // one message may have been on its way
		t.Errorf("the log of the full node grew from %d to %d", before, after)
	}
	used.Store(20)
	c.settle()
	eventually(t, "room again", func() bool { return n.Refusal() == "" })
}

// lines of a log.
type lines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) have(part string) bool { return l.count(part) > 0 }

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

// Large entries and small ones: no message to a node that is behind has more bytes than the limit, and it has few messages to wait for.
func TestAnAppendMessageIsBoundedInBytes(t *testing.T) { // not parallel: heavy
	var largest, entries atomic.Int64
	c := newCluster(t, 3, func(config *Config) {
		config.file = func(f logFile) logFile { return measuredFile{f, &largest, &entries} }
	})
	c.votes()
	leader := c.leader()
	away := (leader + 1) % 3
	c.kill(away)
	for i := range uint64(18) {
		c.mustPropose(accept(i+1, make([]byte, 1<<20)))
	}
	for i := range uint64(10 * maxAppendEntries) {
		c.mustPropose(accept(i+100, nil))
	}
	largest.Store(0)
	c.start(away)
	c.settle()
	if entries.Load() < 5*maxAppendEntries {
		t.Errorf("no message was long: %d entries at most", entries.Load())
	}
	if limit := int64(maxAppendEntries * command.MaxEntry); largest.Load() < limit/2 || largest.Load() > limit || entries.Load() > maxMessageEntries {
		t.Errorf("largest message: %d entries, %d bytes, limits %d and %d", entries.Load(), largest.Load(), maxMessageEntries, limit)
	}
}

// measuredFile notes how large what is stored at once was: a follower stores one message at once.
type measuredFile struct {
	logFile
	largest, entries *atomic.Int64
}

func (m measuredFile) StoreLogs(logs []*raft.Log) error {
	bytes := int64(0)
	for _, l := range logs {
		bytes += int64(len(l.Data))
	}
	m.largest.Store(max(m.largest.Load(), bytes))
	m.entries.Store(max(m.entries.Load(), int64(len(logs))))
	return m.logFile.StoreLogs(logs)
}
