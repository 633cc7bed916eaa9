//go:build bench

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// Contenders of the edge's benchmark, all in front of the same backend.
const (
	direct       = "direct"
	reverseProxy = "reverseproxy"
	nginx        = "nginx"
	manyOurs     = "slimfaas-10000-functions"
	other        = "slimfaas-other"
)

// pieces of an interval. The contenders take turns piece by piece: what the machine's neighbours do lasts for seconds, and would else
// befall one of them.
const pieces = 6

// front is a proxy that is running, or the backend itself.
type front struct {
	where string // host:port
	path  string // what goes before small and large
	pids  []int
	admin string // host:port of ours
}

// ways of calling.
var edgeWays = []struct {
	name    string
	callers int
	call    func(c *wire1, path string) error
}{
	{"small_32", 32, func(c *wire1, path string) error { return c.exchange("GET", path+"small", nil, 200) }},
	{"small_1", 1, func(c *wire1, path string) error { return c.exchange("GET", path+"small", nil, 200) }},
	{"down_1MiB_8", 8, func(c *wire1, path string) error { return c.exchange("GET", path+"large", nil, 200) }},
	{"up_1MiB_8", 8, func(c *wire1, path string) error { return c.exchange("POST", path+"small", noise, 200) }},
}

// edgeBench is what was measured, by contender and way of calling.
type edgeBench struct {
	order []string
	open  map[string]func(t *testing.T, backend string) *front // nil: it cannot be had here
	got   map[string]map[string]samples
}

// TestBenchEdge: warm sync calls through the edge, against the proxies that people know, in rounds that alternate. The processors are
// shared with the generator and the backend, which are the same for all.
func TestBenchEdge(t *testing.T) {
	one := func(t *testing.T, backend string) *front { return edgeOf(t, backend, 1) }
	if *against != "" {
		compare(t, one)
		return
	}
	b := edgeBench{order: []string{slimfaas, reverseProxy, nginx, direct}, open: map[string]func(*testing.T, string) *front{
		direct:   func(_ *testing.T, backend string) *front { return &front{where: backend, path: "/"} },
		slimfaas: one, reverseProxy: plainProxy, nginx: nginxProxy,
	}}
	if !b.measure(t, len(edgeWays)) {
		return
	}
	b.atLeast("edge_small_32", slimfaas, reverseProxy, "small_32", 1.6)
	atMost("edge_added_p50_us", reverseProxy, b.p50(slimfaas)-b.p50(direct), b.p50(reverseProxy)-b.p50(direct), 1)
	if len(b.got[nginx]) == 0 {
		fmt.Println("nginx is not installed (apt-get install nginx-light): its figures are left out")
		return
	}
	b.atLeast("edge_small_32", slimfaas, nginx, "small_32", 0.55)
	b.atLeast("edge_down_1MiB", slimfaas, nginx, "down_1MiB_8", 0.9)
	b.atLeast("edge_up_1MiB", slimfaas, nginx, "up_1MiB_8", 0.9)
}

// TestBenchEdgeManyFunctions: the same edge with one function and with 10,000 in its table.
func TestBenchEdgeManyFunctions(t *testing.T) {
	b := edgeBench{order: []string{slimfaas, manyOurs}, open: map[string]func(*testing.T, string) *front{
		slimfaas: func(t *testing.T, backend string) *front { return edgeOf(t, backend, 1) },
		manyOurs: func(t *testing.T, backend string) *front { return edgeOf(t, backend, *many) },
	}}
	if b.measure(t, 2) {
		b.atLeast("edge_10000_functions", manyOurs, slimfaas, "small_32", 0.9)
		atMost("edge_10000_functions_p50_us", "one-function", b.p50(manyOurs), b.p50(slimfaas), 1.1)
	}
}

