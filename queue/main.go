// Command queue is one node of the queue: every durable fact of SlimFaas, and the bus.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/slimfaas/slimfaas/queue/internal/app"
	"github.com/slimfaas/slimfaas/queue/internal/dispatch"
	"github.com/slimfaas/slimfaas/shared/heap"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/settings"
)

const usage = `queue: one node of the SlimFaas queue

  queue             run the node; configuration comes from QUEUE_* variables (docs/configuration.md)
  queue health      ask the node on this machine whether it is ready; exit status 0 or 1
  queue version     print the version
  queue config-doc  print the documentation of the configuration
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "queue:", err)
		os.Exit(1)
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
	case "version":
		fmt.Fprintln(out, obs.Describe("queue"))
	case "config-doc":
		fmt.Fprint(out, settings.Markdown(prefix, &Config{}))
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
	default:
		return fmt.Errorf("%q is no command; `queue --help` lists them", command)
	}
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
	if c.Node.Name == "" {
		if c.Node.Name, err = os.Hostname(); err != nil {
			return errors.Join(errors.New("QUEUE_NAME is not set, and the host has no name"), err)
		}
	}
	log.Info("starting", append([]any{"version", obs.Version}, settings.Effective(&c)...)...)
	a, err := app.New(ctx, app.Config{
		Name: c.Node.Name, DataDir: c.Node.DataDir, Members: c.Node.Members, SecretsDir: c.Node.SecretsDir, Insecure: c.Listen.Insecure,
		RaftAddress: c.Listen.Raft, APIAddress: c.Listen.API, BusAddress: c.Listen.Bus, RoutesAddress: c.Listen.Routes,
		AdminAddress: c.Listen.Admin, Profile: c.Profile, LogStore: c.Node.LogStore,
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
