// Package obs makes the logger and the metrics registry every program uses, and knows which build this is.
package obs

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Version of the build, set with -ldflags "-X github.com/slimfaas/slimfaas/shared/obs.Version=…".
var Version = "dev"

// Describe is what `<program> version` prints: program, version, revision where known, Go version, platform.
func Describe(program string) string {
	revision := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = " (" + s.Value[:min(12, len(s.Value))] + ")"
			}
		}
	}
	return fmt.Sprintf("%s %s%s %s %s/%s", program, Version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// Logger writes to w. level is debug, info, warn or error (empty: info); format is json or text (empty: text when w is a
// terminal, else json).
func Logger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, fmt.Errorf("reading the log level %q (LOG_LEVEL): want debug, info, warn or error", level)
		}
	}
	options := &slog.HandlerOptions{Level: l}
	switch strings.ToLower(format) {
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "":
		if terminal(w) {
			return slog.New(slog.NewTextHandler(w, options)), nil
		}
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("reading the log format %q (LOG_FORMAT): want json or text", format)
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Registry has the collectors of the runtime, of the process, and slimfaas_build_info of this program.
func Registry(program string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "slimfaas_build_info", Help: "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{"program": program, "version": Version, "go": runtime.Version()},
	})
	build.Set(1)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	return r
}
