// Command local is the supervisor of the local stack (`make run`): it owns every process of it, functions included.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/deploy/local/internal/stack"
)

// Exit codes, as upstream's `slimfaas local` has them.
const (
	exitOK    = 0
	exitOther = 1
	exitUsage = 2 // the manifest or the command line is wrong
)

func main() {
	os.Exit(command(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// command runs one command line and returns the exit code.
func command(args, environ []string, stdout, stderr io.Writer) int {
	f, err := parse(args)
	if errors.Is(err, errHelp) {
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	if err == nil {
		err = f.run(environ, stdout, stderr)
	}
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "slimfaas local: %v\n", err)
	var invalid manifest.Invalid
	var wrong usageError
	if errors.As(err, &invalid) || errors.As(err, &wrong) {
		return exitUsage
	}
	return exitOther
}

// up runs the stack in the foreground. The first SIGINT or SIGTERM ends it in order, the second at once.
func (f flags) up(m *manifest.Manifest, environ []string, stdout, stderr io.Writer) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding my own program: %w", err)
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level(environ)}))
	for _, p := range m.Warnings {
		log.Warn("a word on the manifest", "where", p.String())
	}
	for _, p := range m.Broken {
		log.Warn("a function has an annotation that cannot be used: it is shown as broken, the others work", "where", p.String())
	}
	for _, j := range m.Jobs {
		log.Warn("jobs are not yet run", "job", j.Name)
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	// A terminal that goes away must not kill us in the middle of a line: SIGHUP follows. Notify and not Ignore, which
	// children would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	hurry := make(chan struct{})
	go func() { // lives as long as the program: main waits for Run, which waits for ctx
		<-signals
		stop()
		<-signals
		close(hurry)
	}()
	return stack.Run(ctx, stack.Options{
		Manifest: m, State: f.stateDir(m), Bin: filepath.Dir(program), Environ: environ, NoRestart: f.noRestart, Clean: f.clean, Hurry: hurry,
		Ready: func(url string) { fmt.Fprintln(stdout, "ready "+url) }, Log: log,
	})
}
