package raftnode

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

// ledger is what the writers were told, outside of everything that is killed.
type ledger struct {
	next atomic.Uint64

	mu                   sync.Mutex // guards the rest
	ok, refused, unknown []uint64
	lastOK               time.Time
	longestGap           time.Duration
	stale                []string
}

func (l *ledger) record(id uint64, answer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch answer {
	case "ok":
		if gap := time.Since(l.lastOK); !l.lastOK.IsZero() && gap > l.longestGap {
			l.longestGap = gap
		}
		l.lastOK = time.Now()
		l.ok = append(l.ok, id)
	case "none":
		l.refused = append(l.refused, id)
	default:
		l.unknown = append(l.unknown, id)
	}
}

func (l *ledger) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ok)
}

// underLoad lets so many writers write until end is called, which waits for them.
func underLoad(nodes []*process, writers int) (l *ledger, end func()) {
	l = &ledger{}
	stop := make(chan struct{})
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() { write(nodes, l, w, stop) })
	}
	return l, sync.OnceFunc(func() { close(stop); all.Wait() })
}

// progress is so many more acknowledged writes.
func (l *ledger) progress(t *testing.T, limit time.Duration, what string, more int) {
	t.Helper()
	before := l.acknowledged()
	within(t, limit, what, func() bool { return l.acknowledged() >= before+more })
}

// Three processes, 32 writers; the leader is killed with -9 and paused in turn. What was acknowledged is on every node at the
// end, what was refused on none, nothing else is there, and no linearizable read ever missed what was acknowledged before it.
func TestLedgerOfThreeProcessesWhoseLeadersAreKilledAndPaused(t *testing.T) {
	if testing.Short() {
		t.Skip("takes about 20 s")
	}
	nodes := startProcesses(t, 3, nil)
	ledger, end := underLoad(nodes, 32)
	defer end()
	progress := func(what string, more int) { t.Helper(); ledger.progress(t, 20*time.Second, what, more) }

	for round := range 3 {
		progress("writes before a fault", 500)
		victim := inOffice(t, nodes)
		victim.kill()
		progress(fmt.Sprintf("writes after kill %d", round), 200)
		victim.start()

		progress("writes before a fault", 500)
		victim = inOffice(t, nodes)
		signal(t, victim, syscall.SIGSTOP)
		progress(fmt.Sprintf("writes in pause %d", round), 200)
		signal(t, victim, syscall.SIGCONT)
	}
	progress("writes at the end", 200)
	end()

	var hash string
	eventually(t, "equal states", func() bool {
		seen := map[string]bool{}
		for _, n := range nodes {
			answer, _, err := n.ask("hash", time.Second)
			if err != nil {
				return false
			}
			seen[answer], hash = true, answer
		}
		return len(seen) == 1
	})
	t.Logf("acknowledged %d, refused %d, unknown %d, longest gap %v, state %s", len(ledger.ok), len(ledger.refused),
		len(ledger.unknown), ledger.longestGap.Round(time.Millisecond), hash)
	for _, s := range ledger.stale {
		t.Error(s)
	}
	for _, n := range nodes {
		checkLedger(t, n, ledger)
	}
}

func checkLedger(t *testing.T, n *process, l *ledger) {
	t.Helper()
	answer, _, err := n.ask("ids", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	present := map[string]bool{}
	for id := range strings.FieldsSeq(answer) {
		present[id] = true
	}
	for _, id := range l.ok {
		if !present[fmt.Sprint(id)] {
			t.Errorf("%s lost acknowledged %d", n.config.Name, id)
		}
		delete(present, fmt.Sprint(id))
	}
	for _, id := range l.refused {
		if present[fmt.Sprint(id)] {
			t.Errorf("%s has %d, of which was said that it was not handed over", n.config.Name, id)
		}
	}
	for _, id := range l.unknown {
		delete(present, fmt.Sprint(id))
	}
	if len(present) > 0 {
		t.Errorf("%s has %d calls that nobody sent", n.config.Name, len(present))
	}
}

// write until stopped: one id after the other, at the node that took the last, else at the next. Every tenth acknowledged one
// is read back from whichever node answers.
func write(nodes []*process, l *ledger, writer int, stop <-chan struct{}) {
	at := writer
	var conn net.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	elsewhere := func() {
		if conn != nil {
			_ = conn.Close()
			conn = nil
		}
		at++
	}
	for {
		select {
		case <-stop:
			return
		default:
		}
		if conn == nil {
			var err error
			if conn, err = net.DialTimeout("tcp", nodes[at%len(nodes)].config.Control, time.Second); err != nil {
				conn = nil
				elsewhere()
				time.Sleep(20 * time.Millisecond) // a client's pause
				continue
			}
		}
		id := l.next.Add(1)
		answer, _, err := converse(conn, fmt.Sprintf("propose %d", id), time.Second)
		if err != nil {
			answer = "unknown" // heard or not, it may have been
		}
		l.record(id, answer)
		if answer != "ok" {
			elsewhere()
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if id%10 == 0 {
			reader := nodes[int(id/10)%len(nodes)]
			if answer, _, err := reader.ask(fmt.Sprintf("read %d", id), time.Second); err == nil && answer == "no" {
				l.mu.Lock()
				l.stale = append(l.stale, fmt.Sprintf("%s read linearizably and missed acknowledged %d", reader.config.Name, id))
				l.mu.Unlock()
			}
		}
	}
}

func inOffice(t *testing.T, nodes []*process) (leader *process) {
	t.Helper()
	eventually(t, "a leader in office", func() bool {
		for _, n := range nodes {
			if answer, _, err := n.ask("office", 200*time.Millisecond); err == nil && answer == "yes" {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func signal(t *testing.T, p *process, s syscall.Signal) {
	t.Helper()
	if err := p.command.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func startProcesses(t *testing.T, size int, mutate func(*processConfig)) (nodes []*process) {
	t.Helper()
	dir := t.TempDir()
	var members []Member
	var controls []string
	for i := range size {
		addresses := testkit.FreeAddresses(t, 2)
		members = append(members, Member{Name: fmt.Sprintf("queue-%d", i), RaftAddress: addresses[0]})
		controls = append(controls, addresses[1])
	}
	for i, m := range members {
		p := &process{t: t, config: processConfig{
			Name: m.Name, Members: members, Dir: filepath.Join(dir, m.Name), Control: controls[i],
		}}
		if mutate != nil {
			mutate(&p.config)
		}
		p.start()
		t.Cleanup(p.kill)
		nodes = append(nodes, p)
	}
	return nodes
}
