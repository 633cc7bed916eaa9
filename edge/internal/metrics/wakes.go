package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/slimfaas/slimfaas/edge/internal/replica"
)

// Wakes is how long requests waited for a replica, phase by phase, all functions together: their number times that of the buckets
// would be too much to keep. Server-Timing has it for each call.
type Wakes struct{ *prometheus.HistogramVec }

// NewWakes has buckets from 1 ms, where a replica was just coming, to two minutes, which the default patience is.
func NewWakes() *Wakes {
	return &Wakes{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "slimfaas_edge_wake_seconds",
		Help:    "Time that requests waited for a replica: wake, until the function was wanted; start, until a replica had an address; probe, until it could be used; all together.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
	}, []string{"phase"})}
}

// Observe one request that got its replica after a wait.
func (w *Wakes) Observe(waited replica.Waited) {
	for phase, took := range map[string]time.Duration{
		"wake": waited.Wake, "start": waited.Start, "probe": waited.Probe, "all": waited.Wake + waited.Start + waited.Probe,
	} {
		w.WithLabelValues(phase).Observe(took.Seconds())
	}
}
