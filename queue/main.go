// Command queue is one node of the queue: every durable fact of SlimFaas, and the bus.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/slimfaas/slimfaas/queue/internal/app"
	"github.com/slimfaas/slimfaas/queue/internal/dispatch"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/queue/internal/operate"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/heap"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/settings"
)

const usage = `queue: one node of the SlimFaas queue

  queue             run the node; configuration comes from QUEUE_* variables (docs/configuration.md)
  queue health      ask the node on this machine whether it is ready; exit status 0 or 1
  queue rejoin ID   give up what is in this node's data directory and have the leader fill it at the next start; ID is the
                    installation id of the cluster, and the node must not run
  queue version     print the version
  queue config-doc  print the documentation of the configuration

operating a cluster (docs/operations.md; each explains itself with --help):

`

// profileRate is how many bytes are allocated, about, between two samples of the heap's profile. An entry is some 256 KiB: at Go's 512 KiB
// every other one is sampled, which takes a hundredth of a busy node's time.
const profileRate = 8 << 20

func main() {
	runtime.MemProfileRate = profileRate
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "queue:", err)
		code := 1
		if failure := (operate.Failure{}); errors.As(err, &failure) {
			code = failure.Code
		}
		os.Exit(code)
	}
}

func run(ctx context.Context, args, environ []string, out io.Writer) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "":
		return runNode(ctx, environ)
	case "health":
		var c Config
		if _, err := settings.Load(prefix, &c, environ); err != nil {
			return err
		}
		return serve.CheckReady(ctx, c.Listen.Admin)
	case "rejoin":
		return rejoin(args[1:], environ, out)
	case "version":
		fmt.Fprintln(out, obs.Describe("queue"))
	case "config-doc":
		fmt.Fprint(out, settings.Markdown(prefix, &Config{}))
	case "help", "-h", "--help":
		fmt.Fprint(out, usage+operate.Usage())
	default:
		if operate.Known(command) {
			return runOperation(ctx, args, environ, out)
		}
		return fmt.Errorf("%q is no command; `queue --help` lists them", command)
	}
	return nil
}

// rejoin is for a directory that was refused: lost, damaged, or an older copy.
func rejoin(args, environ []string, out io.Writer) error {
	if len(args) != 1 || strings.HasPrefix(args[0], "-") {
		return errors.New("usage: queue rejoin INSTALLATION-ID (GET /cluster on an edge shows it, and so does the node's refusal)")
	}
	var c Config
	if _, err := settings.Load(prefix, &c, environ); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if err := c.Node.complete(); err != nil {
		return err
	}
	if err := raftnode.GiveUp(c.Node.DataDir, c.Node.Name, args[0]); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is given up; %s is filled by the leader when it starts\n", c.Node.DataDir, c.Node.Name)
	return nil
}

func runNode(ctx context.Context, environ []string) error {
	defer heap.HoldFloor()()
	var c Config
	warnings, err := settings.Load(prefix, &c, environ)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	log, err := obs.Logger(os.Stderr, c.Log.Level.String(), c.Log.Format)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		log.Warn("configuration", "warning", w)
	}
	if err := c.Node.complete(); err != nil {
		return err
	}
	log.Info("starting", append([]any{"version", obs.Version}, settings.Effective(&c)...)...)
	a, err := app.New(ctx, app.Config{
		Name: c.Node.Name, DataDir: c.Node.DataDir, Members: c.Node.Members, Join: c.Node.Join, SecretsDir: c.Node.SecretsDir, Insecure: c.Listen.Insecure,
		RaftAddress: c.Listen.Raft, APIAddress: c.Listen.API, BusAddress: c.Listen.Bus, RoutesAddress: c.Listen.Routes,
		AdminAddress: c.Listen.Admin, Profile: c.Profile, LogStore: c.Node.LogStore,
		Guard: app.Guard{
			WriteTimeout: c.Guard.WriteTimeout, Rejoin: c.Guard.Rejoin,
			Disk: guard.Limits{Refuse: c.Guard.DiskRefuse, HandOver: c.Guard.DiskHandOver, Ballast: c.Guard.DiskBallast},
		},
		Limits: dispatch.Limits{
			HistoryAge: c.Keep.HistoryAge, KeepFinished: c.Keep.HistoryCount, KeepDead: c.Keep.DeadCount, DeadAge: c.Keep.DeadAge, OrphanDeadAge: c.Keep.OrphanDeadAfter,
			UploadIdle: c.Keep.UploadIdle,
		},
		MaxUnfinished: c.Keep.MaxUnfinished, MaxKeys: c.Keep.MaxKeys, MaxUploadBytes: c.Keep.MaxUploadBytes, Log: log,
	})
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	return a.Run(ctx)
}
