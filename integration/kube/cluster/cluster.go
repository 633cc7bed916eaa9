// Package cluster runs a real Kubernetes of one node on this machine: etcd, API server, controllers, scheduler, kubelet, containerd,
// kube-proxy, cluster DNS, an image registry in memory and, if asked for, kwok with simulated nodes. Everything is built through the
// Go module proxy; only containerd, runc, iptables and the CNI plugins are the distribution's. It needs root.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Where things are. The bridge and its addresses are those of one cluster: two do not run beside each other.
const (
	// Address is this machine as pods and the API server see it; NodePorts are reached here.
	Address = "10.244.0.1"
	// Registry is where images are pushed to; pods name them as if they came from Docker Hub.
	Registry = Address + ":5050"

	bridge         = "kube0"
	podCIDR        = "10.244.0.0/24"
	serviceCIDR    = "10.96.0.0/16"
	serviceAddress = "10.96.0.1"
	nodeName       = "node1"
	cni            = "/usr/lib/cni"
)

// Options of a cluster.
type Options struct {
	// Dir holds everything of a run and is removed at its end.
	Dir string
	// Cache holds the built components; they are kept.
	Cache string
	// Source is the folder of the components' modules.
	Source string
	// Kwok simulates nodes that carry the annotation kwok.x-k8s.io/node: fake.
	Kwok bool
	// StockLimits leaves the controllers' 20 requests a second as they are.
	StockLimits bool
	// Progress gets a line for each step; nil: nobody.
	Progress io.Writer
}

// Cluster runs until Down.
type Cluster struct {
	Options
	dir, bin string
	began    time.Time
	reap     sync.WaitGroup
	registry *http.Server

	mu      sync.Mutex
	running []process
	home    string   // the control group this process was started in; empty: it has not left it
	lock    *os.File // held while the folder is this process's
}

func (c *Cluster) log(name string) string        { return filepath.Join(c.dir, "log", name+".log") }
func (c *Cluster) kubeconfig(name string) string { return filepath.Join(c.dir, name+".kubeconfig") }

// Kubeconfig is the path of the administrator's.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig("admin") }

func (c *Cluster) say(format string, args ...any) {
	if c.Progress != nil {
		fmt.Fprintf(c.Progress, "%6.1fs %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// Missing says what this machine lacks, and the command that installs it; nil: nothing.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: containers, a bridge and iptables are made")
	}
	var packages []string
	for program, in := range map[string]string{"containerd": "containerd", "runc": "runc", "iptables": "iptables", "ip": "iproute2", "kubectl": "kubernetes-client"} {
		if _, err := exec.LookPath(program); err != nil {
			packages = append(packages, in)
		}
	}
	if _, err := os.Stat(filepath.Join(cni, "bridge")); err != nil {
		packages = append(packages, "containernetworking-plugins")
	}
	if len(packages) > 0 {
		return fmt.Errorf("a cluster needs more of this machine; install it with: apt-get install -y --no-install-recommends %s", strings.Join(packages, " "))
	}
	return nil
}

// Up starts a cluster; what an earlier run left in the same folder is ended first. While one runs there, it is an error.
func Up(ctx context.Context, options Options) (up *Cluster, err error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	c := &Cluster{Options: options, dir: options.Dir, began: time.Now()}
	if c.bin, err = c.build(ctx); err != nil {
		return nil, err
	}
	if err := c.own(); err != nil {
		return nil, err
	}
	c.clean(ctx)
	for _, dir := range []string{"pid", "log", "etcd"} {
		if err := os.MkdirAll(filepath.Join(c.dir, dir), 0o755); err != nil { //nolint:gosec // the kubelet's pods read below it
			return nil, fmt.Errorf("make the cluster's folder: %w", err)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Down(context.WithoutCancel(ctx)))
		}
	}()
	c.share()
	for _, step := range []func(context.Context) error{c.network, c.serveImages, c.controlPlane, c.node, c.storage} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	c.say("up")
	return c, nil
}

// own keeps other harnesses out of the folder for as long as this process lives.
func (c *Cluster) own() error {
	f, err := os.OpenFile(c.dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of the cluster's folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { //nolint:gosec // a descriptor is a small number
		return errors.Join(fmt.Errorf("a cluster runs in %s; end it first: %w", c.dir, err), f.Close())
	}
	c.lock = f
	return nil
}

// Down ends everything and leaves the machine as it was.
func (c *Cluster) Down(ctx context.Context) error {
	defer func() {
		_ = os.Remove(c.lock.Name())
		_ = c.lock.Close()
	}()
	c.clean(ctx)
	if c.registry != nil {
		_ = c.registry.Close()
	}
	c.reap.Wait()
	c.say("down")
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove the cluster's folder: %w", err)
	}
	return nil
}

// Logs gives the end of each part's log, for people.
func (c *Cluster) Logs(bytes int) string {
	var b strings.Builder
	entries, _ := os.ReadDir(filepath.Join(c.dir, "log")) //nolint:errcheck // none
	for _, entry := range entries {
		raw, err := os.ReadFile(filepath.Join(c.dir, "log", entry.Name()))
		if err == nil {
			fmt.Fprintf(&b, "== %s\n%s\n", entry.Name(), raw[max(len(raw)-bytes, 0):])
		}
	}
	return b.String()
}

// network makes the bridge: API server, registry and kubelet listen on its address, pods hang on it.
func (c *Cluster) network(ctx context.Context) error {
	_ = command(ctx, "ip", "link", "del", bridge) // of an earlier run
	for _, args := range [][]string{
		{"ip", "link", "add", bridge, "type", "bridge"}, {"ip", "addr", "add", Address + "/24", "dev", bridge}, {"ip", "link", "set", bridge, "up"},
		// dockerd, where there is one, drops what is forwarded.
		{"iptables", "-I", "FORWARD", "-i", bridge, "-m", "comment", "--comment", "slimfaas-e2e", "-j", "ACCEPT"},
		{"iptables", "-I", "FORWARD", "-o", bridge, "-m", "comment", "--comment", "slimfaas-e2e", "-j", "ACCEPT"},
	} {
		if err := command(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}
