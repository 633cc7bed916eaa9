package wire

// The API of bin/local, the supervisor of the local stack: JSON over HTTP on a unix socket in the state directory,
// `Authorization: Bearer <token>` on every request. The scaler's process driver is its client, as it would be the
// kubelet's or dockerd's. Revisions count changes over all workloads and only grow within one life of the supervisor.
const (
	LocalSocket = "local.sock" // file name in the state directory

	LocalPathWatch  = "/v1/watch"  // GET → newline-delimited LocalEvent, first the whole state, then changes
	LocalPathScale  = "/v1/scale"  // POST LocalScale → LocalScaled
	LocalPathWake   = "/v1/wake"   // POST LocalWake → LocalScaled
	LocalPathStatus = "/v1/status" // GET → LocalStatus
)

// Types of LocalEvent.
const (
	LocalEventWorkload = "workload" // Workload is set: its whole new state
	LocalEventDeleted  = "deleted"  // Name is set
	LocalEventPart     = "part"     // Part is set: one of our own processes
	LocalEventSynced   = "synced"   // all that existed at the start of the watch has been sent
	LocalEventPing     = "ping"     // each 2 s without another event: silence longer than 6 s means the watch is dead
)

// LocalEvent is one line of the watch.
type LocalEvent struct {
	Type     string         `json:"type"`
	Revision uint64         `json:"revision"`
	Name     string         `json:"name,omitempty"`
	Workload *LocalWorkload `json:"workload,omitempty"`
	Part     *LocalPart     `json:"part,omitempty"`
}

// LocalWorkload is one function of the manifest as the supervisor runs it.
type LocalWorkload struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Annotations map[string]string `json:"annotations"`
	Wanted      int               `json:"wanted"`   // replicas last asked for
	Revision    uint64            `json:"revision"` // of the last change of Wanted: the precondition of scale and wake
	Fixed       bool              `json:"fixed"`    // debugUrl: one replica that is never scaled
	Replicas    []LocalReplica    `json:"replicas"`
}

// States of a LocalReplica.
const (
	LocalStarting = "starting" // process exists, not ready yet
	LocalReady    = "ready"
	LocalNotReady = "notReady" // was ready, health fails now
	LocalStopping = "stopping" // told to stop
	LocalBackoff  = "backoff"  // died, waits to be started again; no address
)

// LocalReplica is one process of a function.
type LocalReplica struct {
	Name     string `json:"name"` // fn-<function>-<n>
	Instance string `json:"instance"`
	PID      int    `json:"pid,omitempty"`
	Host     string `json:"host,omitempty"`
	Port     int    `json:"port,omitempty"`
	State    string `json:"state"`
	Detail   string `json:"detail,omitempty"`
	// HealthPath is what an early probe asks; empty: none declared, a TCP connect is the probe.
	HealthPath string `json:"healthPath,omitempty"`
	WasReady   bool   `json:"wasReady,omitempty"`
}

// LocalPart is a process of ours: edge-0, queue-1, scaler-0.
type LocalPart struct {
	Name  string `json:"name"`
	PID   int    `json:"pid,omitempty"`
	Alive bool   `json:"alive"`
}

// LocalScale asks for a number of replicas. Epoch lower than one seen answers 412; IfRevision other than the workload's 409 with the
// current state; Victims names the replicas to stop first when shrinking.
type LocalScale struct {
	Function   string   `json:"function"`
	Replicas   int      `json:"replicas"`
	Victims    []string `json:"victims,omitempty"`
	Epoch      uint64   `json:"epoch"`
	IfRevision uint64   `json:"ifRevision"`
}

// LocalWake raises 0 → ReplicasAtStart and does nothing else: a workload with replicas already is a success. No epoch.
type LocalWake struct {
	Function   string `json:"function"`
	IfRevision uint64 `json:"ifRevision,omitempty"` // 0: whatever it is
}

// LocalScaled is the answer to scale and wake (200, and 409 with the state that forbade it).
type LocalScaled struct {
	Wanted   int    `json:"wanted"`
	Revision uint64 `json:"revision"`
	Error    string `json:"error,omitempty"`
}

// LocalStatus lists everything bin/local runs.
type LocalStatus struct {
	Name      string          `json:"name"`
	URL       string          `json:"url"`
	Parts     []LocalPart     `json:"parts"`
	Workloads []LocalWorkload `json:"workloads"`
}
