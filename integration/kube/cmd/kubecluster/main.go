// kubecluster runs a command beside a real Kubernetes of one node, and leaves nothing behind.
//
//	kubecluster [-kwok] [-image name=binary[,VARIABLE=value]…]… -- command…
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/slimfaas/slimfaas/integration/kube/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "kubecluster:", err)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find the cache: %w", err)
	}
	options := cluster.Options{Progress: os.Stderr}
	flag.StringVar(&options.Dir, "dir", filepath.Join(os.TempDir(), "slimfaas-e2e"), "folder of the run; one cluster at a time")
	flag.StringVar(&options.Cache, "cache", filepath.Join(cache, "slimfaas-e2e"), "folder of the built components")
	flag.StringVar(&options.Source, "components", "components", "folder of the components' modules")
	flag.BoolVar(&options.Kwok, "kwok", false, "simulate nodes")
	flag.BoolVar(&options.StockLimits, "stock-limits", false, "leave the controllers' 20 requests a second")
	logs := flag.Int("logs", 0, "bytes of each part's log to print when the command fails")
	var images []string
	flag.Func("image", "name=binary[,VARIABLE=value]…: an image FROM scratch for the registry, repeated", func(s string) error { images = append(images, s); return nil })
	missing := flag.Bool("missing", false, "say what this machine lacks, and end")
	flag.Parse()
	if *missing {
		return cluster.Missing()
	}
	if flag.NArg() == 0 {
		return errors.New("no command: kubecluster -- command")
	}
	c, err := cluster.Up(ctx, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Down(context.WithoutCancel(ctx))) }()
	for _, image := range images {
		parts := strings.Split(image, ",")
		name, binary, _ := strings.Cut(parts[0], "=")
		if err := cluster.Push(ctx, name, binary, parts[1:]...); err != nil {
			return err
		}
	}
	command := exec.CommandContext(ctx, flag.Arg(0), flag.Args()[1:]...) //nolint:gosec // that is what this is for
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "KUBECONFIG_E2E="+c.Kubeconfig(), "E2E_CLUSTER_DIR="+options.Dir)
	if err := command.Run(); err != nil {
		if *logs > 0 {
			fmt.Fprintln(os.Stderr, c.Logs(*logs))
		}
		return fmt.Errorf("%s: %w", flag.Arg(0), err)
	}
	return nil
}
