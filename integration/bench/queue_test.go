//go:build bench

package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

var (
	rounds   = flag.Int("rounds", 5, "alternating rounds")
	profiles = flag.String("profiles", "", "absolute `directory` for profiles of the queue nodes in each measured interval")
	only     = flag.String("only", "", "measure one `contender` only, for work on it")
	row      = flag.String("row", "", "measure one `way/callers` only, as client/512, for work on it")
	against  = flag.String("against", "", "compare the edge with that of another `directory` of programs, and with nothing else")
	many     = flag.Int("functions", 10000, "in the table of the edge that has many")
	length   = flag.Duration("length", 3*time.Second, "of one measured interval")
)

const warmUp = 500 * time.Millisecond

// programs is the directory of the built peers, reader and backend.
var programs string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "slimfaas-bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a directory for the programs:", err)
		os.Exit(1)
	}
	programs = dir
	build := exec.Command("go", "build", "-o", dir+"/", "./peer", "./reader", "./backend", "./proxy")
	build.Stderr = os.Stderr
	code := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building peers, reader and backend:", err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// Names of what is measured.
const (
	slimfaas  = "slimfaas"
	always    = "jetstream-sync-always"
	byDefault = "jetstream-default"
)

var bars = []struct {
	name    string
	peer    string
	way     string
	callers int
	bar     float64
}{
	{"client_sync_64", always, "client", 64, 1.1},
	{"client_sync_512", always, "client", 512, 1.3},
	{"client_default_64", byDefault, "client", 64, 0.5},
	{"client_default_512", byDefault, "client", 512, 1.2},
	{"http_sync_64", always, "http", 64, 1.0},
	{"http_default_64", byDefault, "http", 64, 0.6},
	{"http_default_512", byDefault, "http", 512, 1.0},
}

// key of a row of the table.
type key struct {
	who, way string
	callers  int
}

// TestBenchQueueAccept: calls accepted per second, three nodes each, 1 KiB of random bytes. Every contender starts anew in
// every round, on empty files, and is alone while it is measured.
func TestBenchQueueAccept(t *testing.T) {
	got := map[key]samples{}
	for round := range *rounds {
		order := []string{slimfaas, always, byDefault}
		if round%2 == 1 {
			order = []string{byDefault, always, slimfaas}
		}
		for _, who := range order {
			if *only != "" && *only != who {
				continue
			}
			ok := t.Run(fmt.Sprintf("round-%d-%s", round+1, who), func(t *testing.T) {
				client, http := contend(t, who)
				for _, callers := range []int{64, 512} {
					for _, way := range []string{"client", "http"} {
						if *row != "" && *row != fmt.Sprintf("%s/%d", way, callers) {
							continue
						}
						run := map[string]measure{"client": client, "http": http}[way]
						s := run(t, callers, warmUp, *length)
						k := key{who, way, callers}
						got[k] = append(got[k], s)
						t.Logf("%-22s %-6s %3d callers: %6.0f/s p50 %v p99 %v servers %v client %v failed %d",
							who, way, callers, s.rate, s.p50, s.p99, s.servers, s.client, s.failed)
					}
				}
			})
			if !ok {
				t.FailNow()
			}
		}
	}
	if *only != "" || *row != "" {
		return
	}
	fmt.Printf("\nCalls accepted, %d alternating rounds of %v, medians; three nodes on this machine, 1 KiB random bytes\n", *rounds, *length)
	rows := [][]string{{"way", "callers", "who", "accepted/s", "p50 ms", "p99 ms", "servers µs/call", "client µs/call", "fsyncs/call", "entries/call"}}
	for _, way := range []string{"client", "http"} {
		for _, callers := range []int{64, 512} {
			for _, who := range []string{slimfaas, always, byDefault} {
				m := got[key{who, way, callers}].middle()
				row := []string{way, fmt.Sprint(callers), who, fmt.Sprintf("%.0f", m.rate), ms(m.p50), ms(m.p99), us(m.servers), us(m.client), "", ""}
				if who == slimfaas {
					row[8], row[9] = fmt.Sprintf("%.4f", m.fsyncs), fmt.Sprintf("%.4f", m.entries)
				}
				rows = append(rows, row)
			}
		}
	}
	table(rows)
	for _, b := range bars {
		roundsAtLeast(b.name, b.peer, got[key{slimfaas, b.way, b.callers}], got[key{b.peer, b.way, b.callers}], b.bar)
	}
}

// measure one way of calling.
type measure func(t *testing.T, callers int, warm, length time.Duration) sample

func contend(t *testing.T, who string) (client, http measure) {
	t.Helper()
	if who == slimfaas {
		o := startOurs(t)
		return o.submit, o.http
	}
	p := startPeer(t, map[string]string{always: "always", byDefault: "default"}[who])
	return p.publish, p.http
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }

func us(d time.Duration) string { return fmt.Sprintf("%.0f", float64(d)/float64(time.Microsecond)) }
