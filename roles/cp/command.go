package cp

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"
)

// exitError carries the exit code of a command, and a hint.
type exitError struct {
	err  error
	code int
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// ExitCode is what the process ends with.
func (e *exitError) ExitCode() int { return e.code }

// Hint is the next thing to type. What failed may know it better than the
// command.
func (e *exitError) Hint() string {
	if cause := interface{ Hint() string }(nil); errors.As(e.err, &cause) && cause.Hint() != "" {
		return cause.Hint()
	}
	return e.hint
}

// Command is `nixfleet cp`.
func Command() *cli.Command {
	return &cli.Command{
		Name:  "cp",
		Usage: "the control plane: route signed releases to agents",
		Description: "Example:\n   nixfleet cp serve --source git+https://forge.example.com/fleet.git#main --db-path /var/lib/nixfleet-cp/state.db \\\n" +
			"     --tls-cert server.cert.pem --tls-key server.key.pem --client-ca client-ca.pem \\\n" +
			"     --fleet-ca-cert issuing-ca.cert.pem --fleet-ca-key issuing-ca.key.pem --agent-cn-suffix fleet.example.com",
		Subcommands: []*cli.Command{serveCommand(), tickCommand(), backupCommand()},
	}
}

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "serve agents and operators until told to stop",
		Description: "Certificates, trust file and token files are read again when they change.\n\n" +
			"Example:\n   nixfleet cp serve --source git+ssh://git@forge.example.com/fleet.git#main --db-path state.db --agent-cn-suffix fleet.example.com \\\n" +
			"     --tls-cert server.cert.pem --tls-key server.key.pem --client-ca client-ca.pem --fleet-ca-cert issuing-ca.cert.pem --fleet-ca-key issuing-ca.key.pem",
		Flags:  flags(),
		Action: serve,
	}
}

func serve(c *cli.Context) error {
	log, err := newLogger(c)
	if err != nil {
		return &exitError{err, 2, "nixfleet cp serve --help"}
	}
	cfg := configOf(c, log)
	if c.Bool("check-config") {
		if err := cfg.complete(); err != nil {
			return &exitError{fmt.Errorf("configuration: %w", err), 2, "nixfleet cp serve --help"}
		}
		if err := cfg.readable(); err != nil {
			return &exitError{fmt.Errorf("configuration: %w", err), 2, "the files must be there when the control plane starts"}
		}
		_, err := fmt.Fprintln(c.App.Writer, "configuration is good")
		return err
	}
	if err := Run(c.Context, cfg); err != nil {
		return &exitError{err, 2, "nixfleet cp serve --check-config"}
	}
	return nil
}

// logLevel honours the filter variable that v1 units set.
func logLevel(c *cli.Context) string {
	if filter := os.Getenv("RUST_LOG"); filter != "" && !c.IsSet("log-level") {
		if _, err := zerolog.ParseLevel(filter); err == nil {
			return filter
		}
	}
	return c.String("log-level")
}

// newLogger writes JSON lines, which scripts and recipes match on, or lines
// for a person.
func newLogger(c *cli.Context) (zerolog.Logger, error) {
	level, err := zerolog.ParseLevel(logLevel(c))
	if err != nil {
		return zerolog.Nop(), fmt.Errorf("--log-level %q: use debug, info, warn or error", c.String("log-level"))
	}
	var to io.Writer = zerolog.SyncWriter(c.App.Writer)
	switch format := c.String("log-format"); format {
	case "json":
	case "pretty":
		to = zerolog.ConsoleWriter{Out: to, NoColor: true, TimeFormat: time.RFC3339}
	default:
		return zerolog.Nop(), fmt.Errorf("--log-format %q: use json or pretty", format)
	}
	return zerolog.New(to).Level(level).With().Timestamp().Logger(), nil
}
