package command

import (
	"bytes"
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

// Logger returns a logger that writes to w. It never waits for a reader of w
// that has stopped reading, and shows no character that a terminal acts upon.
func Logger(w io.Writer, level zerolog.Level, format string) (zerolog.Logger, error) {
	if format != LogJSON && format != LogPretty {
		return zerolog.Nop(), fmt.Errorf("--log-format %q: use %s or %s", format, LogJSON, LogPretty)
	}
	if file, ok := w.(*os.File); ok {
		w = &steadyWriter{file: file, note: func(lost int) []byte {
			var line bytes.Buffer
			log := zerolog.New(formatted(&line, format)).With().Timestamp().Logger()
			log.Warn().Int("lines", lost).Msg("log lines lost: stdout was not read")
			return line.Bytes()
		}}
	}
	return zerolog.New(zerolog.SyncWriter(formatted(w, format))).Level(level).With().Timestamp().Logger(), nil
}

func formatted(w io.Writer, format string) io.Writer {
	w = visibleWriter{w, format == LogJSON}
	if format == LogPretty {
		return zerolog.ConsoleWriter{Out: w, NoColor: true, TimeFormat: time.RFC3339}
	}
	return w
}
