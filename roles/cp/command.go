package cp

import (
	"cmp"
	"fmt"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/cp/tick"
)

// Command is `nixfleet cp`, with what other roles ask of a control plane behind its own verbs.
func Command(others ...*cli.Command) *cli.Command {
	return &cli.Command{
		Name:  "cp",
		Usage: "the control plane: route signed releases to agents",
		Description: "Example:\n   nixfleet cp serve --source git+https://forge.example.com/fleet.git#main \\\n" +
			"     --db-path /var/lib/nixfleet-cp/state.db \\\n" +
			"     --tls-cert server.cert.pem --tls-key server.key.pem --client-ca client-ca.pem \\\n" +
			"     --fleet-ca-cert issuing-ca.cert.pem --fleet-ca-key issuing-ca.key.pem --agent-cn-suffix fleet.example.com",
		Subcommands: append([]*cli.Command{serveCommand(), tick.Command(), backupCommand(), restoreCommand(),
			notifyCommand()}, others...),
	}
}

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "serve agents and operators until told to stop",
		Description: "Certificates, trust file and token files are read again when they change; " +
			"SIGHUP reads them and polls the source at once.\n\n" +
			"Example:\n   nixfleet cp serve --source git+ssh://git@forge.example.com/fleet.git#main --db-path state.db \\\n" +
			"     --agent-cn-suffix fleet.example.com \\\n" +
			"     --tls-cert server.cert.pem --tls-key server.key.pem --client-ca client-ca.pem \\\n" +
			"     --fleet-ca-cert issuing-ca.cert.pem --fleet-ca-key issuing-ca.key.pem",
		Flags:  flags(),
		Action: serve,
	}
}

func serve(c *cli.Context) error {
	log, err := newLogger(c)
	if err != nil {
		return failed(2, err, "nixfleet cp serve --help")
	}
	cfg := configOf(c, log)
	if c.Bool("check-config") {
		if err := cfg.complete(); err != nil {
			return failed(2, fmt.Errorf("configuration: %w", err), "nixfleet cp serve --help")
		}
		if err := cfg.readable(); err != nil {
			return failed(2, fmt.Errorf("configuration: %w", err), "the files must be there when the control plane starts")
		}
		_, err := fmt.Fprintln(c.App.Writer, "configuration is good")
		return err
	}
	hangups, stop := command.Hangups()
	defer stop()
	cfg.Reload = hangups
	if err := Run(c.Context, cfg); err != nil {
		return failed(2, err, "nixfleet cp serve --check-config")
	}
	return nil
}

// newLogger writes the log that the flags of c ask for to its output.
func newLogger(c *cli.Context) (zerolog.Logger, error) {
	level, err := command.LogLevel(c)
	if err != nil {
		return zerolog.Nop(), err
	}
	return command.Logger(c.App.Writer, level, c.String("log-format"))
}

// failed is a command that ended with an exit code. The hint is for an error that
// carries none: what failed may know it better than the command.
func failed(code int, err error, hint string) error {
	return &command.Error{Err: err, Code: code, Hint: cmp.Or(command.HintOf(err), hint)}
}
