package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/slimfaas/slimfaas/shared/obs"
)

// registry of this scaler's metrics. The per-function gauges keep upstream's names; only the leader has them.
func (a *App) registry() *prometheus.Registry {
	registry := obs.Registry("scaler")
	registry.MustRegister(collector{a})
	return registry
}

// collector reads figures when it is asked, so that functions that are gone leave no series behind.
type collector struct{ app *App }

var (
	perFunction = []string{"function"}
	current     = prometheus.NewDesc("slimfaas_autoscaler_current_replicas", "Replicas asked of the orchestrator.", perFunction, nil)
	desired     = prometheus.NewDesc("slimfaas_autoscaler_desired_replicas", "Replicas decided.", perFunction, nil)
	ready       = prometheus.NewDesc("slimfaas_autoscaler_ready_replicas", "Replicas that are ready.", perFunction, nil)

	leading   = prometheus.NewDesc("slimfaas_scaler_leading", "1 while this scaler states the function table.", nil, nil)
	epoch     = prometheus.NewDesc("slimfaas_scaler_epoch", "Epoch of the term; 0 while not leading.", nil, nil)
	functions = prometheus.NewDesc("slimfaas_scaler_functions", "Functions the orchestrator knows.", nil, nil)
	edges     = prometheus.NewDesc("slimfaas_scaler_edges_heard", "Lives of edges whose load is known.", nil, nil)
	raises    = prometheus.NewDesc("slimfaas_scaler_wake_requests_total", "Wakes asked of the orchestrator by this scaler.", nil, nil)
	scales    = prometheus.NewDesc("slimfaas_scaler_scale_requests_total", "Scale requests by outcome.", []string{"outcome"}, nil)
	drains    = prometheus.NewDesc("slimfaas_scaler_drains_total", "Drains by how they ended.", []string{"end"}, nil)
	passes    = prometheus.NewDesc("slimfaas_scaler_pass_seconds", "Looks of the leader at everything: how many, and how long together.", nil, nil)
	longest   = prometheus.NewDesc("slimfaas_scaler_pass_longest_seconds", "The longest of them.", nil, nil)
	lists     = prometheus.NewDesc("slimfaas_scaler_orchestrator_listingtotal", "Listings of all objects asked of Kubernetes: none while its watches hold.", nil, nil)
	overruns  = prometheus.NewDesc("slimfaas_bus_overruns_total", "How often a subscription began to drop messages.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{current, desired, ready, leading, epoch, functions, edges, raises, scales, drains, passes, longest, lists, overruns} {
		to <- desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	counter := func(desc *prometheus.Desc, value uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	for _, f := range c.app.leader.Figures() {
		gauge(current, float64(f.Current), f.Function)
		gauge(desired, float64(f.Desired), f.Function)
		gauge(ready, float64(f.Ready), f.Function)
	}
	leads := 0.0
	if c.app.leader.Epoch() != 0 {
		leads = 1
	}
	gauge(leading, leads)
	gauge(epoch, float64(c.app.leader.Epoch()))
	gauge(functions, float64(len(c.app.fleet.View().Functions)))
	gauge(edges, float64(len(c.app.loads.Edges())))
	totals := c.app.leader.Totals()
	counter(raises, c.app.waker.Asked())
	counter(scales, totals.Scaled, "done")
	counter(scales, totals.Failed, "failed")
	counter(drains, totals.Drained, "stopped")
	counter(drains, totals.Cancelled, "cancelled")
	to <- prometheus.MustNewConstSummary(passes, totals.Passes, totals.Passing.Seconds(), nil)
	gauge(longest, totals.LongestPass.Seconds())
	if o, listing := c.app.Orchestrator.(interface{ Lists() uint64 }); listing {
		counter(lists, o.Lists())
	}
	counter(overruns, c.app.bus.Overruns())
}
