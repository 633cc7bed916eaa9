// Package metrics shows the state of a queue node to Prometheus. What belongs together is read at one moment: the counters of
// all calls and the index they are true at come from one look at the state machine.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/slimfaas/slimfaas/queue/internal/dispatch"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
)

// Node is the Raft node.
type Node interface {
	View(read func(*fsm.Machine))
	IsLeader() bool
	Leader() string
	Term() uint64
	Commit() uint64
	// Skews of the other nodes' clocks against this one's, by name.
	Skews() map[string]time.Duration
	Disk() (space guard.Space, level guard.Level, ballast int64)
	// Hanging is how long a write has been taking too long; 0: none.
	Hanging() time.Duration
	Votes() (votes bool, standing string)
	// StateSize is the state's file and what of it is free, in bytes.
	StateSize() (file, free int64)
	// PayloadsInLog are the bytes of payloads that lie in the log only.
	PayloadsInLog() int64
}

// Sources of the figures.
type Sources struct {
	Node       Node
	Dispatcher interface{ Stats() dispatch.Stats }
	Log        interface{ LogStats() raftnode.LogStats }
	Bus        interface {
		Peers() []string
		Clients() int
		SlowConsumers() int64
	}
	Client interface{ Overruns() uint64 }
	Table  interface{ Synced() bool }
}

// Collector gathers when it is scraped; nothing is counted twice.
type Collector struct{ sources Sources }

var _ prometheus.Collector = Collector{}

// New makes a collector.
func New(s Sources) Collector { return Collector{s} }

func perFunction(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, []string{"function"}, nil)
}

func single(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }

// The conservation law, per function and at slimfaas_queue_applied_index:
// accepted + redriven = succeeded + dead + cancelled + queued + running + waiting.
var (
	accepted  = perFunction("slimfaas_async_accepted_total", "Calls accepted.")
	redriven  = perFunction("slimfaas_async_redriven_total", "Dead calls put back into the queue.")
	succeeded = perFunction("slimfaas_async_succeeded_total", "Calls that succeeded.")
	dead      = perFunction("slimfaas_async_dead_total", "Calls that failed for good.")
	cancelled = perFunction("slimfaas_async_cancelled_total", "Calls that were cancelled.")
	queued    = perFunction("slimfaas_async_queued", "Calls that wait for their first try.")
	running   = perFunction("slimfaas_async_running", "Calls being tried, those awaiting a callback included.")
	waiting   = perFunction("slimfaas_async_waiting", "Calls that wait for a retry.")

	// The names of the original.
	readyItems    = perFunction("slimfaas_function_queue_ready_items", "Calls that wait for their first try.")
	inFlightItems = perFunction("slimfaas_function_queue_in_flight_items", "Calls being tried, those awaiting a callback included.")
	retryItems    = perFunction("slimfaas_function_queue_retry_pending_items", "Calls that wait for a retry.")

	applied = single("slimfaas_queue_applied_index", "Raft index at which the figures of calls are true.")
	// Two nodes at one applied index whose hashes differ do not have the same state. 52 bits of it: a float64 holds no more.
	stateHash   = single("slimfaas_queue_state_hash", "Hash of the replicated state at the applied index, equal on all nodes.")
	stateBytes  = single("slimfaas_queue_state_file_bytes", "Size of the state's file. It does not shrink while the node runs.")
	inLog       = single("slimfaas_queue_log_payload_bytes", "Payloads of calls that lie in the Raft log only: it is kept for them.")
	stateFree   = single("slimfaas_queue_state_file_free_bytes", "What of the state's file is free to be used again.")
	remembered  = prometheus.NewDesc("slimfaas_queue_calls", "Calls in memory.", []string{"kind"}, nil)
	keys        = single("slimfaas_queue_idempotency_keys", "Idempotency keys remembered.")
	uploads     = single("slimfaas_queue_uploads", "Bodies on their way whose calls are not accepted yet.")
	uploadBytes = single("slimfaas_queue_upload_bytes", "Bytes of those bodies.")
	sessions    = single("slimfaas_queue_sessions", "Live sessions of edges and scalers.")

	logAppends = single("slimfaas_raft_log_appends_total", "Commits of this node's Raft log, each of one or more entries.")
	logFsyncs  = single("slimfaas_raft_log_fsyncs_total", "Fsyncs of this node's Raft log.")
	logEntries = single("slimfaas_raft_log_entries_total", "Entries this node wrote to its Raft log.")
	logBytes   = single("slimfaas_raft_log_bytes_total", "Bytes of commands this node wrote to its Raft log.")
	logSeconds = single("slimfaas_raft_log_append_seconds_total", "Seconds this node spent in commits of its Raft log, fsyncs included.")

	leading  = single("slimfaas_queue_leader", "1 on the node that leads.")
	term     = single("slimfaas_queue_term", "Raft term.")
	commit   = single("slimfaas_queue_commit_index", "Raft index a majority has, as far as this node knows.")
	runs     = single("slimfaas_queue_run_slots", "Run slots in use; 0 on a node that does not lead.")
	granting = single("slimfaas_queue_grants_proposed", "Grants under way into the log.")
	direct   = single("slimfaas_queue_direct_tries_total", "First tries that went with the accept of their call, by this node as leader: those calls took two operations of the log and not three.")
	streams  = single("slimfaas_queue_edge_streams", "Edges with an open delivery stream to this node.")
	synced   = single("slimfaas_queue_table_synced", "1 when this node has had the whole function table; without it nothing is delivered.")

	skew      = prometheus.NewDesc("slimfaas_queue_clock_skew_seconds", "How far another node's wall clock is ahead of this one's.", []string{"peer"}, nil)
	diskUsed  = single("slimfaas_queue_disk_used_ratio", "Share of the data directory's disk that is in use.")
	diskLevel = single("slimfaas_queue_disk_level", "0 room, 1 accepts are refused, 2 another node should lead, 3 the log does not grow.")
	ballast   = single("slimfaas_queue_disk_ballast_bytes", "Space set aside for a disk that fills up.")
	hanging   = single("slimfaas_queue_write_hanging_seconds", "How long a write to the data directory has been taking too long; 0: none.")
	votes     = single("slimfaas_queue_votes", "1 when this node takes part in elections.")

	busPeers   = single("slimfaas_bus_peers", "Nodes with an open route to this one.")
	busClients = single("slimfaas_bus_clients", "Open client connections of this node's bus.")
	busSlow    = single("slimfaas_bus_slow_consumers_total", "Clients cut because they did not read.")
	busDropped = single("slimfaas_bus_overruns_total", "Times this node was too slow to read its own messages.")
)

