package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/certs"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/kube"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/settings"
)

const certsUsage = `scaler certs makes the secrets of an installation in Kubernetes, in the namespace it runs in.

  scaler certs init              make the Secrets slimfaas-ca, slimfaas-bus and slimfaas-tls where they are not there yet
  scaler certs renew [--force]   replace the certificates when less than a third of their life is left; programs read them again

Settings: SCALER_KUBECONFIG, SCALER_OWN_NAMESPACE, LOG_LEVEL, LOG_FORMAT.
`

// makeCerts runs scaler certs.
func makeCerts(ctx context.Context, args []string) error {
	if len(args) == 0 || slices.Contains([]string{"help", "--help", "-h"}, args[0]) {
		fmt.Print(certsUsage)
		return nil
	}
	var cfg struct {
		Log   settings.Log
		Where struct {
			OwnNamespace string `env:"OWN_NAMESPACE"`
			Kubeconfig   string `env:"KUBECONFIG"`
		}
	}
	if _, err := settings.Load(prefix, &cfg, os.Environ()); err != nil {
		return err
	}
	log, err := obs.Logger(os.Stderr, cfg.Log.Level.String(), cfg.Log.Format)
	if err != nil {
		return err
	}
	driver, err := kube.New(kube.Options{Kubeconfig: cfg.Where.Kubeconfig, Own: cfg.Where.OwnNamespace, Log: log})
	if err != nil {
		return err
	}
	switch {
	case args[0] == "init" && len(args) == 1:
		return certs.Init(ctx, driver, log)
	case args[0] == "renew" && (len(args) == 1 || len(args) == 2 && args[1] == "--force"):
		return certs.Renew(ctx, driver, time.Now(), len(args) == 2, log)
	}
	return fmt.Errorf("unknown: scaler certs %q; try scaler certs --help", args)
}
