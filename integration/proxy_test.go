package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
	"github.com/slimfaas/slimfaas/shared/testkit"
)

// nginxAround is what an installation has around the example.
const nginxAround = `daemon off;
user root;
error_log stderr crit;
pid %[1]s/nginx.pid;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  include %[1]s/slimfaas.conf;
}
`

// startNginx runs deploy/proxies/nginx.conf in front of an edge, on all addresses, and returns its port.
func startNginx(t *testing.T, edge string) (port string) {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		if binary, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			t.Skip("nginx is not installed (apt-get install nginx-light)")
		}
	}
	example, err := os.ReadFile("../deploy/proxies/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(testkit.FreeAddresses(t, 1)[0])
	dir := t.TempDir()
	for name, text := range map[string]string{
		"nginx.conf":    fmt.Sprintf(nginxAround, dir),
		"slimfaas.conf": strings.NewReplacer("listen 80;", "listen "+port+";", "127.0.0.1:5000", edge).Replace(string(example)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var output bytes.Buffer
	cmd := exec.Command(binary, "-c", filepath.Join(dir, "nginx.conf"), "-p", dir)
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
	return port
}

// upgrading is a function that answers an upgrade and sends back what it is sent.
func upgrading(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("taking the connection: %v", err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, rw)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// TestBehindNginx: the example of docs/behind-a-proxy.md, run.
func TestBehindNginx(t *testing.T) {
	outside := outsideAddress(t)
	if outside == "" {
		t.Skip("this machine has no address but loopback: nobody can be outside")
	}
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{
		Queues: 1, Functions: rec.yaml(append([]fn{{name: "socket", debugURL: upgrading(t)}}, accessFunctions...)...),
		Env: []string{"EDGE_TRUSTED_PROXIES=127.0.0.1/32"},
	})
	port := startNginx(t, strings.TrimPrefix(c.URL(0), "http://"))
	out, in := outside+":"+port, "127.0.0.1:"+port
	readyReplicas(c, "open", 1)
	readyReplicas(c, "closed", 1)
	c.Eventually(10*time.Second, "nginx listens", func() error {
		conn, err := net.DialTimeout("tcp", in, time.Second)
		if err == nil {
			err = conn.Close()
		}
		return err
	})

	for _, forged := range []string{"", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-For: 127.0.0.2, 127.0.0.1", "Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1"} {
		if got := raw(t, out, "GET", "/function/closed/x", forged); got != 404 {
			t.Errorf("a stranger with %q: %d, want 404", forged, got)
		}
	}

	const odd = "/function/open/a%2Fb//c/../d;e?x=%20&y"
	if got := raw(t, out, "GET", odd, "X-Forwarded-Prefix: /forged", "X-Forwarded-Proto: https", "Forwarded: for=10.0.0.1", "X_Under: kept"); got != 200 {
		t.Fatalf("%s: %d", odd, got)
	}
	started := rec.started(t, "open")
	l := started[len(started)-1]
	if l.URI != "/a%2Fb//c/../d;e?x=%20&y" {
		t.Errorf("the path has become %s", l.URI)
	}
	for name, want := range map[string]string{
		"X-Forwarded-For": outside + ", 127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "x", "X-Forwarded-Prefix": "/function/open", "Forwarded": "", "X_under": "kept",
	} {
		if got := l.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}

	// An answer that comes in pieces, a large body, and an upgraded connection.
	began := time.Now()
	res, err := cluster.Client.Get("http://" + out + "/function/open/?stream=4&every=300")
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(res.Body)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Error(err)
	}
	first := time.Since(began)
	_, _ = io.Copy(io.Discard, lines)
	_ = res.Body.Close()
	if whole := time.Since(began); whole-first < 600*time.Millisecond {
		t.Errorf("the stream came in one piece: its first line after %v, all of it after %v", first, whole)
	}
	res, err = cluster.Client.Post("http://"+out+"/function/open/", "application/octet-stream", io.LimitReader(zeros{}, 20<<20))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("20 MiB: %d", res.StatusCode)
	}
	conn, err := net.Dial("tcp", out)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, "GET /function/socket/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	talk := bufio.NewReader(conn)
	if res, err = http.ReadResponse(talk, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the upgrade was answered %v, %v", res, err)
	}
	_ = res.Body.Close()
	fmt.Fprintln(conn, "hello")
	if line, err := talk.ReadString('\n'); line != "hello\n" {
		t.Errorf("came back: %q, %v", line, err)
	}
}

// zeros is a reader of nothing else.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
