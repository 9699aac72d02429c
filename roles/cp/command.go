package cp

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/store"
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

// Hint is the next thing to type.
func (e *exitError) Hint() string { return e.hint }

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
	level, err := zerolog.ParseLevel(logLevel(c))
	if err != nil {
		return &exitError{fmt.Errorf("--log-level %q: use debug, info, warn or error", c.String("log-level")), 2, ""}
	}
	cfg := configOf(c, newLogger(c.App.Writer, level))
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
		return &exitError{err, 2, "nixfleet cp serve --help"}
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

func newLogger(w io.Writer, level zerolog.Level) zerolog.Logger {
	return zerolog.New(zerolog.SyncWriter(w)).Level(level).With().Timestamp().Logger()
}

const backupTimeout = 10 * time.Minute

func backupCommand() *cli.Command {
	return &cli.Command{
		Name:        "backup",
		Usage:       "copy the state database while the control plane uses it",
		Description: "Example:\n   nixfleet cp backup --db-path /var/lib/nixfleet-cp/state.db --output /backup/state-$(date +%F).db",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "db-path", Value: defaultStateDir + "/state.db", EnvVars: []string{"NIXFLEET_CP_DB_PATH"}, Usage: "state database `FILE`"},
			&cli.StringFlag{Name: "output", Required: true, EnvVars: []string{"NIXFLEET_CP_BACKUP_OUTPUT"}, Usage: "write the copy to `FILE`, which must not exist"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, backupTimeout)
			defer cancel()
			if err := store.BackupFile(ctx, c.String("db-path"), c.String("output")); err != nil {
				return &exitError{err, 1, ""}
			}
			_, err := fmt.Fprintf(c.App.Writer, "copied %s to %s\n", c.String("db-path"), c.String("output"))
			return err
		},
	}
}
