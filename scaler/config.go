package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/app"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/kube"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/process"
	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/settings"
)

const prefix = "SCALER_"

// config is everything that can be set, one struct per concern. docs/configuration.md is made from it.
type config struct {
	Log          settings.Log
	Identity     identityConfig
	Listen       listenConfig
	Neighbours   neighbourConfig
	Orchestrator orchestratorConfig
	Sleep        sleepConfig

	localToken string // of bin/local's socket
}

type identityConfig struct {
	Name       string `env:"NAME" doc:"Name of this scaler, unique among the scalers. Empty: the host's name."`
	SecretsDir string `env:"SECRETS_DIR" doc:"Directory with bus-scaler.seed, token-scaler, token-queue and, with the process orchestrator, token-local; one value per file; ca.crt, tls.crt and tls.key when internal links use TLS (docs/security.md). Empty: no secrets, the bus must accept anybody and every token is refused."`
}

type listenConfig struct {
	APIAddress   string `env:"API_ADDRESS" envDefault:":3264" doc:"Listen address host:port of the API queue nodes copy the function table from."`
	APIAdvertise string `env:"API_ADVERTISE" doc:"host:port queue nodes dial. Empty: the listen address, which must then name a host."`
	AdminAddress string `env:"ADMIN_ADDRESS" envDefault:":9090" doc:"Listen address host:port of /metrics, /health and /ready."`
	Insecure     bool   `env:"INSECURE" doc:"Allow internal links without TLS that leave this machine."`
}

type neighbourConfig struct {
	QueueAPI []string `env:"QUEUE_API" doc:"URLs of the queue nodes' APIs, comma-separated: http://host:3263; with certificates in the secrets directory they are reached by TLS, whatever the scheme."`
	BusURLs  []string `env:"BUS_URLS" doc:"URLs of the bus on the queue nodes, comma-separated: nats://host:4222; TLS as above."`
}

// Validate implements settings.Validator.
func (c *neighbourConfig) Validate() error {
	var errs []error
	if len(c.QueueAPI) == 0 {
		errs = append(errs, fmt.Errorf("%sQUEUE_API is empty: a scaler needs at least one queue node, such as http://queue-0:3263", prefix))
	}
	if len(c.BusURLs) == 0 {
		errs = append(errs, fmt.Errorf("%sBUS_URLS is empty: a scaler needs the bus, such as nats://queue-0:4222", prefix))
	}
	return errors.Join(errs...)
}

type orchestratorConfig struct {
	Kind          string   `env:"ORCHESTRATOR" envDefault:"process" alias:"SlimFaas__Orchestrator" doc:"What runs the functions: process (bin/local) or kubernetes. docker is not built in yet."`
	ProcessSocket string   `env:"PROCESS_SOCKET" doc:"Path of bin/local's unix socket; needed with process."`
	Namespaces    []string `env:"NAMESPACES" alias:"SlimFaas__Namespace" doc:"Kubernetes namespaces of the functions, comma-separated, or * for all. Empty: the one this scaler runs in. With more than one, functions are called name.namespace."`
	OwnNamespace  string   `env:"OWN_NAMESPACE" doc:"Kubernetes namespace this scaler runs in: of its Lease and its neighbours' pods. Empty: the pod's, else the kubeconfig's."`
	Kubeconfig    string   `env:"KUBECONFIG" doc:"Path of a kubeconfig. Empty: the pod's service account, else what kubectl would use."`
}

// Kinds of orchestrators.
const (
	ofProcesses = "process"
	kubernetes  = "kubernetes"
)

// Validate implements settings.Validator.
func (c *orchestratorConfig) Validate() error {
	switch c.Kind = strings.ToLower(c.Kind); c.Kind {
	case ofProcesses:
		if c.ProcessSocket == "" {
			return fmt.Errorf("%sPROCESS_SOCKET is empty: the process orchestrator is reached through bin/local's unix socket", prefix)
		}
		return nil
	case kubernetes:
		return nil
	case "docker":
		return fmt.Errorf("%sORCHESTRATOR=%s: not built in yet, only process and kubernetes are", prefix, c.Kind)
	}
	return fmt.Errorf("%sORCHESTRATOR=%q: expected process or kubernetes", prefix, c.Kind)
}

type sleepConfig struct {
	IdleDrain      time.Duration `env:"IDLE_DRAIN_TIMEOUT" envDefault:"30s" doc:"How long a function that goes to sleep waits for every edge to stop routing to it; work on it cancels the sleep at any time. 0 does not wait."`
	ShrinkDrain    time.Duration `env:"DRAIN_TIMEOUT" envDefault:"300s" doc:"How long a replica an operator's scale takes away may finish what is open on it. 0 does not wait."`
	VanishedBlocks time.Duration `env:"VANISHED_EDGE_BLOCKS" envDefault:"60s" doc:"How long an edge that vanished without a word keeps every function from shrinking, unless the orchestrator knows that it is dead. 0: not at all."`
}

// load reads the configuration and the secrets.
func load(environ []string) (options app.Options, cfg config, warnings []string, err error) {
	warnings, err = settings.Load(prefix, &cfg, environ)
	if err != nil {
		return options, cfg, warnings, err
	}
	options = app.Options{
		Name: cfg.Identity.Name, APIAddress: cfg.Listen.APIAddress, APIAdvertise: cfg.Listen.APIAdvertise, AdminAddress: cfg.Listen.AdminAddress,
		QueueAPI: cfg.Neighbours.QueueAPI, BusURLs: cfg.Neighbours.BusURLs,
		SecretsDir: cfg.Identity.SecretsDir, Insecure: cfg.Listen.Insecure,
		IdleDrain: cfg.Sleep.IdleDrain, ShrinkDrain: cfg.Sleep.ShrinkDrain, VanishedBlocks: cfg.Sleep.VanishedBlocks,
	}
	if options.Name == "" {
		if options.Name, err = os.Hostname(); err != nil {
			return options, cfg, warnings, fmt.Errorf("find a name for this scaler: %w", err)
		}
	}
	if cfg.Identity.SecretsDir == "" {
		return options, cfg, append(warnings, prefix+"SECRETS_DIR is empty: no neighbour will know this scaler"), nil
	}
	options.BusSeedFile = cfg.Identity.SecretsDir + "/bus-scaler.seed"
	var errs []error
	tokens := map[string]*string{"token-scaler": &options.Token, "token-queue": &options.QueueToken}
	if cfg.Orchestrator.Kind == ofProcesses {
		tokens["token-local"] = &cfg.localToken
	}
	for name, value := range tokens {
		*value, err = secret.Read(cfg.Identity.SecretsDir, name)
		errs = append(errs, err)
	}
	return options, cfg, warnings, errors.Join(errs...)
}

// orchestrator makes the driver that is set.
func (c *config) orchestrator(options *app.Options) error {
	if c.Orchestrator.Kind != kubernetes {
		options.Orchestrator = process.New(process.Options{Socket: c.Orchestrator.ProcessSocket, Token: c.localToken, Log: options.Log})
		return nil
	}
	driver, err := kube.New(kube.Options{
		Kubeconfig: c.Orchestrator.Kubeconfig, Own: c.Orchestrator.OwnNamespace, Namespaces: c.Orchestrator.Namespaces, Log: options.Log,
	})
	if err != nil {
		return fmt.Errorf("%sORCHESTRATOR=%s: %w", prefix, kubernetes, err)
	}
	options.Orchestrator = driver
	options.Elect = driver.Elector(options.Name + "_" + rand.Text()).Run
	return nil
}
