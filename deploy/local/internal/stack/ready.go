package stack

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
)

// Paces of waiting for readiness. notKnown bounds how long a ready edge may not know a function of the manifest before we say
// so and go on: the scaler may have a reason that is its own to tell.
const (
	askReady   = 50 * time.Millisecond
	readyLimit = 2 * time.Second // of one question
	sayWaiting = 10 * time.Second
	notKnown   = 10 * time.Second
)

// awaitReady calls Ready once a call would succeed: every edge and queue node and one scaler are ready, and every edge knows
// the public functions.
func (r *run) awaitReady(ctx context.Context) {
	began := time.Now()
	said, allReady := began, time.Time{}
	client := &http.Client{Timeout: readyLimit, Transport: &http.Transport{DisableKeepAlives: true}}
	ticker := time.NewTicker(askReady)
	defer ticker.Stop()
	for {
		waiting := r.unready(ctx, client)
		if len(waiting) == 0 {
			if allReady.IsZero() {
				allReady = time.Now()
			}
			unknown := r.unknown(ctx, client)
			if len(unknown) == 0 || time.Since(allReady) > notKnown {
				if len(unknown) > 0 {
					r.o.Log.Warn("ready, but some functions are not known to the edge yet", "fn", strings.Join(unknown, ", "))
				}
				if ctx.Err() == nil {
					r.o.Log.Info("ready", "after", time.Since(began).Round(time.Millisecond))
					r.o.Ready(r.url)
				}
				return
			}
			waiting = unknown
		} else {
			allReady = time.Time{}
		}
		if time.Since(said) > sayWaiting {
			said = time.Now()
			r.o.Log.Warn("still waiting", "for", strings.Join(waiting, ", "), "logs", r.plan.state.path("logs"))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// unready lists the parts that are not ready. Of the scalers one is enough.
func (r *run) unready(ctx context.Context, client *http.Client) []string {
	var waiting []string
	ready := func(name string) bool { return answers(ctx, client, "http://"+r.plan.address(name, "admin")+"/ready") }
	for i := range r.plan.cluster.Nodes {
		if !ready(queueName(i)) {
			waiting = append(waiting, queueName(i))
		}
	}
	for i := range r.plan.cluster.Edges {
		if !ready(edgeName(i)) {
			waiting = append(waiting, edgeName(i))
		}
	}
	for i := range r.plan.cluster.Scalers {
		if ready(scalerName(i)) {
			return waiting
		}
	}
	return append(waiting, "a scaler")
}

// unknown lists the functions some edge does not know. Private ones are not asked for: who is internal is the edge's to say.
func (r *run) unknown(ctx context.Context, client *http.Client) []string {
	var missing []string
	for _, f := range r.o.Manifest.Functions {
		if f.Spec.DefaultVisibility == function.Private {
			continue
		}
		for i := range r.plan.cluster.Edges {
			if !answers(ctx, client, "http://"+r.plan.address(edgeName(i), "public")+"/status-function/"+f.Name) {
				missing = append(missing, f.Name)
				break
			}
		}
	}
	return missing
}

func answers(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 4096) // the answer is its status
	return res.StatusCode == http.StatusOK
}
