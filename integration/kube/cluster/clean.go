package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// clean ends what runs from this folder, now or since an earlier run, and undoes what it did to the machine: pods first, by the
// kubelet itself, then what is left by force. Only processes whose pid and start time were recorded, and shims that carry this
// containerd's socket, are signalled.
func (c *Cluster) clean(ctx context.Context) {
	all := c.recorded()
	end := func(patience time.Duration, names ...string) {
		for _, name := range names {
			all[name].end(patience)
		}
	}
	end(2*time.Second, "kcm", "scheduler", "kwok")
	if all["kubelet"].alive() && all["apiserver"].alive() {
		bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
		_ = c.Kubectl(bounded, "delete", "pods", "--all-namespaces", "--field-selector", "spec.nodeName="+nodeName, "--grace-period=1", "--wait")
		cancel()
	}
	end(10*time.Second, "kubelet")
	if all["containerd"].alive() {
		c.endContainers(ctx)
	}
	c.endShims()
	end(5*time.Second, "containerd", "proxy", "apiserver", "dns", "etcd")
	if bin := c.bin; bin != "" && all["proxy"].began != 0 {
		_ = command(ctx, filepath.Join(bin, "kube-proxy"), "--cleanup")
	}
	c.restore(ctx)
	for name := range all {
		_ = os.Remove(c.pidFile(name))
	}
	_ = os.RemoveAll(c.dir)
}

func (c *Cluster) ctr(ctx context.Context, args ...string) string {
	return output(ctx, "ctr", append([]string{"--address", c.socket(), "-n", "k8s.io"}, args...)...)
}

func (c *Cluster) endContainers(ctx context.Context) {
	for id := range strings.FieldsSeq(c.ctr(ctx, "tasks", "ls", "-q")) {
		c.ctr(ctx, "tasks", "kill", "-s", "SIGKILL", id)
	}
	until(5*time.Second, func() bool { return !strings.Contains(c.ctr(ctx, "tasks", "ls"), "RUNNING") })
	for id := range strings.FieldsSeq(c.ctr(ctx, "containers", "ls", "-q")) {
		c.ctr(ctx, "tasks", "rm", "-f", id)
		c.ctr(ctx, "containers", "rm", id)
	}
}

func (c *Cluster) endShims() {
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline") //nolint:errcheck // a constant pattern
	for _, path := range commands {
		raw, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(raw), "containerd-shim") || !strings.Contains(string(raw), c.socket()) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	}
}

// restore undoes mounts, network namespaces, rules, the bridge and kernel settings.
func (c *Cluster) restore(ctx context.Context) {
	raw, _ := os.ReadFile("/proc/mounts") //nolint:errcheck // none then
	var mounts []string
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], c.dir+"/") {
			mounts = append(mounts, fields[1])
		}
	}
	slices.Sort(mounts)
	for _, at := range slices.Backward(mounts) {
		if syscall.Unmount(at, 0) != nil {
			_ = syscall.Unmount(at, syscall.MNT_DETACH)
		}
	}
	for line := range strings.Lines(output(ctx, "ip", "netns", "ls")) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(name, "cni-") {
			_ = command(ctx, "ip", "netns", "del", name)
		}
	}
	for _, direction := range []string{"-i", "-o"} {
		for command(ctx, "iptables", "-D", "FORWARD", direction, bridge, "-m", "comment", "--comment", "slimfaas-e2e", "-j", "ACCEPT") == nil { //nolint:revive // until there is none
		}
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, table := range []string{"mangle", "nat", "filter"} {
			for _, hook := range []string{"INPUT", "OUTPUT"} {
				_ = command(ctx, tool, "-t", table, "-D", hook, "-j", "KUBE-FIREWALL")
			}
			for _, chain := range []string{"KUBE-FIREWALL", "KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY"} {
				if command(ctx, tool, "-t", table, "-F", chain) == nil {
					_ = command(ctx, tool, "-t", table, "-X", chain)
				}
			}
		}
	}
	_ = command(ctx, "ip", "link", "del", bridge)
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/kubepods") //nolint:errcheck // a constant pattern
	for _, group := range groups {
		removeGroups(group)
	}
	c.unshare()
	links, _ := filepath.Glob("/var/log/containers/*") //nolint:errcheck // a constant pattern
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, c.dir) {
			_ = os.Remove(link)
		}
	}
	results, _ := filepath.Glob("/var/lib/cni/results/" + bridge + "-*") //nolint:errcheck // a constant pattern
	loopback, _ := filepath.Glob("/var/lib/cni/results/cni-loopback-*")  //nolint:errcheck // a constant pattern
	for _, path := range append(results, loopback...) {
		_ = os.Remove(path)
	}
	_ = os.Remove("/var/lib/kubelet/device-plugins/kubelet.sock")
	for _, dir := range []string{"/var/log/containers", "/var/lib/cni/results", "/var/lib/cni", "/var/lib/kubelet/device-plugins", "/var/lib/kubelet"} {
		_ = os.Remove(dir) // where empty
	}
	saved, _ := os.ReadFile(filepath.Join(c.dir, "sysctl")) //nolint:errcheck // nothing was set
	for line := range strings.Lines(string(saved)) {
		if key, value, found := strings.Cut(strings.TrimSpace(line), "="); found && slices.Contains(sysctls, key) {
			_ = os.WriteFile(sysctlFile(key), []byte(value), 0)
		}
	}
}

// removeGroups removes a control group with those below it.
func removeGroups(dir string) {
	entries, _ := os.ReadDir(dir) //nolint:errcheck // none
	for _, entry := range entries {
		if entry.IsDir() {
			removeGroups(filepath.Join(dir, entry.Name()))
		}
	}
	_ = syscall.Rmdir(dir)
}
