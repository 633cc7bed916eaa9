package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// volumes of the pool.
const volumes = 40

// storage makes a default StorageClass and a pool of local volumes: a hostPath would ignore fsGroup, and a queue that is not root
// could not write.
func (c *Cluster) storage(ctx context.Context) error {
	var manifest strings.Builder
	manifest.WriteString(`apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
`)
	for i := range volumes {
		dir := filepath.Join(c.dir, "volumes", fmt.Sprint(i))
		if err := os.MkdirAll(dir, 0o777); err != nil { //nolint:gosec // fsGroup sets its group
			return fmt.Errorf("make a volume: %w", err)
		}
		fmt.Fprintf(&manifest, `---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-%d}
spec:
  capacity: {storage: 20Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: %s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}}
`, i, dir, nodeName)
	}
	apply := exec.CommandContext(ctx, "kubectl", "--kubeconfig", c.Kubeconfig(), "create", "-f", "-")
	apply.Stdin = strings.NewReader(manifest.String())
	if out, err := apply.CombinedOutput(); err != nil {
		return fmt.Errorf("make the volumes: %w: %s", err, out)
	}
	return nil
}
