// Package catalogue is the function table as its author has it: records built from the orchestrator's view and the
// leader's decisions, with their versions (docs/adr/0004-table-and-epoch.md).
package catalogue

import (
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Record states a function without a version. wanted is what it is meant to have, draining tells which lives of replicas are
// to be left alone by callers.
func Record(f *fleet.Function, wanted int, reason string, draining func(name, instance string) bool) *wire.FunctionRecord {
	record := &wire.FunctionRecord{
		Name: f.Name, Specification: function.Encode(*f.Spec), Wanted: int32(min(wanted, 1<<20)), //nolint:gosec // bounded
		Problems: f.Problems, Kind: f.Kind, Namespace: f.Namespace, Reason: reason,
		Replicas: make([]*wire.Replica, 0, len(f.Replicas)),
	}
	for i := range f.Replicas {
		one := Replica(f.Spec, &f.Replicas[i])
		if Routable(&f.Replicas[i]) && draining(one.GetName(), one.GetInstance()) {
			one.State = wire.ReplicaState_REPLICA_STATE_DRAINING
		}
		record.Replicas = append(record.Replicas, one)
	}
	return record
}

// Routable says whether an edge may have sent a replica calls: it has an address and is not gone.
func Routable(r *orchestrator.Replica) bool {
	return r.Phase == orchestrator.Starting || r.Phase == orchestrator.NotReady || r.Phase == orchestrator.Ready
}

// Replica states one replica as edges have to see it.
func Replica(spec *function.Specification, r *orchestrator.Replica) *wire.Replica {
	one := &wire.Replica{
		Name: r.Name, Host: r.Host, Ports: ports(spec, r.Ports), Detail: r.Detail, Instance: r.Instance, WasReady: r.WasReady,
		Probe: probe(spec, r),
	}
	switch r.Phase {
	case orchestrator.Ready:
		one.State = wire.ReplicaState_REPLICA_STATE_READY
	case orchestrator.Starting, orchestrator.NotReady:
		one.State = wire.ReplicaState_REPLICA_STATE_STARTING
	case orchestrator.Pending:
		one.State = wire.ReplicaState_REPLICA_STATE_PENDING
	case orchestrator.Gone:
		one.State = wire.ReplicaState_REPLICA_STATE_GONE
	default:
		one.State = wire.ReplicaState_REPLICA_STATE_GONE
	}
	return one
}

// ports puts the one calls go to first: SlimFaas/Port where it is written, else the orchestrator's choice.
func ports(spec *function.Specification, from []uint32) []uint32 {
	if spec.Port <= 0 {
		return from
	}
	first := uint32(spec.Port) //nolint:gosec // 1–65535
	all := []uint32{first}
	for _, port := range from {
		if port != first {
			all = append(all, port)
		}
	}
	return all
}

func probe(spec *function.Specification, r *orchestrator.Replica) *wire.Probe {
	switch {
	case !spec.ProbeEarly || r.ProbeOpaque:
		return &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_NONE}
	case r.HealthPath != "":
		return &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_HTTP, Path: r.HealthPath}
	default:
		return &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP}
	}
}
