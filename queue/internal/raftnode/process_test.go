package raftnode

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/store"
)

// nodeProcessEnv makes the test binary be a node: its value is a processConfig.
const nodeProcessEnv = "RAFTNODE_TEST_PROCESS"

type processConfig struct {
	Name    string
	Members []Member
	Dir     string
	Control string // address of the line protocol below
	Large   bool   // house limits of the log instead of the small ones of tests
	// SnapshotEntries instead of 500, Payload bytes of a proposal instead of 7; 0: those.
	SnapshotEntries int
	Payload         int
}

func TestMain(m *testing.M) {
	if config := os.Getenv(nodeProcessEnv); config != "" {
		if err := runNodeProcess(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runNodeProcess serves one node until its standard input ends, as it does when the test dies.
//
// Protocol, one line each way: `propose ID` → ok | none | unknown; `read ID` → yes | no | none (linearizable); `office` → yes | no;
// `hash` → number, of state and payloads; `ids` → all ids, space-separated; `fill N` → ok (calls of 1 KiB); `state` → applied
// index, its hash, calls; `payloads` → ok (of all unfinished calls); `restored` → how often the state came by a snapshot.
func runNodeProcess(encoded string) error {
	var config processConfig
	if err := json.Unmarshal([]byte(encoded), &config); err != nil {
		return err
	}
	self := Config{Name: config.Name, Members: config.Members, Dir: config.Dir, Log: processLog(), SnapshotEntries: 500, TrailingBytes: 64 << 10, PayloadLogBytes: 256 << 10}
	if config.Large {
		self.SnapshotEntries, self.TrailingBytes, self.PayloadLogBytes = 0, 0, 0
	}
	self.SnapshotEntries = cmp.Or(config.SnapshotEntries, self.SnapshotEntries)
	for _, m := range config.Members {
		if m.Name == config.Name {
			self.ListenAddress = m.RaftAddress
		}
	}
	n, err := Open(self)
	if err != nil {
		return err
	}
	payload := []byte("payload")
	if config.Payload > 0 {
		payload = bytes.Repeat([]byte{'x'}, config.Payload)
	}
	var restored atomic.Uint64
	n.OnChange(func(_ uint64, changes []fsm.Change) {
		if changes == nil {
			restored.Add(1)
		}
	})
	control, err := net.Listen("tcp", config.Control)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := control.Accept()
			if err != nil {
				return
			}
			go serveControl(&controlled{n, payload, &restored}, conn)
		}
	}()
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-ended:
		return nil // as a crash: nothing is stopped
	case err := <-n.Done():
		return err
	}
}

// controlled is a node, what it proposes, and how often its state came by a snapshot.
type controlled struct {
	*Node
	payload  []byte
	restored *atomic.Uint64
}

func serveControl(n *controlled, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		id, _ := strconv.ParseUint(arg, 10, 64)
		if _, err := fmt.Fprintln(conn, control(n, verb, id)); err != nil {
			return
		}
	}
}

func control(n *controlled, verb string, id uint64) string {
	yesNo := map[bool]string{true: "yes", false: "no"}
	switch verb {
	case "propose":
		_, _, err := n.Propose(context.Background(), accept(id, n.payload))
		switch {
		case err == nil:
			return "ok"
		case isNotHandedOver(err):
			return "none"
		default:
			return "unknown"
		}
	case "read":
		if err := n.ReadBarrier(context.Background()); err != nil {
			return "none"
		}
		known := false
		n.View(func(m *fsm.Machine) { _, known = m.Call(idOf(id)) })
		return yesNo[known]
	case "office":
		return yesNo[n.InOffice()]
	case "hash":
		var hash uint64
		n.View(func(m *fsm.Machine) { hash = m.Hash() })
		sum, err := payloadSum(n.Node)
		if err != nil {
			return err.Error()
		}
		return strconv.FormatUint(sum, 10) + "-" + strconv.FormatUint(hash, 10)
	case "ids":
		var out strings.Builder
		n.View(func(m *fsm.Machine) {
			for c := range m.Unfinished() {
				fmt.Fprintf(&out, "%d ", binary.BigEndian.Uint64(c.ID[8:]))
			}
		})
		return out.String()
	case "restored":
		return strconv.FormatUint(n.restored.Load(), 10)
	}
	return controlBacklog(n.Node, verb, id)
}

func payloadSum(n *Node) (sum uint64, err error) {
	var places []uint64
	n.View(func(m *fsm.Machine) {
		for c := range m.Unfinished() {
			places = append(places, c.Seq)
		}
	})
	for _, seq := range places {
		payload, err := n.Payload(seq)
		if err != nil && !errors.Is(err, store.ErrNotFound) { // gone since
			return 0, err
		}
		sum += uint64(crc32.ChecksumIEEE(payload)) * (seq | 1)
	}
	return sum, nil
}

// process is one node as the test sees it.
type process struct {
	t       *testing.T
	config  processConfig
	command *exec.Cmd
	stdin   io.Closer
}

func (p *process) start() {
	p.t.Helper()
	encoded, err := json.Marshal(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	p.command = exec.Command(os.Args[0])
	p.command.Env = append(os.Environ(), nodeProcessEnv+"="+string(encoded))
	p.command.Stderr = os.Stderr
	if p.stdin, err = p.command.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) kill() {
	_ = p.command.Process.Kill()
	_ = p.command.Wait()
	_ = p.stdin.Close()
}

// ask is one question on a connection of its own. sent false: the node never heard it.
func (p *process) ask(question string, patience time.Duration) (answer string, sent bool, err error) {
	conn, err := net.DialTimeout("tcp", p.config.Control, patience)
	if err != nil {
		return "", false, err
	}
	defer func() { _ = conn.Close() }()
	return converse(conn, question, patience)
}

func converse(conn net.Conn, question string, patience time.Duration) (answer string, sent bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", false, err
	}
	if _, err := io.WriteString(conn, question+"\n"); err != nil {
		return "", true, err
	}
	answer, err = bufio.NewReader(conn).ReadString('\n')
	if err == nil && answer == "\n" && question != "ids" {
		err = errors.New("empty answer")
	}
	return strings.TrimSpace(answer), true, err
}

// processLog goes where the process's other output does, with TEST_LOG.
func processLog() *slog.Logger {
	if os.Getenv("TEST_LOG") != "" {
		return verboseLog()
	}
	return slog.New(slog.DiscardHandler)
}