// compare ours with those of -against.
func compare(t *testing.T, ours func(*testing.T, string) *front) {
	t.Helper()
	b := edgeBench{order: []string{slimfaas, other}, open: map[string]func(*testing.T, string) *front{
		slimfaas: ours,
		other: func(t *testing.T, backend string) *front {
			t.Setenv("SLIMFAAS_BIN", *against) // put back at the end of the round, before which nothing else is started
			return ours(t, backend)
		},
	}}
	if !b.measure(t, 2) {
		return
	}
	for _, way := range edgeWays[:2] {
		ours, theirs := b.got[slimfaas][way.name].middle(), b.got[other][way.name].middle()
		b.atLeast("edge_"+way.name, slimfaas, other, way.name, 0)
		fmt.Printf("processor time a call: %v, %s %v\n", ours.servers, other, theirs.servers)
	}
}

func startBackend(t *testing.T) string {
	t.Helper()
	backend := "127.0.0.1:" + freePorts(t, 1)[0]
	_, wait := start(t, "backend", backend)
	wait()
	return backend
}

// measure the first so many ways of calling in alternating rounds and print the table; false: one contender only, for work on it.
func (b *edgeBench) measure(t *testing.T, ways int) bool {
	t.Helper()
	b.got = map[string]map[string]samples{}
	for round := range *rounds {
		t.Run(fmt.Sprint("round ", round+1), func(t *testing.T) { b.round(t, round, ways) })
	}
	if *only != "" {
		return false
	}
	fmt.Printf("\nWarm sync calls, %d alternating rounds of %v, medians; one backend, two processors for everything\n", *rounds, *length)
	rows := [][]string{{"calls", "who", "calls/s", "p50 µs", "p99 µs", "proxy µs/call"}}
	for _, way := range edgeWays[:ways] {
		for _, who := range b.order {
			if of := b.got[who][way.name]; len(of) > 0 {
				m := of.middle()
				rows = append(rows, []string{way.name, who, fmt.Sprintf("%.0f", m.rate), us(m.p50), us(m.p99), us(m.servers)})
			}
		}
	}
	table(rows)
	return true
}

// round of all contenders, with processes of its own: where a process's memory happens to lie makes a difference of some per cent, which
// stays as long as the process does.
func (b *edgeBench) round(t *testing.T, round, ways int) {
	t.Helper()
	backend := startBackend(t)
	fronts := map[string]*front{}
	for _, who := range b.order {
		if *only == "" || *only == who {
			fronts[who] = b.open[who](t, backend)
		}
	}
	cut := pieces
	if *profiles != "" {
		cut = 1
	}
	for _, way := range edgeWays[:ways] {
		got := map[string]samples{}
		for piece := range cut {
			for i := range b.order {
				who := b.order[i]
				if (round+piece)%2 == 1 {
					who = b.order[len(b.order)-1-i]
				}
				f := fronts[who]
				if f == nil {
					continue
				}
				profiled := profileEdge(t, f, who, way.name)
				got[who] = append(got[who], f.weigh(t, way.callers, *length/time.Duration(cut), way.call))
				profiled()
			}
		}
		for _, who := range b.order {
			if len(got[who]) == 0 {
				continue
			}
			s := got[who].joined()
			if b.got[who] == nil {
				b.got[who] = map[string]samples{}
			}
			b.got[who][way.name] = append(b.got[who][way.name], s)
			t.Logf("round %d %-12s %-24s %6.0f/s p50 %v p99 %v servers %v client %v failed %d",
				round+1, way.name, who, s.rate, s.p50, s.p99, s.servers, s.client, s.failed)
			if s.failed > 0 {
				t.Errorf("%s: %d calls failed", who, s.failed)
			}
		}
	}
}

// weigh a front for length, with so many callers.
func (f *front) weigh(t *testing.T, callers int, length time.Duration, call func(*wire1, string) error) sample {
	t.Helper()
	warm := min(warmUp, length/4)
	return weighed(f.pids, share(warm, length), func() sample {
		return drive(t, callers, warm, length, func(int) (caller, func()) {
			c := dial(t, f.where)
			return func(context.Context, int) error { return call(c, f.path) }, c.close
		})
	})
}

