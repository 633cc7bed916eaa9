package tracing

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestWhoAsksForTraces(t *testing.T) {
	t.Parallel()
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for _, c := range []struct {
		environment map[string]string
		wanted, bad bool
	}{
		{nil, false, false},
		{map[string]string{endpoint: "http://c:4318"}, true, false},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, true, false},
		{map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, true, false},
		{map[string]string{"OTEL_TRACES_EXPORTER": "none", endpoint: "http://c:4318"}, false, false},
		{map[string]string{"OTEL_SDK_DISABLED": "TRUE", endpoint: "http://c:4318"}, false, false},
		{map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, false, true},
		{map[string]string{endpoint: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, true},
		{map[string]string{endpoint: "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, true, false},
		{map[string]string{endpoint: "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, true, false},
		{map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, false},
	} {
		got, err := wanted(func(name string) string { return c.environment[name] })
		if got != c.wanted || (err != nil) != c.bad {
			t.Errorf("%v: %v, %v", c.environment, got, err)
		}
	}
}

func TestWithoutATracerTheCallersContextGoesOn(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	var none *Tracer
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Traceparent", parent)
	same, span := none.Request(r)
	Waited(same.Context(), Phase{"wake", 1})
	span.End("/", "f", 200, false)
	fields, try := none.Try(t.Context(), &wire.StoredRequest{}, "f", "r", "id", 1)
	try.End(200, "")
	if same != r || r.Header.Get("Traceparent") != parent || fields != nil || none.Close() != nil {
		t.Errorf("the request is changed: %v, %v", r.Header, fields)
	}
}
