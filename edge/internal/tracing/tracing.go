// Package tracing makes OpenTelemetry spans of requests and tries, and carries the trace context on (W3C Trace Context). It is the
// only package that knows OpenTelemetry. A nil Tracer makes no spans: then a caller's context reaches the function as it came.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	scope = "github.com/slimfaas/slimfaas/edge"
	// shutdownWithin bounds the export of what is left at the stop.
	shutdownWithin = 2 * time.Second
)

// carrier reads and writes traceparent and tracestate.
var carrier propagation.TraceContext

// Tracer makes spans and exports them. Close it when done.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// New reads the standard variables of OpenTelemetry with getenv and the process's environment. nil: none asks for traces. An error
// names the variable that asks for what is not here.
func New(ctx context.Context, name, version string, getenv func(string) string, log *slog.Logger) (*Tracer, error) {
	wanted, err := wanted(getenv)
	if err != nil || !wanted {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_…: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "slimfaas-edge"), attribute.String("service.instance.id", name), attribute.String("service.version", version)),
		resource.WithFromEnv(),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err), exporter.Shutdown(ctx))
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("exporting traces", "err", err) }))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return &Tracer{provider: provider, tracer: provider.Tracer(scope)}, nil
}

func wanted(getenv func(string) string) (bool, error) {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	somewhere := getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
	switch exporter := getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "none":
		return false, nil
	case "otlp":
		somewhere = true
	case "":
	default:
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER=%s: otlp and none are known", exporter)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := getenv(name); somewhere && protocol != "" {
			if protocol != "http/protobuf" {
				return false, fmt.Errorf("%s=%s: http/protobuf is what is spoken (port 4318 of a collector)", name, protocol)
			}
			break
		}
	}
	return somewhere, nil
}

// Close exports what is left, for at most 2 s.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWithin)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("exporting the last traces: %w", err)
	}
	return nil
}

// Request is the span of a caller's request.
type Request struct{ span trace.Span }

// Request begins the span of a request, within the trace of the caller where it names one, and puts the span's context in its
// headers: whoever is sent them is within it.
func (t *Tracer) Request(r *http.Request) (*http.Request, Request) {
	if t == nil {
		return r, Request{}
	}
	ctx, span := t.tracer.Start(carrier.Extract(r.Context(), propagation.HeaderCarrier(r.Header)), r.Method,
		trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("http.request.method", r.Method)))
	carrier.Inject(ctx, propagation.HeaderCarrier(r.Header))
	return r.WithContext(ctx), Request{span}
}

// End the span of a request for this path; function is empty where it was for none. status 0: it was not answered.
func (s Request) End(path, function string, status int, aborted bool) {
	if s.span == nil {
		return
	}
	if function != "" {
		s.span.SetName("call " + function)
		s.span.SetAttributes(attribute.String("slimfaas.function", function))
	}
	s.span.SetAttributes(attribute.String("url.path", path))
	if status != 0 {
		s.span.SetAttributes(attribute.Int("http.response.status_code", status))
	}
	switch {
	case aborted:
		s.span.SetStatus(codes.Error, "broken off")
	case status >= 500:
		s.span.SetStatus(codes.Error, "")
	}
	s.span.End()
}

// Phase is a part of a wait, by its length.
type Phase struct {
	Name string
	Took time.Duration
}

// Waited adds to the span of ctx what a request has waited for until now, one phase after the other.
func Waited(ctx context.Context, phases ...Phase) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return
	}
	at := time.Now()
	for _, p := range phases {
		at = at.Add(-p.Took)
	}
	tracer := parent.TracerProvider().Tracer(scope)
	for _, p := range phases {
		_, span := tracer.Start(ctx, p.Name, trace.WithTimestamp(at))
		at = at.Add(p.Took)
		span.End(trace.WithTimestamp(at))
	}
}

// Try is one try of an asynchronous call.
type Try struct{ span trace.Span }

// Try begins the span of a try, within the trace that its request was accepted in, and returns the header fields that put the
// function within it; nil: the request's own do.
func (t *Tracer) Try(ctx context.Context, request *wire.StoredRequest, function, replica, call string, number uint32) (http.Header, Try) {
	if t == nil {
		return nil, Try{}
	}
	header := http.Header{}
	for _, h := range request.GetHeaders() {
		if name := http.CanonicalHeaderKey(h.GetName()); name == "Traceparent" || name == "Tracestate" {
			header[name] = h.GetValues()
		}
	}
	ctx, span := t.tracer.Start(carrier.Extract(ctx, propagation.HeaderCarrier(header)), "try "+function,
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
			attribute.String("slimfaas.function", function), attribute.String("slimfaas.replica", replica),
			attribute.String("slimfaas.call", call), attribute.Int64("slimfaas.try", int64(number)),
		))
	carrier.Inject(ctx, propagation.HeaderCarrier(header))
	return header, Try{span}
}

// End the span of a try. status 0: there was no answer, for the reason.
func (s Try) End(status uint32, reason string) {
	if s.span == nil {
		return
	}
	if status != 0 {
		s.span.SetAttributes(attribute.Int64("http.response.status_code", int64(status)))
	}
	if status == 0 || status >= 400 {
		s.span.SetStatus(codes.Error, reason)
	}
	s.span.End()
}
