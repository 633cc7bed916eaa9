package settings

import (
	"fmt"
	"log/slog"
	"strings"
)

// Log is the concern every program has: embed it as a field of the program's configuration.
type Log struct {
	Level  Level  `env:"LOG_LEVEL" shared:"true" envDefault:"info" alias:"Logging__LogLevel__SlimFaas,Logging__LogLevel__Default" doc:"Lowest level that is logged: debug, info, warn or error."`
	Format string `env:"LOG_FORMAT" shared:"true" doc:"json or text. Empty: text on a terminal, else json."`
}

// Validate implements Validator.
func (l *Log) Validate() error {
	switch l.Format {
	case "", "json", "text":
		return nil
	}
	return fmt.Errorf("reading LOG_FORMAT=%q: expected json or text", l.Format)
}

// Level is a slog level that also knows the words of the original. It is a slog.Leveler.
type Level slog.Level

var _ slog.Leveler = Level(0)

// Level implements slog.Leveler.
func (l Level) Level() slog.Level { return slog.Level(l) }

// String is the word slog has for it.
func (l Level) String() string { return strings.ToLower(slog.Level(l).String()) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(word []byte) error {
	switch strings.ToLower(strings.TrimSpace(string(word))) {
	case "trace":
		*l = Level(slog.LevelDebug)
	case "information":
		*l = Level(slog.LevelInfo)
	case "warning":
		*l = Level(slog.LevelWarn)
	case "critical", "none":
		*l = Level(slog.LevelError)
	default:
		var level slog.Level
		if err := level.UnmarshalText(word); err != nil {
			return fmt.Errorf("%q is none of debug, info, warn, error", word)
		}
		*l = Level(level)
	}
	return nil
}
