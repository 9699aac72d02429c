package command

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"
)

// Formats of a log.
const (
	LogJSON   = "json"   // one JSON object a line, which scripts and recipes match on
	LogPretty = "pretty" // lines for a person
)

// LogLevel reads --log-level of c. The filter variable that v1 units set,
// RUST_LOG, counts where the flag is not given and the filter is a level.
func LogLevel(c *cli.Context) (zerolog.Level, error) {
	name := c.String("log-level")
	if filter := os.Getenv("RUST_LOG"); filter != "" && !c.IsSet("log-level") {
		if level, err := zerolog.ParseLevel(filter); err == nil {
			return level, nil
		}
	}
	level, err := zerolog.ParseLevel(name)
	if err != nil {
		return zerolog.InfoLevel, fmt.Errorf("--log-level %q: use debug, info, warn or error", name)
	}
	return level, nil
}

// Logger returns a logger that writes to w.
func Logger(w io.Writer, level zerolog.Level, format string) (zerolog.Logger, error) {
	to := io.Writer(zerolog.SyncWriter(w))
	switch format {
	case LogJSON:
	case LogPretty:
		to = zerolog.ConsoleWriter{Out: to, NoColor: true, TimeFormat: time.RFC3339}
	default:
		return zerolog.Nop(), fmt.Errorf("--log-format %q: use %s or %s", format, LogJSON, LogPretty)
	}
	return zerolog.New(to).Level(level).With().Timestamp().Logger(), nil
}
