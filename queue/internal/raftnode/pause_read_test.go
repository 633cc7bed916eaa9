package raftnode

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A leader that was paused while another took over has answers of its followers in its sockets, from before, and a clock that says it
// leads still. Reads that wait for it when it goes on must not be confirmed by those (hashicorp/raft's VerifyLeader is).
// SIGSTOP 3 times, SLIMFAAS_FULL=1 40 times.
func TestALeaderThatWasPausedReadsNothingOld(t *testing.T) {
	if testing.Short() {
		t.Skip("takes about 10 s")
	}
	rounds := 3
	if os.Getenv("SLIMFAAS_FULL") != "" {
		rounds = 40
	}
	const questions = 100
	nodes := startProcesses(t, 3, nil)
	ledger, end := underLoad(nodes, 16)
	defer end()
	progress := func(what string, more int) { t.Helper(); ledger.progress(t, 20*time.Second, what, more) }
	stale := 0
	for round := range rounds {
		progress("writes before the pause", 300)
		paused := inOffice(t, nodes)
		conns := make([]net.Conn, questions)
		for i := range conns { // each with somebody who waits behind it
			c, err := net.DialTimeout("tcp", paused.config.Control, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, _, err := converse(c, "office", 10*time.Second); err != nil {
				t.Fatal(err)
			}
			conns[i] = c
		}
		signal(t, paused, syscall.SIGSTOP)
		others := make([]*process, 0, 2)
		for _, n := range nodes {
			if n != paused {
				others = append(others, n)
			}
		}
		inOffice(t, others)
		progress(fmt.Sprintf("writes in pause %d", round), 50)
		ledger.mu.Lock()
		newest := ledger.ok[len(ledger.ok)-1]
		ledger.mu.Unlock()
		for _, c := range conns {
			if _, err := fmt.Fprintf(c, "read %d\n", newest); err != nil {
				t.Fatal(err)
			}
		}
		signal(t, paused, syscall.SIGCONT)
		for _, c := range conns {
			if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			answer, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(answer) == "no" {
				stale++
			}
			_ = c.Close()
		}
	}
	if stale > 0 {
		t.Errorf("%d of %d reads missed what another leader had acknowledged", stale, rounds*questions)
	}
}
