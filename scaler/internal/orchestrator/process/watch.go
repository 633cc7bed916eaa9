package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// silence: the supervisor pings each 2 s; three missed pings are a dead watch.
	silence = 6 * time.Second
	// maxLine is the largest event, in bytes.
	maxLine = 4 << 20
	// maxKnown bounds the first listing, in workloads and parts.
	maxKnown = 100_000

	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// Watch implements orchestrator.Orchestrator.
func (d *Driver) Watch(ctx context.Context, sink orchestrator.Sink) error {
	pause := firstPause
	for {
		synced, err := d.watchOnce(ctx, sink)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sink.Lost(err)
		if synced {
			pause = firstPause
		}
		d.log.Warn("watch of the supervisor ended, watching again", "err", err, "pause", pause)
		timer := time.NewTimer(pause + rand.N(pause/4)) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, maxPause)
	}
}

var (
	errSilent   = errors.New("the supervisor was silent for too long")
	errTooMany  = errors.New("the supervisor lists more workloads than can be")
	errLineSize = errors.New("an event of the supervisor is too large")
)

// watchOnce follows one watch to its end; synced says whether it got as far as the whole state.
func (d *Driver) watchOnce(ctx context.Context, sink orchestrator.Sink) (synced bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()

	request, err := d.request(ctx, http.MethodGet, wire.LocalPathWatch, nil)
	if err != nil {
		return false, err
	}
	response, err := d.client.Do(request)
	if err != nil {
		return false, fmt.Errorf("open the watch: %w", because(ctx, err))
	}
	defer response.Body.Close() //nolint:errcheck // a body that was only read
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200)) //nolint:errcheck // for people
		return false, fmt.Errorf("open the watch: %w: status %d: %s", orchestrator.ErrRefused, response.StatusCode, text)
	}

	workloads := map[string]orchestrator.Workload{}
	parts := map[string]orchestrator.Part{}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		quiet.Reset(silence)
		if len(lines.Bytes()) == 0 {
			continue
		}
		var event wire.LocalEvent
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return synced, fmt.Errorf("decode an event of the watch: %w", err)
		}
		if synced {
			tell(sink, event)
			continue
		}
		switch event.Type {
		case wire.LocalEventWorkload:
			if event.Workload != nil {
				workloads[event.Workload.Name] = workload(event.Workload)
			}
		case wire.LocalEventDeleted:
			delete(workloads, event.Name)
		case wire.LocalEventPart:
			if event.Part != nil {
				parts[event.Part.Name] = orchestrator.Part{Name: event.Part.Name, Alive: event.Part.Alive}
			}
		case wire.LocalEventSynced:
			synced = true
			sink.Reset(values(workloads), values(parts))
			workloads, parts = nil, nil
		}
		if len(workloads)+len(parts) > maxKnown {
			return synced, errTooMany
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return synced, errLineSize
	}
	if err := lines.Err(); err != nil {
		return synced, fmt.Errorf("read the watch: %w", because(ctx, err))
	}
	return synced, fmt.Errorf("read the watch: %w", io.ErrUnexpectedEOF)
}

// because prefers the reason a context was cancelled for over the error that followed from it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func tell(sink orchestrator.Sink, event wire.LocalEvent) {
	switch event.Type {
	case wire.LocalEventWorkload:
		if event.Workload != nil {
			sink.Workload(workload(event.Workload))
		}
	case wire.LocalEventDeleted:
		sink.Deleted(event.Name)
	case wire.LocalEventPart:
		if event.Part != nil {
			sink.Part(orchestrator.Part{Name: event.Part.Name, Alive: event.Part.Alive})
		}
	}
}

func values[V any](from map[string]V) []V {
	out := make([]V, 0, len(from))
	for _, v := range from {
		out = append(out, v)
	}
	return out
}

func workload(from *wire.LocalWorkload) orchestrator.Workload {
	out := orchestrator.Workload{
		Key: from.Name, Name: from.Name, Namespace: from.Namespace, Kind: "Deployment",
		Annotations: from.Annotations, Wanted: from.Wanted, Revision: text(from.Revision), Fixed: from.Fixed,
		Replicas: make([]orchestrator.Replica, 0, len(from.Replicas)),
	}
	for i := range from.Replicas {
		out.Replicas = append(out.Replicas, replica(&from.Replicas[i]))
	}
	return out
}

func replica(from *wire.LocalReplica) orchestrator.Replica {
	out := orchestrator.Replica{
		Name: from.Name, Instance: from.Instance, Host: from.Host, Detail: from.Detail,
		HealthPath: from.HealthPath, WasReady: from.WasReady,
	}
	if from.Port > 0 && from.Port < 1<<16 {
		out.Ports = []uint32{uint32(from.Port)}
	}
	addressed := out.Host != "" && len(out.Ports) > 0
	switch {
	case from.State == wire.LocalStopping:
		out.Phase = orchestrator.Gone
	case from.State == wire.LocalBackoff || !addressed:
		out.Phase = orchestrator.Pending
	case from.State == wire.LocalReady:
		out.Phase, out.WasReady = orchestrator.Ready, true
	case from.State == wire.LocalNotReady || from.WasReady:
		out.Phase, out.WasReady = orchestrator.NotReady, true
	case from.State == wire.LocalStarting:
		out.Phase = orchestrator.Starting
	}
	return out
}