// atLeast prints the line of two contenders' calls per second.
func (b *edgeBench) atLeast(name, ours, peer, way string, bar float64) {
	roundsAtLeast(name, peer, b.got[ours][way], b.got[peer][way], bar)
}

// p50 of one caller alone, in µs.
func (b *edgeBench) p50(who string) float64 { return float64(b.got[who]["small_1"].middle().p50) / 1e3 }

// edgeOf is a local stack with so many functions, the first of which is the backend.
func edgeOf(t *testing.T, backend string, functions int) *front {
	t.Helper()
	var manifest strings.Builder
	fmt.Fprintf(&manifest, "  bench:\n    debugUrl: http://%s\n    annotations: {SlimFaas/Function: \"true\", SlimFaas/TimeoutSecondBeforeSetReplicasMin: \"3600\"}\n", backend)
	for i := range functions - 1 {
		fmt.Fprintf(&manifest, "  other-%d:\n    command: [\"sleep\", \"1000000\"]\n    annotations: {SlimFaas/Function: \"true\"}\n", i)
	}
	c := cluster.Start(t, cluster.Options{Ports: max(200, functions), Functions: manifest.String(), Env: []string{"LOG_LEVEL=warn", "EDGE_PROFILE=true"}})
	f := &front{where: strings.TrimPrefix(c.URL(0), "http://"), path: "/function/bench/", pids: []int{c.PID("edge-0")}}
	f.admin = fmt.Sprintf("127.0.0.1:%d", c.Ports()["edge-0"]["admin"])
	warm := dial(t, f.where)
	defer warm.close()
	if err := warm.exchange("GET", f.path+"small", nil, 200); err != nil { // wakes it
		t.Fatal(err)
	}
	return f
}

func plainProxy(t *testing.T, backend string) *front {
	t.Helper()
	where := "127.0.0.1:" + freePorts(t, 1)[0]
	pid, wait := start(t, "proxy", where, "http://"+backend)
	wait()
	return &front{where: where, path: "/", pids: []int{pid}}
}

const nginxConf = `daemon off;
user root;
worker_processes 2;
error_log stderr crit;
pid %[1]s/nginx.pid;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  client_max_body_size 0;
  keepalive_requests 100000000;
  upstream backend { server %[3]s; keepalive 64; keepalive_requests 100000000; }
  server {
    listen %[2]s;
    location / {
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $host;
    }
  }
}
`

// nginxProxy is Debian's nginx as it comes, with keep-alive to the backend. Nil: it is not installed.
func nginxProxy(t *testing.T, backend string) *front {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		if binary, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			return nil
		}
	}
	dir := t.TempDir()
	where := "127.0.0.1:" + freePorts(t, 1)[0]
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, where, backend), 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(binary, "-c", conf, "-p", dir)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(output.String())
		}
	})
	c := dial(t, where)
	defer c.close()
	if err := c.exchange("GET", "/small", nil, 200); err != nil {
		t.Fatalf("nginx: %v\n%s", err, output.String())
	}
	return &front{where: where, path: "/", pids: append(children(t, cmd.Process.Pid), cmd.Process.Pid)}
}

// children of a process, by /proc.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Logf("the workers' processor time is not counted: %v", err)
		return nil
	}
	for _, field := range strings.Fields(string(raw)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// profileEdge asks the edge for a profile of the interval, when -profiles is given.
func profileEdge(t *testing.T, f *front, who, way string) (wait func()) {
	t.Helper()
	if *profiles == "" || who != slimfaas || f.admin == "" {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		seconds := int((*length + warmUp) / time.Second)
		file := filepath.Join(*profiles, "edge-"+way+".pprof")
		err := errors.Join(fetch(t.Context(), fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", f.admin, seconds), file),
			fetch(t.Context(), fmt.Sprintf("http://%s/debug/pprof/allocs", f.admin), file+".allocs"))
		if err != nil {
			t.Errorf("profiling: %v", err)
		}
	}()
	return func() { <-done }
}
