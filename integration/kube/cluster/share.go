package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A share is a control group that shares the processors with others of the root by weight, as cpu.shares count.
type share struct {
	name   string
	shares int
	parts  []string // of the cluster; the rest of what this process starts is the user's
}

// Processors are shared as on machines that are somebody's: systemd gives the programs of a node 1024 (system.slice), its users'
// 1024 (user.slice), and the kubelet gives all pods 1024 for each processor; the control plane, which has machines of its own elsewhere,
// gets as much as pods. With everything in the root group each thread of runc weighs as much as all our pods together: 20 pods that
// start within five seconds then make a request of the API server last 160 to 900 ms.
var shares = []share{
	{name: "slimfaas-e2e-control", shares: 2048, parts: []string{"etcd", "apiserver", "kcm", "scheduler", "kwok"}},
	{name: "slimfaas-e2e-node", shares: 1024, parts: []string{"containerd", "kubelet", "proxy", "dns"}},
	{name: user, shares: 1024},
}

const user = "slimfaas-e2e-user"

// hierarchy is the root of the groups that share processors, and how a weight is written there.
func hierarchy() (root, file string, weight func(shares int) int) {
	const one, two = "/sys/fs/cgroup/cpu", "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(one, "cpu.shares")); err == nil {
		return one, "cpu.shares", func(shares int) int { return shares }
	}
	return two, "cpu.weight", func(shares int) int { return 1 + (shares-2)*9999/262142 } // as the kubelet does
}

// share makes the groups, and puts this process into the users'. Where that cannot be done everything shares as one.
func (c *Cluster) share() {
	root, file, weight := hierarchy()
	if file == "cpu.weight" {
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+cpu"), 0) // else the first group has no weight, and that is said
	}
	for _, s := range shares {
		dir := filepath.Join(root, s.name)
		err := os.MkdirAll(dir, 0o755) //nolint:gosec // the kernel sets the modes of what is in a control group; everybody may look
		if err = errors.Join(err, os.WriteFile(filepath.Join(dir, file), strconv.AppendInt(nil, int64(weight(s.shares)), 10), 0)); err != nil {
			c.say("everything shares the processors as one: %v", err)
			return
		}
	}
	c.home = filepath.Join(root, own(file == "cpu.weight"))
	c.join(os.Getpid(), user)
}

// own is the group this process was started in, below the root.
func own(unified bool) string {
	raw, _ := os.ReadFile("/proc/self/cgroup") //nolint:errcheck // where it cannot be read this process goes back to the root group
	for line := range strings.Lines(string(raw)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (unified && fields[0] == "0" || !unified && strings.Contains(","+fields[1]+",", ",cpu,")) {
			return fields[2]
		}
	}
	return "/"
}

// join puts a process into a group.
func (c *Cluster) join(pid int, name string) {
	if c.home == "" {
		return
	}
	root, _, _ := hierarchy()
	if err := os.WriteFile(filepath.Join(root, name, "cgroup.procs"), fmt.Appendln(nil, pid), 0); err != nil {
		c.say("process %d shares as it did: %v", pid, err)
	}
}

// unshare puts this process back where it was, and removes the groups, also those of an earlier run.
func (c *Cluster) unshare() {
	if c.home != "" {
		_ = os.WriteFile(filepath.Join(c.home, "cgroup.procs"), fmt.Appendln(nil, os.Getpid()), 0)
		c.home = ""
	}
	root, _, _ := hierarchy()
	for _, s := range shares {
		removeGroups(filepath.Join(root, s.name))
	}
}

// groupOf a part of the cluster.
func groupOf(part string) string {
	for _, s := range shares {
		for _, p := range s.parts {
			if p == part {
				return s.name
			}
		}
	}
	return user
}
