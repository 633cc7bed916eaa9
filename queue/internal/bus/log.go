package bus

import (
	"fmt"
	"log/slog"
)

// insecureRoutes is a line of the server that is not true here.
const insecureRoutes = "TLS certificate chain and hostname of solicited routes will not be verified. DO NOT USE IN PRODUCTION!"

// logger puts the server's lines into ours. Its notices are about routine and go to debug.
type logger struct{ log *slog.Logger }

func (l logger) Noticef(format string, v ...any) {
	l.log.Debug("bus", "message", fmt.Sprintf(format, v...))
}
func (l logger) Warnf(format string, v ...any) {
	// Said of every configuration with a verification of its own; ours verifies chain and names (shared/tlsconf), as bus_test proves.
	if format == insecureRoutes {
		return
	}
	l.log.Warn("bus", "message", fmt.Sprintf(format, v...))
}
func (l logger) Errorf(format string, v ...any) {
	l.log.Warn("bus", "message", fmt.Sprintf(format, v...))
}

// Fatalf does not end the process: the server is then not ready, and readiness says so.
func (l logger) Fatalf(format string, v ...any) {
	l.log.Error("bus", "message", fmt.Sprintf(format, v...))
}
func (l logger) Debugf(format string, v ...any) {
	l.log.Debug("bus", "message", fmt.Sprintf(format, v...))
}
func (l logger) Tracef(string, ...any) {}
