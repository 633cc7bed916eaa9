package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func (c *Cluster) socket() string { return filepath.Join(c.dir, "containerd", "c.sock") }

// node starts containerd, the kubelet, kube-proxy and cluster DNS, and waits until the node is ready.
func (c *Cluster) node(ctx context.Context) error {
	files := map[string]string{
		"cni/10-bridge.conflist": fmt.Sprintf(`{"cniVersion":"0.4.0","name":"%[1]s","plugins":[
 {"type":"bridge","bridge":"%[1]s","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"%[2]s","rangeStart":"10.244.0.10"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"%[3]s/cni-data"}}]}
`, bridge, podCIDR, c.dir),
		// Every image of Docker Hub comes from our registry: pull policies, tags and pull failures are as real as anywhere.
		"certs.d/docker.io/hosts.toml": fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", Registry),
		"containerd/config.toml": fmt.Sprintf(`version = 2
root = "%[1]s/containerd/root"
state = "%[1]s/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs","io.containerd.snapshotter.v1.btrfs","io.containerd.snapshotter.v1.zfs","io.containerd.snapshotter.v1.devmapper","io.containerd.tracing.processor.v1.otlp","io.containerd.internal.v1.tracing"]
[grpc]
  address = "%[2]s"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/slimfaas/pause:1"
  disable_tcp_service = true
  # Without CAP_SYS_RESOURCE runc may not lower oom_score_adj to the sandbox's -998.
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "%[1]s/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[3]s"
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`, c.dir, c.socket(), cni),
		"kubelet.yaml": fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[2]s
healthzBindAddress: 127.0.0.1
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[1]s/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: %[1]s/pki/kubelet.crt
tlsPrivateKeyFile: %[1]s/pki/kubelet.key
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://%[3]s
resolvConf: %[1]s/resolv.conf
clusterDNS: [%[2]s]
podLogsDir: %[1]s/podlogs
volumePluginDir: %[1]s/kubelet/volumeplugins
clusterDomain: cluster.local
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, imagefs.available: 1%%}
makeIPTablesUtilChains: false
registryPullQPS: 0
eventRecordQPS: 0
maxPods: 200
`, c.dir, Address, c.socket()),
		"proxy.yaml": fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: %[2]s
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
hostnameOverride: %[3]s
clientConnection: {kubeconfig: %[1]s}
clusterCIDR: %[4]s
mode: iptables
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 10ms, syncPeriod: 30s}
nodePortAddresses: ["%[2]s/32"]
`, c.kubeconfig("proxy"), Address, nodeName, podCIDR),
		"Corefile": fmt.Sprintf(`.:53 {
  bind %s
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {
    kubeconfig %s
    ttl 1
  }
}
`, Address, c.Kubeconfig()),
	}
	resolve, _ := os.ReadFile("/etc/resolv.conf") //nolint:errcheck // an empty one will do
	files["resolv.conf"] = string(resolve)
	for name, content := range files {
		path := filepath.Join(c.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // containerd and CNI read it
			return fmt.Errorf("make the node's folders: %w", err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil { //nolint:gosec // no secret
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	c.saveSysctls()
	if err := c.start("containerd", "containerd", "--config", filepath.Join(c.dir, "containerd", "config.toml")); err != nil {
		return err
	}
	if err := c.await(ctx, 20*time.Second, "containerd answers", func(ctx context.Context) error {
		return command(ctx, "ctr", "--address", c.socket(), "version")
	}); err != nil {
		return err
	}
	if err := c.StartKubelet(); err != nil {
		return err
	}
	if err := c.start("proxy", c.path("kube-proxy"), "--config="+filepath.Join(c.dir, "proxy.yaml")); err != nil {
		return err
	}
	if err := c.start("dns", c.path("dns"), "-conf", filepath.Join(c.dir, "Corefile")); err != nil {
		return err
	}
	return c.await(ctx, 90*time.Second, "the node is ready", func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, "kubectl", "--kubeconfig", c.Kubeconfig(), "get", "node", nodeName, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`).CombinedOutput()
		if err != nil || string(out) != "True" {
			return fmt.Errorf("%w: %s", errUnhealthy, out)
		}
		return nil
	})
}

// StartKubelet starts it, also again after it was stopped.
func (c *Cluster) StartKubelet() error {
	return c.start("kubelet", c.path("kubelet"), "--config="+filepath.Join(c.dir, "kubelet.yaml"), "--kubeconfig="+c.kubeconfig("kubelet"),
		"--root-dir="+filepath.Join(c.dir, "kubelet"), "--cert-dir="+filepath.Join(c.dir, "kubelet", "pki"), "--hostname-override="+nodeName, "--node-ip="+Address)
}

// sysctls are those the kubelet sets; Down puts the old values back.
var sysctls = []string{"vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops", "kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes"}

func sysctlFile(key string) string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
}

func (c *Cluster) saveSysctls() {
	var saved strings.Builder
	for _, key := range sysctls {
		if value, err := os.ReadFile(sysctlFile(key)); err == nil {
			fmt.Fprintf(&saved, "%s=%s\n", key, strings.TrimSpace(string(value)))
		}
	}
	_ = os.WriteFile(filepath.Join(c.dir, "sysctl"), []byte(saved.String()), 0o600)
}
