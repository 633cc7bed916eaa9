package orchestratortest_test

import (
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator/orchestratortest"
)

func TestTheFakeConforms(t *testing.T) {
	t.Parallel()
	orchestratortest.Run(t, func(*testing.T) orchestratortest.World {
		fake := orchestratortest.NewFake()
		fake.StartTime = time.Millisecond
		fake.Add("single", nil)
		fake.Add("pair", map[string]string{"SlimFaas/ReplicasAtStart": "2"})
		fake.SetPart("edge-0", true)
		return orchestratortest.World{Orchestrator: fake, Single: "single", Pair: "pair", Part: "edge-0", Interrupt: fake.Interrupt}
	})
}
