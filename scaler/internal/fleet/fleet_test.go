package fleet_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

func workload(name string, annotations ...string) orchestrator.Workload {
	w := orchestrator.Workload{Key: name, Name: name, Kind: "Deployment", Annotations: map[string]string{"SlimFaas/Function": "true"}}
	for i := 0; i+1 < len(annotations); i += 2 {
		w.Annotations[annotations[i]] = annotations[i+1]
	}
	return w
}

type clock struct{ now time.Time }

func newFleet() (*fleet.Fleet, *clock) {
	c := &clock{time.Unix(1000, 0)}
	return fleet.New(func() time.Time { return c.now }, slog.New(slog.DiscardHandler)), c
}

func TestFirstSightIsRemembered(t *testing.T) {
	t.Parallel()
	f, c := newFleet()
	if f.View().Synced {
		t.Error("nothing was seen yet")
	}
	f.Reset([]orchestrator.Workload{workload("old")}, nil)
	c.now = c.now.Add(time.Minute)
	f.Workload(workload("old", "SlimFaas/ReplicasMin", "1"))
	f.Workload(workload("new"))
	view := f.View()
	if old := view.Functions["old"]; old.Appeared || old.Seen != time.Unix(1000, 0) || old.Spec.ReplicasMin != 1 {
		t.Errorf("old: %+v", old)
	}
	if fresh := view.Functions["new"]; !fresh.Appeared || fresh.Seen != c.now {
		t.Errorf("new: %+v", fresh)
	}
	f.Deleted("old")
	if f.View().Functions["old"] != nil {
		t.Error("deleted, and still there")
	}
	c.now = c.now.Add(time.Minute)
	f.Workload(workload("old"))
	if old := f.View().Functions["old"]; !old.Appeared || old.Seen != c.now {
		t.Errorf("one that comes back is seen anew: %+v", old)
	}
}

func TestAResetEndsWhatItDoesNotList(t *testing.T) {
	t.Parallel()
	f, _ := newFleet()
	f.Reset([]orchestrator.Workload{workload("a"), workload("b")}, []orchestrator.Part{{Name: "edge-0", Alive: true}})
	f.Lost(errors.New("gone"))
	if view := f.View(); view.Current || !view.Synced || len(view.Functions) != 2 {
		t.Errorf("after a loss: %+v", view)
	}
	f.Reset([]orchestrator.Workload{workload("b")}, []orchestrator.Part{{Name: "edge-0", Alive: false}})
	view := f.View()
	if !view.Current || view.Functions["a"] != nil || view.Functions["b"] == nil || view.Functions["b"].Appeared {
		t.Errorf("after the reset: %+v", view)
	}
	if alive, known := view.Parts["edge-0"]; !known || alive {
		t.Error("the part's death is not known")
	}
}

func TestProblemsAreOfOneFunction(t *testing.T) {
	t.Parallel()
	f, _ := newFleet()
	f.Reset([]orchestrator.Workload{workload("bad", "SlimFaas/ReplicasMin", "x", "SlimFaas/Configuration", "{"), workload("good"), workload("No")}, nil)
	view := f.View()
	if n := len(view.Functions["bad"].Problems); n != 2 {
		t.Errorf("%d problems, want both: %v", n, view.Functions["bad"].Problems)
	}
	if len(view.Functions["good"].Problems) != 0 {
		t.Error("the good one has problems")
	}
	if len(view.Functions["No"].Problems) != 1 {
		t.Errorf("a name that cannot be called: %v", view.Functions["No"].Problems)
	}
	if view.Functions["bad"].Spec == nil {
		t.Error("a broken function has a specification too")
	}
}

func TestOfTwoWithOneNameTheDeploymentCounts(t *testing.T) {
	t.Parallel()
	set, deployment := workload("twin"), workload("twin")
	set.Key, set.Kind = "set/twin", "StatefulSet"
	deployment.Key = "deployment/twin"
	for _, order := range [][]orchestrator.Workload{{set, deployment}, {deployment, set}} {
		f, _ := newFleet()
		f.Reset(order, nil)
		twin := f.View().Functions["twin"]
		if twin.Kind != "Deployment" || !strings.Contains(strings.Join(twin.Warnings, " "), "set/twin") {
			t.Errorf("%s counts, warnings %q", twin.Kind, twin.Warnings)
		}
		f.Deleted("deployment/twin")
		if twin := f.View().Functions["twin"]; twin == nil || twin.Kind != "StatefulSet" || len(twin.Warnings) != 0 {
			t.Errorf("the other one takes its place: %+v", twin)
		}
	}
}

func TestEveryChangeIsTold(t *testing.T) {
	t.Parallel()
	f, _ := newFleet()
	changed := make(chan struct{}, 1)
	f.Notify(changed)
	for what, change := range map[string]func(){
		"reset":    func() { f.Reset(nil, nil) },
		"workload": func() { f.Workload(workload("a")); f.Workload(workload("b")) },
		"deleted":  func() { f.Deleted("a") },
		"part":     func() { f.Part(orchestrator.Part{Name: "edge-0"}) },
		"lost":     func() { f.Lost(nil) },
	} {
		change()
		select {
		case <-changed:
		default:
			t.Errorf("%s was not told", what)
		}
	}
	f.Forget(changed)
	f.Lost(nil)
	if len(changed) != 0 {
		t.Error("told after Forget")
	}
}
