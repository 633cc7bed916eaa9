package integration

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// collected are the spans that were exported to a collector.
type collected struct {
	mu    sync.Mutex
	spans []*trace.Span // guarded by mu
}

func (c *collected) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	var m collector.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(raw, &m) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range m.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
}

// of a trace, by name.
func (c *collected) of(id string) map[string][]*trace.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := map[string][]*trace.Span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.GetTraceId()) == id {
			found[s.GetName()] = append(found[s.GetName()], s)
		}
	}
	return found
}

// TestATraceGoesFromTheCallerThroughTheQueueToTheFunction: a cold call, and an async call that is tried twice, each within its caller's
// trace, and what the function is told belongs to a span that was exported.
func TestATraceGoesFromTheCallerThroughTheQueueToTheFunction(t *testing.T) {
	traces := &collected{}
	server := httptest.NewServer(traces)
	defer server.Close()
	rec := newRecords(t)
	c := cluster.Start(t, cluster.Options{
		Queues: 1, Env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + server.URL, "OTEL_BSP_SCHEDULE_DELAY=100"},
		Functions: rec.yaml(fn{name: "traced", annotations: map[string]string{"Configuration": `{"DefaultAsync":{"TimeoutRetries":[0],"HttpStatusRetries":[500]}}`}}),
	})
	const cold, async = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
	const parent = "b7ad6b7169203331"
	within := func(id string) http.Header {
		return http.Header{"Traceparent": {"00-" + id + "-" + parent + "-01"}, "Tracestate": {"a=b"}}
	}
	status, body, err := c.Do(0, http.MethodGet, "/function/traced/cold", within(cold), nil)
	if err := wantStatus(status, 200, body, err); err != nil {
		t.Fatal(err)
	}
	status, body, err = c.Do(0, http.MethodPost, "/async-function/traced/async?first=500&key=once", within(async), nil)
	if err := wantStatus(status, 202, body, err); err != nil {
		t.Fatal(err)
	}
	c.Eventually(10*time.Second, "all spans are exported", func() error {
		c, a := traces.of(cold), traces.of(async)
		if len(c["call traced"]) != 1 || len(c["start"]) != 1 || len(a["call traced"]) != 1 || len(a["try traced"]) != 2 {
			return fmt.Errorf("cold %v, async %v", c, a)
		}
		return nil
	})
	ids := map[string]string{} // of exported spans that a function may be within → its trace
	for _, id := range []string{cold, async} {
		spans := traces.of(id)
		call := spans["call traced"][0]
		if got := hex.EncodeToString(call.GetParentSpanId()); got != parent {
			t.Errorf("the span of the call is within %s", got)
		}
		if id == cold {
			ids[hex.EncodeToString(call.GetSpanId())] = id
		}
		for name, children := range spans {
			for _, child := range children {
				if name != "call traced" && string(child.GetParentSpanId()) != string(call.GetSpanId()) {
					t.Errorf("%s is not within the call", name)
				}
			}
		}
		for _, try := range spans["try traced"] {
			ids[hex.EncodeToString(try.GetSpanId())] = id
		}
	}
	seen := map[string]bool{}
	for _, l := range rec.started(t, "traced") {
		fields := strings.Split(l.Header.Get("Traceparent"), "-")
		if len(fields) != 4 || ids[fields[2]] != fields[1] || l.Header.Get("Tracestate") != "a=b" {
			t.Errorf("%s is told %q, %q", l.URI, l.Header.Get("Traceparent"), l.Header.Get("Tracestate"))
			continue
		}
		seen[fields[2]] = true
	}
	if len(seen) != len(ids) {
		t.Errorf("the function was within %d spans of %d", len(seen), len(ids))
	}
}
