// Package process is the orchestrator driver of the local stack: a client of bin/local, which owns every process as
// the kubelet would (docs/adr/0006-who-owns-processes.md).
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// callTimeout bounds one scale or wake; the supervisor answers in milliseconds.
	callTimeout = 5 * time.Second
	// maxAnswer is the largest answer to scale or wake, in bytes.
	maxAnswer = 64 << 10
)

// Options of the driver. All are required but Log.
type Options struct {
	Socket string // path of the supervisor's unix socket
	Token  string // bearer token of that socket
	Log    *slog.Logger
}

// Driver implements orchestrator.Orchestrator.
type Driver struct {
	token  string
	log    *slog.Logger
	client *http.Client
}

var _ orchestrator.Orchestrator = (*Driver)(nil)

// New makes a driver; it dials at the first use.
func New(options Options) *Driver {
	log := options.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", options.Socket)
		},
		MaxIdleConns:        16,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
	}
	return &Driver{token: options.Token, log: log, client: &http.Client{Transport: transport}}
}

// Close ends idle connections. Calls in progress end with their contexts.
func (d *Driver) Close() { d.client.CloseIdleConnections() }

// Scale implements orchestrator.Orchestrator.
func (d *Driver) Scale(ctx context.Context, request orchestrator.Request) (orchestrator.Scaled, error) {
	revision, err := number(request.IfRevision)
	if err != nil {
		return orchestrator.Scaled{}, fmt.Errorf("scale %s: %w", request.Function, err)
	}
	return d.post(ctx, wire.LocalPathScale, request.Function, wire.LocalScale{
		Function: request.Function, Replicas: request.Replicas, Victims: request.Victims,
		Epoch: request.Epoch, IfRevision: revision,
	})
}

// Wake implements orchestrator.Orchestrator. The supervisor reads ReplicasAtStart itself, from the same annotations.
func (d *Driver) Wake(ctx context.Context, function string, ifRevision orchestrator.Revision, _ int) (orchestrator.Scaled, error) {
	revision, err := number(ifRevision)
	if err != nil {
		return orchestrator.Scaled{}, fmt.Errorf("wake %s: %w", function, err)
	}
	return d.post(ctx, wire.LocalPathWake, function, wire.LocalWake{Function: function, IfRevision: revision})
}

func (d *Driver) post(ctx context.Context, path, function string, body any) (orchestrator.Scaled, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	encoded, err := json.Marshal(body)
	if err != nil {
		return orchestrator.Scaled{}, fmt.Errorf("encode the request for %s: %w", function, err)
	}
	request, err := d.request(ctx, http.MethodPost, path, bytes.NewReader(encoded))
	if err != nil {
		return orchestrator.Scaled{}, err
	}
	response, err := d.client.Do(request)
	if err != nil {
		return orchestrator.Scaled{}, fmt.Errorf("%s %s: %w: %w", path, function, orchestrator.ErrUnreachable, err)
	}
	defer response.Body.Close() //nolint:errcheck // a body that was only read
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return orchestrator.Scaled{}, fmt.Errorf("%s %s: read the answer: %w: %w", path, function, orchestrator.ErrUnreachable, err)
	}
	var scaled wire.LocalScaled
	decodeErr := json.Unmarshal(answer, &scaled)
	state := orchestrator.Scaled{Wanted: scaled.Wanted, Revision: text(scaled.Revision)}
	switch response.StatusCode {
	case http.StatusOK:
		if decodeErr != nil {
			return orchestrator.Scaled{}, fmt.Errorf("%s %s: decode the answer: %w: %w", path, function, orchestrator.ErrUnreachable, decodeErr)
		}
		return state, nil
	case http.StatusConflict:
		return state, fmt.Errorf("%s %s: %w", path, function, &orchestrator.Conflict{Function: function, Current: state})
	case http.StatusPreconditionFailed:
		return state, fmt.Errorf("%s %s: %w", path, function, orchestrator.ErrStaleEpoch)
	case http.StatusNotFound:
		return state, fmt.Errorf("%s %s: %w", path, function, orchestrator.ErrNotFound)
	default:
		return state, fmt.Errorf("%s %s: %w: status %d: %s", path, function, orchestrator.ErrRefused, response.StatusCode, reason(scaled.Error, answer))
	}
}

func (d *Driver) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://local"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request %s: %w", path, err)
	}
	request.Header.Set("Authorization", "Bearer "+d.token)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	return request, nil
}

func reason(said string, answer []byte) string {
	if said != "" {
		return said
	}
	const shown = 200
	return string(answer[:min(len(answer), shown)])
}

var errRevision = errors.New("the revision is none of this orchestrator")

func number(revision orchestrator.Revision) (uint64, error) {
	if revision == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(string(revision), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %q", errRevision, revision)
	}
	return n, nil
}

func text(revision uint64) orchestrator.Revision {
	return orchestrator.Revision(strconv.FormatUint(revision, 10))
}
