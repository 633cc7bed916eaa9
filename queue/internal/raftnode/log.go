package raftnode

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hclogger passes raft's lines on. Its Info is our Debug: it tells every step of every election, and the node tells
// the ones that matter itself. Below Warn nothing is even formatted unless debug is on.
func hclogger(log *slog.Logger) hclog.Logger {
	level := hclog.Warn
	if log.Enabled(context.Background(), slog.LevelDebug) { // no I/O: a question to the handler
		level = hclog.Debug
	}
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: level, Output: io.Discard})
	logger.RegisterSink(sink{log})
	return logger
}

type sink struct{ log *slog.Logger }

func (s sink) Accept(_ string, level hclog.Level, message string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Warn:
		to = slog.LevelWarn
	case hclog.Error:
		to = slog.LevelError
	}
	s.log.Log(context.Background(), to, message, append([]any{"from", "raft"}, args...)...) //nolint:sloglint // the message is the library's
}
