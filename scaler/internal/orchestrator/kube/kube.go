// Package kube is the orchestrator driver of Kubernetes: it watches Deployments, StatefulSets, their pods and their
// autoscalers, and changes nothing but the scale subresource (docs/adr/0023-kubernetes-driver.md).
package kube

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

const (
	// scaleQPS and scaleBurst are what this scaler asks of the API server at most, in requests a second: client-go's 5 and 10 would
	// stretch the wake of 500 functions over 100 s.
	scaleQPS, scaleBurst = 200, 400
	// leaseQPS and leaseBurst are the Lease's own, so that a storm of wakes cannot cost the leadership.
	leaseQPS, leaseBurst = 10, 20
	// requestTimeout bounds one request that is no watch.
	requestTimeout = 10 * time.Second

	userAgent = "slimfaas-scaler"
	// everywhere is how SCALER_NAMESPACES writes all namespaces.
	everywhere = "*"
	// namespaceFile is where a pod reads its own namespace.
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace" //nolint:gosec // a path
)

// Options of the driver.
type Options struct {
	// Kubeconfig is the path of a kubeconfig file; empty: the service account of the pod this runs in, else what kubectl would use.
	Kubeconfig string
	// Own is the namespace this scaler runs in, where its Lease and its neighbours' pods are; empty: the pod's, else the kubeconfig's.
	Own string
	// Namespaces are those of the functions; empty: Own; "*": all.
	Namespaces []string
	Log        *slog.Logger // nil: silent
}

// Driver implements orchestrator.Orchestrator.
type Driver struct {
	own        string
	namespaces []string // one empty one: all
	client     *client
	lease      *client
	log        *slog.Logger
	lists      atomic.Uint64

	mu           sync.Mutex
	view         *view    // nil: nothing was listed yet
	session      *session // of the watch that runs; nil: none has the whole state
	told         map[ref]bool
	epoch        uint64 // highest that was heard
	hinted       map[string]bool
	grantedEvery time.Duration        // or grantedEvery, which tests shorten
	refused      map[string]time.Time // namespaces that were seen, and since when that is refused; zero: it is not. The watch's own.
	marks        map[string]time.Time // pods that were marked to go first, by namespace/name
	costOff      time.Time            // until when marking is not tried
}

var _ orchestrator.Orchestrator = (*Driver)(nil)

// New makes a driver. It asks nothing of the API server yet.
func New(options Options) (*Driver, error) {
	log := options.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	klog.SetSlogLogger(log.With("from", "client-go"))
	config, own, err := load(options)
	if err != nil {
		return nil, err
	}
	d := &Driver{own: own, log: log, grantedEvery: grantedEvery, told: map[ref]bool{}, hinted: map[string]bool{}, refused: map[string]time.Time{}, marks: map[string]time.Time{}}
	if d.namespaces, err = namespaces(options.Namespaces, own); err != nil {
		return nil, err
	}
	if d.client, err = newClient(config, scaleQPS, scaleBurst, 0); err != nil {
		return nil, err
	}
	if d.lease, err = newClient(config, leaseQPS, leaseBurst, leaseTimeout); err != nil {
		return nil, err
	}
	return d, nil
}

// load finds the API server, and the namespace this scaler runs in.
func load(options Options) (config *rest.Config, own string, err error) {
	own = options.Own
	if options.Kubeconfig == "" {
		config, err = rest.InClusterConfig()
		if err == nil {
			if own == "" {
				raw, err := os.ReadFile(namespaceFile)
				if err != nil {
					return nil, "", fmt.Errorf("read the namespace of this pod: %w", err)
				}
				own = strings.TrimSpace(string(raw))
			}
			return config, own, nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, "", fmt.Errorf("read the service account of this pod: %w", err)
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = options.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{})
	if config, err = loader.ClientConfig(); err != nil {
		return nil, "", fmt.Errorf("find the API server: neither a pod's service account nor a kubeconfig: %w", err)
	}
	if own == "" {
		if own, _, err = loader.Namespace(); err != nil {
			return nil, "", fmt.Errorf("read the namespace of the kubeconfig: %w", err)
		}
	}
	return config, own, nil
}

func namespaces(wanted []string, own string) ([]string, error) {
	var all []string
	for _, one := range wanted {
		if one = strings.TrimSpace(one); one != "" && !slices.Contains(all, one) {
			all = append(all, one)
		}
	}
	switch {
	case len(all) == 0:
		return []string{own}, nil
	case slices.Contains(all, everywhere) && len(all) > 1:
		return nil, fmt.Errorf("namespaces %s: %q stands for all of them and goes with no other", strings.Join(all, ","), everywhere)
	case all[0] == everywhere:
		return []string{""}, nil
	}
	return all, nil
}

// Namespace is the one this scaler runs in.
func (d *Driver) Namespace() string { return d.own }

// Lists counts the listings of all objects of a resource that were asked of the API server.
func (d *Driver) Lists() uint64 { return d.lists.Load() }

// single is the only namespace that is watched; empty: several are.
func (d *Driver) single() string {
	if len(d.namespaces) == 1 {
		return d.namespaces[0]
	}
	return ""
}
