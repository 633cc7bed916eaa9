package lead

import (
	"context"
	"fmt"
	"log/slog"
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

// BenchmarkPass is one look at 10,000 functions of which nothing changed: what every load report costs at most.
func BenchmarkPass(b *testing.B) {
	log := slog.New(slog.DiscardHandler)
	view := fleet.New(time.Now, log)
	var workloads []orchestrator.Workload
	report := &wire.LoadReport{Edge: "edge-0", Sequence: 1, Full: true, Parts: 1}
	for i := range 10_000 {
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
		Fleet: view, Loads: loads, Demand: demand.NewQueue(), Catalogue: catalogue.New("s", ""), Bus: nobody{}, Waker: nobody{}, Log: log,
	})
	leader.Catalogue.Begin(1)
	o := &office{Leader: leader, valid: func() bool { return true }, work: map[string]*work{}, saved: map[string]time.Time{}, latest: map[string]time.Time{}}
	o.pass(b.Context(), time.Now(), true)
	for b.Loop() {
		o.pass(b.Context(), time.Now(), false)
	}
}