// Describe implements prometheus.Collector.
func (Collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		accepted, redriven, succeeded, dead, cancelled, queued, running, waiting, readyItems, inFlightItems, retryItems,
		applied, stateHash, stateBytes, stateFree, inLog, remembered, keys, uploads, uploadBytes, sessions, leading, term, commit, runs, granting, streams, direct, synced,
		logAppends, logFsyncs, logEntries, logBytes, logSeconds,
		skew, diskUsed, diskLevel, ballast, hanging, votes,
		busPeers, busClients, busSlow, busDropped,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c Collector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}

	var index, hash uint64
	var functions []fsm.FunctionCounters
	var unfinished, finished, deadCalls, live, remembering, bodies int
	var bodyBytes uint64
	c.sources.Node.View(func(m *fsm.Machine) {
		index, hash, functions = m.Applied(), m.Hash(), m.Counters()
		unfinished, finished, deadCalls = m.Sizes()
		remembering = m.Keys()
		bodies, bodyBytes = m.UploadSizes()
		for _, s := range m.Sessions() {
			if !s.Vanished {
				live++
			}
		}
	})
	gauge(applied, float64(index))
	gauge(stateHash, float64(hash>>12))
	file, free := c.sources.Node.StateSize()
	gauge(stateBytes, float64(file))
	gauge(stateFree, float64(free))
	gauge(inLog, float64(c.sources.Node.PayloadsInLog()))
	for _, f := range functions {
		counter(accepted, f.Accepted, f.Function)
		counter(redriven, f.Redriven, f.Function)
		counter(succeeded, f.Succeeded, f.Function)
		counter(dead, f.Dead, f.Function)
		counter(cancelled, f.Cancelled, f.Function)
		gauge(queued, float64(f.Queued), f.Function)
		gauge(running, float64(f.Running+f.Awaiting), f.Function)
		gauge(waiting, float64(f.Waiting), f.Function)
		gauge(readyItems, float64(f.Queued), f.Function)
		gauge(inFlightItems, float64(f.Running+f.Awaiting), f.Function)
		gauge(retryItems, float64(f.Waiting), f.Function)
	}
	gauge(remembered, float64(unfinished), "unfinished")
	gauge(remembered, float64(finished), "finished")
	gauge(remembered, float64(deadCalls), "dead")
	gauge(keys, float64(remembering))
	gauge(uploads, float64(bodies))
	gauge(uploadBytes, float64(bodyBytes))
	gauge(sessions, float64(live))

	written := c.sources.Log.LogStats()
	counter(logAppends, written.Appends)
	counter(logFsyncs, written.Fsyncs)
	counter(logEntries, written.Entries)
	counter(logBytes, written.Bytes)
	out <- prometheus.MustNewConstMetric(logSeconds, prometheus.CounterValue, written.Spent.Seconds())

	stats := c.sources.Dispatcher.Stats()
	gauge(leading, flag(c.sources.Node.IsLeader()))
	gauge(term, float64(c.sources.Node.Term()))
	gauge(commit, float64(c.sources.Node.Commit()))
	gauge(runs, float64(stats.Runs))
	gauge(granting, float64(stats.Granting))
	gauge(streams, float64(stats.Streams))
	counter(direct, stats.Direct)
	gauge(synced, flag(c.sources.Table.Synced()))
	for peer, d := range c.sources.Node.Skews() {
		gauge(skew, d.Seconds(), peer)
	}
	space, level, aside := c.sources.Node.Disk()
	gauge(diskUsed, space.Used/100)
	gauge(diskLevel, float64(level))
	gauge(ballast, float64(aside))
	gauge(hanging, c.sources.Node.Hanging().Seconds())
	voting, _ := c.sources.Node.Votes()
	gauge(votes, flag(voting))
	gauge(busPeers, float64(len(c.sources.Bus.Peers())))
	gauge(busClients, float64(c.sources.Bus.Clients()))
	counter(busSlow, uint64(max(0, c.sources.Bus.SlowConsumers())))
	counter(busDropped, c.sources.Client.Overruns())
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
