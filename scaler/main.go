// Command scaler knows the functions and their replicas, decides how many there should be, and asks the orchestrator for it.
// Several run at a time and one leads; waking a sleeping function needs no leader.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/slimfaas/slimfaas/scaler/internal/app"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/settings"
)

const usage = `scaler wakes functions, puts them to sleep, and keeps the table of where they are.

  scaler                 run
  scaler certs           make the secrets of an installation in Kubernetes, and renew its certificates
  scaler health          ask this scaler's /ready: ends 0 or 1
  scaler config-doc      print the table of settings for docs/configuration.md
  scaler version         say which build this is

Settings are environment variables named SCALER_…; see docs/configuration.md.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "scaler:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	command := "run"
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "run":
		return start(ctx)
	case "certs":
		return makeCerts(ctx, args[1:])
	case "health":
		var cfg struct{ Listen listenConfig }
		if _, err := settings.Load(prefix, &cfg, os.Environ()); err != nil {
			return err
		}
		return serve.CheckReady(ctx, cfg.Listen.AdminAddress)
	case "config-doc":
		fmt.Print(settings.Markdown(prefix, &config{}))
		return nil
	case "version", "--version":
		fmt.Println(obs.Describe("scaler"))
		return nil
	case "help", "--help", "-h":
		fmt.Print(usage)
		return nil
	}
	return fmt.Errorf("unknown command %q; try scaler --help", command)
}

func start(ctx context.Context) error {
	options, cfg, warnings, err := load(os.Environ())
	if err != nil {
		return err
	}
	log, err := obs.Logger(os.Stderr, cfg.Log.Level.String(), cfg.Log.Format)
	if err != nil {
		return err
	}
	for _, warning := range warnings {
		log.Warn("about the settings", "warning", warning)
	}
	log.Info("scaler starts", settings.Effective(&cfg)...)
	options.Log = log.With("node", options.Name)
	if err := cfg.orchestrator(&options); err != nil {
		return err
	}
	scaler, err := app.New(ctx, options)
	if err != nil {
		return err
	}
	return scaler.Run(ctx)
}
