package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"
)

// controlPlane starts etcd, the API server, the controllers, the scheduler and kwok.
func (c *Cluster) controlPlane(ctx context.Context) error {
	if err := c.pki(); err != nil {
		return err
	}
	if err := c.start("etcd", c.path("etcd"), "--name=e", "--data-dir="+filepath.Join(c.dir, "etcd"), "--log-level=warn", "--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=e=http://127.0.0.1:2380"); err != nil {
		return err
	}
	if err := c.await(ctx, 30*time.Second, "etcd answers", healthy("http://127.0.0.1:2379/health")); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	var fast []string
	if !c.StockLimits {
		fast = []string{"--kube-api-qps=1000", "--kube-api-burst=2000"}
	}
	controllers := append([]string{
		"--kubeconfig=" + c.kubeconfig("kcm"), "--authentication-kubeconfig=" + c.kubeconfig("kcm"), "--authorization-kubeconfig=" + c.kubeconfig("kcm"),
		"--bind-address=127.0.0.1", "--use-service-account-credentials=true", "--service-account-private-key-file=" + c.certificate("sa.key"),
		"--root-ca-file=" + c.certificate("ca.crt"), "--leader-elect=false",
	}, fast...)
	if fast != nil {
		controllers = append(controllers, "--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20")
	}
	if err := c.start("kcm", c.path("kube-controller-manager"), controllers...); err != nil {
		return err
	}
	if err := c.start("scheduler", c.path("kube-scheduler"), append([]string{
		"--kubeconfig=" + c.kubeconfig("scheduler"), "--authentication-kubeconfig=" + c.kubeconfig("scheduler"),
		"--authorization-kubeconfig=" + c.kubeconfig("scheduler"), "--bind-address=127.0.0.1", "--leader-elect=false",
	}, fast...)...); err != nil {
		return err
	}
	if err := c.await(ctx, time.Minute, "the default service account is there", func(ctx context.Context) error {
		return c.Kubectl(ctx, "get", "serviceaccount", "default")
	}); err != nil {
		return err
	}
	if !c.Kwok {
		return nil
	}
	return c.start("kwok", c.path("kwok"), "--config="+filepath.Join(c.Source, "kwok", "stages.yaml"), "--kubeconfig="+c.kubeconfig("kwok"),
		"--manage-all-nodes=false", "--node-lease-duration-seconds=40", "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
		"--node-ip="+Address, "--cidr=10.250.0.0/16")
}

// StartAPIServer starts it, also again after it was stopped.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if err := c.start("apiserver", c.path("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address="+Address, "--advertise-address="+Address, "--secure-port=6443", "--service-cluster-ip-range="+serviceCIDR,
		"--authorization-mode=Node,RBAC", "--allow-privileged=true", "--token-auth-file="+c.certificate("tokens.csv"), "--client-ca-file="+c.certificate("ca.crt"),
		"--tls-cert-file="+c.certificate("apiserver.crt"), "--tls-private-key-file="+c.certificate("apiserver.key"),
		"--kubelet-client-certificate="+c.certificate("kubelet-client.crt"), "--kubelet-client-key="+c.certificate("kubelet-client.key"),
		"--kubelet-certificate-authority="+c.certificate("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file="+c.certificate("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+c.certificate("sa.pub"),
		"--service-account-signing-key-file="+c.certificate("sa.key")); err != nil {
		return err
	}
	return c.await(ctx, time.Minute, "the API server is ready", func(ctx context.Context) error { return c.Kubectl(ctx, "get", "--raw", "/readyz") })
}

// Stop ends one part of the cluster, such as apiserver or kubelet, until it is started again.
func (c *Cluster) Stop(name string) {
	if p, known := c.recorded()[name]; known {
		p.end(10 * time.Second)
	}
}

// Kubectl runs kubectl as the administrator.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl: %w: %s", err, out)
	}
	return nil
}

func (c *Cluster) path(name string) string        { return filepath.Join(c.bin, name) }
func (c *Cluster) certificate(name string) string { return filepath.Join(c.dir, "pki", name) }

var errUnhealthy = errors.New("not healthy yet")

func healthy(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return errUnhealthy
		}
		return nil
	}
}
