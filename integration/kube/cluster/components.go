package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Versions of what is built.
const (
	kubernetes = "1.34.4"
	minor      = "34"
)

// names the multi-call binary answers to.
var names = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"}

// build makes the components' binaries, or takes those of the same sources from the cache, and gives their folder.
func (c *Cluster) build(ctx context.Context) (string, error) {
	sum, err := digest(c.Source)
	if err != nil {
		return "", fmt.Errorf("read the components' modules: %w", err)
	}
	to := filepath.Join(c.Cache, sum[:16])
	if err := os.MkdirAll(to, 0o755); err != nil { //nolint:gosec // binaries
		return "", fmt.Errorf("make the cache of components: %w", err)
	}
	version := "k8s.io/component-base/version"
	for _, one := range []struct{ name, dir, pkg, ldflags string }{
		{"pause", "pause", ".", "-s -w"},
		{"dns", "dns", ".", "-s -w"},
		{"kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "-s -w"},
		{"kubeall", "kubeall", ".", strings.Join([]string{
			"-s -w -X " + version + ".gitVersion=v" + kubernetes, version + ".gitMajor=1", version + ".gitMinor=" + minor,
			version + ".gitTreeState=clean", version + ".gitCommit=goproxy", version + ".buildDate=1970-01-01T00:00:00Z",
		}, " -X ")},
	} {
		if one.name == "kwok" && !c.Kwok {
			continue
		}
		binary := filepath.Join(to, one.name)
		if _, err := os.Stat(binary); err == nil {
			continue
		}
		c.say("building %s (once; the cluster's own components take some minutes)", one.name)
		build := exec.CommandContext(ctx, "go", "build", "-tags", "grpcnotrace", "-ldflags", one.ldflags, "-o", binary+".new", one.pkg)
		build.Dir = filepath.Join(c.Source, one.dir)
		build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false -mod=mod", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", one.name, err, out)
		}
		if err := os.Rename(binary+".new", binary); err != nil {
			return "", fmt.Errorf("keep %s: %w", one.name, err)
		}
	}
	for _, name := range names {
		link := filepath.Join(to, name)
		if _, err := os.Lstat(link); err != nil {
			if err := os.Symlink("kubeall", link); err != nil {
				return "", fmt.Errorf("name the multi-call binary %s: %w", name, err)
			}
		}
	}
	return to, nil
}

// digest of all files of a folder.
func digest(dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err == nil {
			relative, _ := filepath.Rel(dir, path) //nolint:errcheck // path is below dir
			fmt.Fprintf(sum, "%s %d\n", relative, len(raw))
			sum.Write(raw)
		}
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}
