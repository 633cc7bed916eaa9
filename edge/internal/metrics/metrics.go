// Package metrics shows the edge's own figures to Prometheus.
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/slimfaas/slimfaas/edge/internal/replica"
)

// Collector reads the figures when they are asked for. Label values are function names of the table, never a caller's.
type Collector struct {
	Functions    *replica.Set
	BusConnected func() bool
	BusOverruns  func() uint64
	// Delivery is the session in the queue (0: none) and how many tries are held.
	Delivery func() (session uint64, held int)
	// Uploads is how many bodies over 1 MiB are being taken.
	Uploads func() int64
	// Conns of the public listener: open, and closed to keep their limit so far.
	Conns func() (open int, turnedAway uint64)
	// Shed is how many requests were refused for want of processors.
	Shed func() uint64
	// Shares of events: called by another edge, not taken by it, and repeated because it fell silent.
	Shares func() (helped, notTaken, silent uint64)
}

var _ prometheus.Collector = (*Collector)(nil)

var (
	inFlight   = gauge("slimfaas_edge_in_flight", "Sync calls under way on this edge.", "function")
	parked     = gauge("slimfaas_edge_parked", "Requests that wait for a replica on this edge.", "function")
	streams    = gauge("slimfaas_edge_streams", "Sync calls whose answer has begun and is still open.", "function")
	deliveries = gauge("slimfaas_edge_deliveries", "Async tries and event calls under way on this edge.", "function")
	epoch      = gauge("slimfaas_edge_table_epoch", "Epoch of the newest record this edge has applied.")
	functions  = gauge("slimfaas_edge_functions", "Functions this edge knows.")
	busUp      = gauge("slimfaas_edge_bus_connected", "1 while this edge has a connection to the bus.")
	session    = gauge("slimfaas_edge_session", "This edge's session in the queue; 0 while it has none.")
	held       = gauge("slimfaas_edge_tries_held", "Async tries this edge holds.")
	uploads    = gauge("slimfaas_edge_uploads", "Bodies over 1 MiB that this edge is taking.")
	conns      = gauge("slimfaas_edge_connections", "Connections open on the public listener, upgraded ones left out.")
	away       = prometheus.NewDesc("slimfaas_edge_connections_turned_away_total", "Connections of the public listener that were closed to keep EDGE_MAX_CONNECTIONS.", nil, nil)
	refused    = prometheus.NewDesc("slimfaas_edge_overload_refused_total", "Requests refused because this edge used too much of its processors (EDGE_RATE_LIMIT).", nil, nil)
	suspicions = prometheus.NewDesc("slimfaas_edge_replica_suspicions_total", "How often a replica was passed over from then on, because connections to it, or calls of it in a row, failed.", nil, nil)
	shares     = prometheus.NewDesc("slimfaas_edge_event_shares_total", "Shares of events offered to other edges, by outcome: helped, not_taken, silent.", []string{"outcome"}, nil)
	overruns   = prometheus.NewDesc("slimfaas_edge_bus_overruns_total", "How often messages of the bus were dropped because they were taken too slowly.", nil, nil)
)

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{inFlight, parked, streams, deliveries, epoch, functions, busUp, session, held, uploads, conns, away, refused, suspicions, shares, overruns} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	all := c.Functions.All()
	for _, f := range all {
		l := f.Load().Figures()
		put(inFlight, float64(l.InFlight), f.Name())
		put(parked, float64(l.Parked), f.Name())
		put(streams, float64(l.Streams), f.Name())
		put(deliveries, float64(l.Deliveries), f.Name())
	}
	put(functions, float64(len(all)))
	put(epoch, float64(c.Functions.Epoch()))
	up := 0.0
	if c.BusConnected() {
		up = 1
	}
	put(busUp, up)
	id, tries := c.Delivery()
	put(session, float64(id))
	put(held, float64(tries))
	put(uploads, float64(c.Uploads()))
	open, turnedAway := c.Conns()
	put(conns, float64(open))
	to <- prometheus.MustNewConstMetric(away, prometheus.CounterValue, float64(turnedAway))
	to <- prometheus.MustNewConstMetric(refused, prometheus.CounterValue, float64(c.Shed()))
	to <- prometheus.MustNewConstMetric(suspicions, prometheus.CounterValue, float64(c.Functions.Suspicions()))
	helped, notTaken, silent := c.Shares()
	for outcome, n := range map[string]uint64{"helped": helped, "not_taken": notTaken, "silent": silent} {
		to <- prometheus.MustNewConstMetric(shares, prometheus.CounterValue, float64(n), outcome)
	}
	to <- prometheus.MustNewConstMetric(overruns, prometheus.CounterValue, float64(c.BusOverruns()))
}
