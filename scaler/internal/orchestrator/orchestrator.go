// Package orchestrator says what the scaler needs of whatever runs the functions: bin/local, the Docker engine or
// Kubernetes. The interface belongs to the scaler; the drivers below this folder implement it, and all of them pass
// the suite of orchestratortest.
package orchestrator

import (
	"context"
	"errors"
	"fmt"
)

// Orchestrator runs functions. Its methods may be called from many goroutines.
type Orchestrator interface {
	// Watch tells sink the whole state and then every change, until ctx ends; it reconnects by itself and returns only
	// the reason of ctx's end, or an error that no later try could mend.
	Watch(ctx context.Context, sink Sink) error
	// Scale asks for a number of replicas. Errors: *Conflict, ErrStaleEpoch, ErrNotFound, ErrUnreachable.
	Scale(ctx context.Context, request Request) (Scaled, error)
	// Wake raises a function from 0 to replicasAtStart and does nothing to one that has replicas already, which is a
	// success. It needs no epoch: raising is monotone. A non-empty ifRevision that is not the current one answers
	// *Conflict, unless the function has replicas by now.
	Wake(ctx context.Context, function string, ifRevision Revision, replicasAtStart int) (Scaled, error)
}

// Sink receives what Watch sees, from one goroutine at a time. None of its methods may block.
type Sink interface {
	// Reset states everything there is: what is not listed does not exist.
	Reset(workloads []Workload, parts []Part)
	// Workload states the whole new state of one workload.
	Workload(Workload)
	// Deleted says that a workload is gone.
	Deleted(key string)
	// Part states one of our own processes.
	Part(Part)
	// Lost says that the view is of the past from now on, until the next Reset.
	Lost(err error)
}

// Revision is the orchestrator's own version of a workload's scale; equal or not is all it says. Empty: whatever it is.
type Revision string

// Workload is one function as the orchestrator runs it. Values are never changed after they were given to a Sink.
type Workload struct {
	Key         string // unique among all workloads; the name where names are unique
	Name        string
	Namespace   string
	Kind        string // Deployment or StatefulSet, as /status-function shows it
	Annotations map[string]string
	Wanted      int // replicas last asked for
	Revision    Revision
	Fixed       bool   // never scaled: something else owns its replicas
	FixedBy     string // what does, in words; empty: its debugUrl
	// Autoscaler changes its replicas between AutoscalerMin and more, and stands aside at 0; empty: nothing does. It is scaled to 0
	// and from 0 only.
	Autoscaler    string
	AutoscalerMin int

	Replicas []Replica
}

// Phase of a replica.
type Phase int

// Phases. The zero value is never routed to.
const (
	Gone     Phase = iota // terminating or failed for good
	Pending               // no address yet, or waiting to be started again
	Starting              // has an address, has not been ready in this life
	NotReady              // was ready, is not now
	Ready
)

// Replica is one process, container or pod of a workload.
type Replica struct {
	Name     string
	Instance string // differs between two lives of one name
	Host     string // address without port; empty: none yet
	Ports    []uint32
	Phase    Phase
	Detail   string // why it is not ready, for people
	// HealthPath is what an early probe asks; empty: none declared, a TCP connect is the probe.
	HealthPath string
	// ProbeOpaque: readiness is decided by something an edge cannot repeat (exec, gRPC, a readiness gate): wait for the orchestrator's word.
	ProbeOpaque bool
	WasReady    bool
	// Unplaced: there is no room for it (quota, scheduling). Asking for more would not help.
	Unplaced bool
}

// Part is one of our own processes as the orchestrator sees it: edge-0, queue-1, scaler-0.
type Part struct {
	Name  string
	Alive bool
}

// Request asks for a number of replicas.
type Request struct {
	Function string
	Replicas int
	// Victims are the replicas to stop first when shrinking; a driver that cannot choose ignores them.
	Victims []string
	// Epoch of the asking leader: lower than one seen before is refused.
	Epoch uint64
	// IfRevision is the state the decision was made from.
	IfRevision Revision
}

// Scaled is the state after a request.
type Scaled struct {
	Wanted   int
	Revision Revision
}

// Conflict says that the workload is not what the request expected, and what it is.
type Conflict struct {
	Function string
	Current  Scaled
}

func (c *Conflict) Error() string {
	return fmt.Sprintf("%s was changed by another: it has %d replicas at revision %s", c.Function, c.Current.Wanted, c.Current.Revision)
}

// What callers branch on.
var (
	// ErrStaleEpoch: another leader with a higher epoch has spoken; stop leading.
	ErrStaleEpoch = errors.New("a newer leader has spoken to the orchestrator")
	// ErrNotFound: there is no such workload.
	ErrNotFound = errors.New("the orchestrator has no such workload")
	// ErrUnreachable: no answer. Whether the request was carried out is not known.
	ErrUnreachable = errors.New("the orchestrator did not answer")
	// ErrRefused: it answered and will not do it; the text says why.
	ErrRefused = errors.New("the orchestrator refused")
)
