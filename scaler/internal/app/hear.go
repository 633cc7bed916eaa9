package app

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/scaler/internal/catalogue"
	"github.com/slimfaas/slimfaas/scaler/internal/fleet"
	"github.com/slimfaas/slimfaas/scaler/internal/lead"
	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// explainers answer questions at one time; maxQuestions wait, more are dropped and the asker's timeout tells.
	explainers   = 4
	maxQuestions = 64
	// explainTimeout is the time an edge gives a question.
	explainTimeout = 2 * time.Second
)

// question is an ExplainRequest that waits for an explainer.
type question struct{ function, reply string }

// subscribe hears the bus.
func (a *App) subscribe() (unsubscribe func(), err error) {
	var stops []func()
	unsubscribe = func() {
		for _, stop := range stops {
			stop()
		}
	}
	for subject, handle := range map[string]func(msg []byte, reply string){
		wire.SubjectWake:    a.onWake,
		wire.SubjectLoad:    a.onLoad,
		wire.SubjectDemand:  a.onDemand,
		wire.SubjectFacts:   a.onFacts,
		wire.SubjectExplain: a.onExplain,
	} {
		stop, err := a.bus.Subscribe(subject, handle)
		if err != nil {
			unsubscribe()
			return func() {}, err
		}
		stops = append(stops, stop)
	}
	stop, err := a.bus.SubscribeShared(wire.SubjectWake, wire.WakeGroup, a.onWakeFirst)
	if err != nil {
		unsubscribe()
		return func() {}, err
	}
	stops = append(stops, stop)
	return unsubscribe, nil
}

// decode reads a message; one that cannot be read is logged and dropped.
func (a *App) decode(subject string, msg []byte, into proto.Message) bool {
	if err := proto.Unmarshal(msg, into); err != nil {
		a.Log.Warn("unreadable message on the bus", "subject", subject, "err", err)
		return false
	}
	return true
}

func (a *App) onWake(msg []byte, _ string) {
	var wake wire.Wake
	if a.decode(wire.SubjectWake, msg, &wake) {
		a.waker.Heard(wake.GetFunctions())
		a.leader.Changed()
	}
}

// onWakeFirst is onWake for the scaler that the bus has picked. onWake comes as well, before or after.
func (a *App) onWakeFirst(msg []byte, _ string) {
	var wake wire.Wake
	if a.decode(wire.SubjectWake, msg, &wake) {
		a.waker.First(wake.GetFunctions())
	}
}

func (a *App) onLoad(msg []byte, _ string) {
	var report wire.LoadReport
	if a.decode(wire.SubjectLoad, msg, &report) && a.loads.Apply(time.Now(), &report) {
		a.leader.Changed()
	}
}

func (a *App) onDemand(msg []byte, _ string) {
	var report wire.DemandReport
	if !a.decode(wire.SubjectDemand, msg, &report) || !a.demand.Apply(time.Now(), &report) {
		return
	}
	// A queued call is a wake, and waking needs no leader.
	var queued []string
	for _, f := range report.GetFunctions() {
		if f.GetQueued() > 0 {
			queued = append(queued, f.GetFunction())
		}
	}
	if len(queued) > 0 && a.leader.Epoch() > 0 {
		a.waker.First(queued)
	} else if len(queued) > 0 {
		a.waker.Heard(queued)
	}
	a.leader.Changed()
}

func (a *App) onFacts([]byte, string) {
	a.leader.FactsChanged()
	select {
	case a.hint <- struct{}{}:
	default:
	}
}

func (a *App) onExplain(msg []byte, reply string) {
	var request wire.ExplainRequest
	if a.leader.Epoch() == 0 || !a.decode(wire.SubjectExplain, msg, &request) {
		return
	}
	select {
	case a.explains <- question{function: request.GetFunction(), reply: reply}:
	default:
	}
}

// explain answers questions until ctx ends.
func (a *App) explain(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case q := <-a.explains:
			a.answer(ctx, q)
		}
	}
}

func (a *App) answer(ctx context.Context, q question) {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	explanation, found, err := a.leader.Explain(ctx, q.function)
	if errors.Is(err, lead.ErrNotLeading) {
		return // another answers
	}
	response := &wire.ExplainResponse{Found: found}
	if found {
		if response.Json, err = json.Marshal(explanation); err != nil {
			a.Log.Error("an explanation could not be encoded", "fn", q.function, "err", err)
			return
		}
	}
	if err := a.bus.Respond(q.reply, response); err != nil {
		a.Log.Debug("an explanation was not sent", "fn", q.function, "err", err)
	}
}

// sighted tells edges of a replica while no record does.
func (a *App) sighted(function string, f *fleet.Function, r *orchestrator.Replica) {
	message := &wire.Sighting{Function: function, Replica: catalogue.Replica(f.Spec, r), Scaler: a.Name}
	if err := a.bus.Publish(wire.SubjectSighting, message); err != nil {
		a.Log.Debug("a sighting was not sent", "fn", function, "err", err)
	}
}

// queue narrows the client to what the leader and the election need.
type queue struct{ client *queueclient.Client }

func (q queue) Do(ctx context.Context, op *wire.Op) (*wire.OpResult, error) {
	return q.client.Do(ctx, op)
}

func (q queue) Facts(ctx context.Context) (*wire.FactsResponse, error) { return q.client.Facts(ctx) }

func (q queue) Demand(ctx context.Context) (*wire.DemandReport, error) { return q.client.Demand(ctx) }

func (q queue) Heartbeat(ctx context.Context, request *wire.HeartbeatRequest) (*wire.HeartbeatResponse, error) {
	return q.client.Heartbeat(ctx, request)
}
