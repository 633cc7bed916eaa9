package lead

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/scaler/internal/catalogue"
	"github.com/slimfaas/slimfaas/scaler/internal/demand"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/wire"
)

type nobody struct{}

func (nobody) Publish(string, proto.Message) error { return nil }

func (nobody) RequestMany(context.Context, string, proto.Message, time.Duration) ([][]byte, error) {
	return nil, nil
}

func (nobody) Raise(string) {}

func (nobody) Woken() map[string]time.Time { return nil }

// looking is a term that has looked at n functions with a ready replica each, and the fleet that tells it of them.
func looking(t testing.TB, n int, bus Bus) (*office, *fleet.Fleet) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	view := fleet.New(time.Now, log)
	var workloads []orchestrator.Workload
	report := &wire.LoadReport{Edge: "edge-0", Sequence: 1, Full: true, Parts: 1}
	for i := range n {
		name := fmt.Sprintf("function-%d", i)
		workloads = append(workloads, orchestrator.Workload{
			Key: name, Name: name, Kind: "Deployment", Wanted: 1, Replicas: []orchestrator.Replica{{Name: name + "-0", Phase: orchestrator.Ready}},
		})
		report.Functions = append(report.Functions, &wire.FunctionLoad{Function: name, InFlight: 1})
	}
	view.Reset(workloads, nil)
	loads := demand.NewLoads()
	loads.Apply(time.Now(), report)
	leader := New(Options{
		Fleet: view, Loads: loads, Demand: demand.NewQueue(), Catalogue: catalogue.New("s", ""), Bus: bus, Waker: nobody{}, Log: log,
	})
	leader.Catalogue.Begin(1)
	o := &office{Leader: leader, valid: func() bool { return true }, work: map[string]*work{}, saved: map[string]time.Time{}, latest: map[string]time.Time{}}
	o.pass(t.Context(), time.Now(), true)
	return o, view
}

// BenchmarkPass is one look at 10,000 functions of which nothing changed: what every load report costs at most.
func BenchmarkPass(b *testing.B) {
	o, _ := looking(b, 10_000, nobody{})
	for b.Loop() {
		o.pass(b.Context(), time.Now(), false)
	}
}

// published keeps the names of the records that go out.
type published struct {
	nobody
	names []string
}

func (p *published) Publish(_ string, m proto.Message) error {
	if record, is := m.(*wire.RecordAnnouncement); is {
		p.names = append(p.names, record.GetName())
	}
	return nil
}

func TestAReplicaThatChangesBetweenTwoPassesIsStatedAtOnce(t *testing.T) {
	t.Parallel()
	bus := &published{}
	o, view := looking(t, 1000, bus)
	bus.names = nil
	view.Workload(orchestrator.Workload{
		Key: "function-7", Name: "function-7", Kind: "Deployment", Wanted: 1, Replicas: []orchestrator.Replica{{Name: "function-7-0", Phase: orchestrator.Gone}},
	})
	o.restate()
	if !slices.Equal(bus.names, []string{"function-7"}) {
		t.Errorf("stated %v", bus.names)
	}
	o.restate()
	o.valid = func() bool { return false }
	view.Workload(orchestrator.Workload{Key: "function-8", Name: "function-8", Kind: "Deployment", Wanted: 1})
	o.restate()
	if len(bus.names) != 1 {
		t.Errorf("stated %v: twice, or though the term is over", bus.names)
	}
}
