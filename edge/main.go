// Edge is the HTTP face of SlimFaas: it calls functions, wakes them, takes and delivers async calls and events. It keeps
// nothing on disk; every edge is like every other.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/slimfaas/slimfaas/edge/internal/app"
	"github.com/slimfaas/slimfaas/shared/heap"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/settings"
)

const usage = `usage: edge [command]

  (none)      run; configured by environment variables, see docs/configuration.md
  ls          list the functions, their state and why
  call        call a function: edge call <function> [path] [-d body|@file|@-] [-X method] [-H 'Name: value'] [-i] [-async]
  wake        wake a function: edge wake <function>
  scale       ask for a number of replicas for a while: edge scale <function> <replicas> [-for 60s]
  explain     print why a function has the replicas it has: edge explain <function>
  status      print what /status-functions says
  cluster     print what /cluster says
  health      ask the /ready of the edge on this machine; exit code 0 when it is
  config-doc  print the table of settings for docs/configuration.md
  version     print the version

ls, call, wake, scale, explain, status and cluster ask the edge at SLIMFAAS_URL; without it the internal listener of the one on this
machine. explain, scale and cluster are for internal callers. A key (SlimFaas/RequireKey) is taken from SLIMFAAS_API_KEY.
`

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)) }

func run(args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var cfg config
	switch command := append(args, "")[0]; command {
	case "version":
		fmt.Fprintln(stdout, obs.Describe("edge"))
		return 0
	case "config-doc":
		fmt.Fprint(stdout, settings.Markdown(prefix, &cfg))
		return 0
	case "health":
		_, _ = settings.Load(prefix, &cfg, environ) // the admin address is read whatever else is wrong
		if err := serve.CheckReady(ctx, cfg.Listen.Admin); err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	case "ls", "call", "explain", "wake", "scale", "status", "cluster":
		_, _ = settings.Load(prefix, &cfg, environ) // as above, for the internal address
		c, err := newClient(cfg.Listen.Internal, environ, stdout)
		if err == nil {
			err = c.run(ctx, command, args[1:], stdin)
		}
		if err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	case "--help", "-h", "help":
		fmt.Fprint(stdout, usage)
		return 0
	case "":
	default:
		fmt.Fprintf(stderr, "edge: unknown command %q\n\n%s", command, usage)
		return 2
	}
	defer heap.HoldFloor()()
	warnings, err := settings.Load(prefix, &cfg, environ)
	log, logErr := obs.Logger(stderr, cfg.Log.Level.String(), cfg.Log.Format)
	if logErr != nil {
		fmt.Fprintln(stderr, "edge:", logErr)
		return 2
	}
	for _, w := range warnings {
		log.Warn("configuration", "warning", w)
	}
	if err == nil {
		var o app.Options
		if o, err = cfg.options(); err == nil {
			log.Info("configuration", settings.Effective(&cfg)...)
			err = app.Run(ctx, o, log)
		}
	}
	if err != nil {
		log.Error("the edge stopped", "err", err)
		return 1
	}
	return 0
}
