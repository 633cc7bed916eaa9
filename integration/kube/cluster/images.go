package cluster

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// serveImages serves the registry, with the image of the pods' sandboxes in it.
func (c *Cluster) serveImages(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", Registry)
	if err != nil {
		return fmt.Errorf("serve the registry: %w", err)
	}
	c.registry = &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: 10 * time.Second}
	c.reap.Go(func() { _ = c.registry.Serve(listener) })
	return Push(ctx, "slimfaas/pause:1", c.path("pause"))
}

// Push makes an image FROM scratch with one static binary as its entrypoint, /edge of slimfaas/edge:dev, which runs as nobody of
// importance (65532), and puts it into the registry. env are its variables, NAME=value.
func Push(ctx context.Context, as, binary string, env ...string) error {
	program, _, _ := strings.Cut(path.Base(as), ":")
	image, err := image(binary, program, env)
	if err != nil {
		return fmt.Errorf("make the image %s: %w", as, err)
	}
	reference, err := name.ParseReference(Registry+"/"+as, name.Insecure)
	if err != nil {
		return fmt.Errorf("name the image: %w", err)
	}
	if err := remote.Write(reference, image, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", as, err)
	}
	return nil
}

func image(binary, program string, env []string) (v1.Image, error) {
	raw, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	const owner = 65532
	for _, one := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: program, Mode: 0o755, Size: int64(len(raw))},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o700, Uid: owner, Gid: owner},
	} {
		if err := archive.WriteHeader(&one); err != nil {
			return nil, err
		}
		if one.Typeflag == tar.TypeReg {
			if _, err := archive.Write(raw); err != nil {
				return nil, err
			}
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed)) // it goes no farther than this machine
	if err != nil {
		return nil, err
	}
	config := v1.Config{Entrypoint: []string{"/" + program}, User: "65532:65532", WorkingDir: "/", Env: env}
	bare, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", Config: config})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(bare, layer)
}
