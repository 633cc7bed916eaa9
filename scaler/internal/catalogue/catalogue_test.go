package catalogue_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/scaler/internal/catalogue"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/table"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestRecordStatesReplicasAsEdgesHaveToSeeThem(t *testing.T) {
	t.Parallel()
	spec := function.Default()
	none := func(string, string) bool { return false }
	replica := func(phase orchestrator.Phase) orchestrator.Replica {
		return orchestrator.Replica{Name: "r", Instance: "1", Host: "10.0.0.1", Ports: []uint32{80, 81}, Phase: phase}
	}
	tests := map[string]struct {
		spec     func(*function.Specification)
		replica  orchestrator.Replica
		draining func(string, string) bool
		want     *wire.Replica
	}{
		"ready": {replica: replica(orchestrator.Ready), want: &wire.Replica{
			State: wire.ReplicaState_REPLICA_STATE_READY, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP},
		}},
		"starting with a health path": {
			replica: func() orchestrator.Replica { r := replica(orchestrator.Starting); r.HealthPath = "/health"; return r }(),
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_STARTING, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_HTTP, Path: "/health"},
			},
		},
		"no early probe when the function says so": {
			spec:    func(s *function.Specification) { s.ProbeEarly = false },
			replica: func() orchestrator.Replica { r := replica(orchestrator.Starting); r.HealthPath = "/health"; return r }(),
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_STARTING, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_NONE},
			},
		},
		"no early probe when an edge could not repeat it": {
			replica: func() orchestrator.Replica { r := replica(orchestrator.Starting); r.ProbeOpaque = true; return r }(),
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_STARTING, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_NONE},
			},
		},
		"not ready any more": {
			replica: func() orchestrator.Replica { r := replica(orchestrator.NotReady); r.WasReady = true; return r }(),
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_STARTING, WasReady: true, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP},
			},
		},
		"the written port first": {
			spec: func(s *function.Specification) { s.Port = 81 }, replica: replica(orchestrator.Ready),
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_READY, Ports: []uint32{81, 80}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP},
			},
		},
		"draining": {
			replica: replica(orchestrator.Ready), draining: func(name, instance string) bool { return name == "r" && instance == "1" },
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_DRAINING, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP},
			},
		},
		"another life of a draining name": {
			replica: replica(orchestrator.Ready), draining: func(name, instance string) bool { return name == "r" && instance == "0" },
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_READY, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP},
			},
		},
		"gone is gone, draining or not": {
			replica: replica(orchestrator.Gone), draining: func(string, string) bool { return true },
			want: &wire.Replica{
				State: wire.ReplicaState_REPLICA_STATE_GONE, Ports: []uint32{80, 81}, Probe: &wire.Probe{Kind: wire.ProbeKind_PROBE_KIND_TCP},
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mine := spec
			if test.spec != nil {
				test.spec(&mine)
			}
			draining := none
			if test.draining != nil {
				draining = test.draining
			}
			f := &fleet.Function{Spec: &mine, Workload: orchestrator.Workload{Name: "f", Kind: "Deployment", Replicas: []orchestrator.Replica{test.replica}}}
			got := catalogue.Record(f, 1, "because", draining).GetReplicas()[0]
			test.want.Name, test.want.Instance, test.want.Host = "r", "1", "10.0.0.1"
			if !proto.Equal(got, test.want) {
				t.Errorf("got  %v\nwant %v", got, test.want)
			}
		})
	}
}

func record(name string, wanted int32) *wire.FunctionRecord {
	return &wire.FunctionRecord{Name: name, Wanted: wanted}
}

// pull copies everything newer than a version into a table, as a receiver does.
func pull(t *testing.T, c *catalogue.Catalogue, into *table.Table, since *wire.Version) (*wire.TableDigest, bool) {
	t.Helper()
	pages, err := c.Pages(since)
	if err != nil {
		t.Fatal(err)
	}
	var digest *wire.TableDigest
	var full bool
	var records []*wire.FunctionRecord
	for page := range pages {
		if page.GetDigest() != nil {
			digest, full = page.GetDigest(), page.GetFull()
		}
		records = append(records, page.GetRecords()...)
	}
	if full {
		into.ReplaceAll(records, digest.GetVersion())
	} else {
		for _, r := range records {
			into.Apply(r)
		}
	}
	return digest, full
}

func TestVersionsGrowOnlyWithChanges(t *testing.T) {
	t.Parallel()
	c := catalogue.New("scaler-0", "here:1")
	if c.Digest() != nil {
		t.Error("it states something before the first term")
	}
	if _, err := c.Pages(nil); err == nil {
		t.Error("it can be pulled before the first term")
	}
	c.Begin(5)
	a, changed := c.Set(record("a", 1))
	if !changed || a.GetVersion().GetEpoch() != 5 || a.GetVersion().GetSeq() != 1 {
		t.Errorf("%v, %v", a, changed)
	}
	if again, changed := c.Set(record("a", 1)); changed || again.GetVersion().GetSeq() != 1 {
		t.Errorf("the same again: %v, %v", again, changed)
	}
	if b, _ := c.Set(record("b", 1)); b.GetVersion().GetSeq() != 2 {
		t.Errorf("seq counts over all records: %v", b)
	}
	if a, changed := c.Set(record("a", 2)); !changed || a.GetVersion().GetSeq() != 3 {
		t.Errorf("%v, %v", a, changed)
	}
	c.Begin(6)
	if a, changed := c.Set(record("a", 2)); !changed || a.GetVersion().GetEpoch() != 6 {
		t.Errorf("a new term states everything afresh: %v, %v", a, changed)
	}
	c.End()
	if c.Digest() != nil {
		t.Error("it states something after its term")
	}
}

func TestAReceiverThatPullsHasWhatTheDigestSays(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	c := catalogue.New("scaler-0", "here:1")
	c.Begin(5)
	for _, name := range []string{"a", "b", "c"} {
		c.Set(record(name, 1))
	}
	receiver := table.New()
	digest, full := pull(t, c, receiver, nil)
	if !full || !receiver.Matches(c.Digest()) || digest.GetLeader() != "scaler-0" || digest.GetLeaderApi() != "here:1" {
		t.Errorf("first pull: full %v, digest %v", full, digest)
	}
	since := receiver.Digest().GetVersion()
	c.Set(record("b", 2))
	if gone := c.Delete(now, "c"); !gone.GetDeleted() {
		t.Errorf("deletion: %v", gone)
	}
	if c.Delete(now, "c") != nil {
		t.Error("deleted twice")
	}
	if _, full := pull(t, c, receiver, since); full || !receiver.Matches(c.Digest()) {
		t.Errorf("small pull: full %v, %v, want %v", full, receiver.Digest(), c.Digest())
	}
	if names := c.Names(); !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("names %v", names)
	}
	c.Begin(9) // a new term without b
	c.Set(record("a", 1))
	if _, full := pull(t, c, receiver, receiver.Digest().GetVersion()); !full || !receiver.Matches(c.Digest()) {
		t.Errorf("pull over a change of epoch: full %v, %v, want %v", full, receiver.Digest(), c.Digest())
	}
	if _, there := receiver.Get("b"); there {
		t.Error("what the new leader does not know is still there")
	}
}

func TestAnEmptyTableHasAnEpoch(t *testing.T) {
	t.Parallel()
	c := catalogue.New("scaler-0", "here:1")
	c.Begin(7)
	if digest := c.Digest(); digest.GetVersion().GetEpoch() != 7 || digest.GetCount() != 0 {
		t.Errorf("%v", digest)
	}
}
