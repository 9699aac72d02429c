package operator

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
)

func hostCommand() *cli.Command {
	return &cli.Command{
		Name: "host", Usage: "one host: what it runs and why, its log, its history; prepare it, try it again",
		Description: "Example:\n   nixfleet host show web-07",
		Subcommands: append(hostViews(), hostPrepareCommand(),
			&cli.Command{
				Name: "retry", Usage: "let a host try its declared closure once more", ArgsUsage: "NAME",
				Description: "Lifts the quarantine of the closure that failed on this host, for one attempt.\n\n" +
					"Example:\n   nixfleet host retry web-07 --reason 'disk replaced'",
				Flags: append(connectionFlags(), &cli.StringFlag{Name: "reason", Usage: "`TEXT` for the record"},
					command.JSONFlag()),
				Action: hostRetry,
			}),
	}
}

// oneHost is the only argument of a host verb.
func oneHost(c *cli.Context) (string, error) {
	name := c.Args().First()
	if c.NArg() != 1 || !fleet.ValidHostName(name) {
		return "", command.Usage(c.Command.HelpName+" NAME", "it takes one host name")
	}
	return name, nil
}

func hostRetry(c *cli.Context) error {
	name, err := oneHost(c)
	if err != nil {
		return err
	}
	if c.String("reason") == "" {
		return command.Usage("", "--reason is missing: it is recorded beside your name")
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	if err := client.Retry(c.Context, name, c.String("reason")); err != nil {
		return explained(err, "retry "+name)
	}
	return done(c, map[string]any{"host": name, "action": "retry"},
		"%s may try again once; watch it: nixfleet host explain %s", name, name)
}

// done prints that a change was accepted.
func done(c *cli.Context, doc map[string]any, format string, args ...any) error {
	if c.Bool("json") {
		return command.Document(c, doc)
	}
	_, err := fmt.Fprintf(c.App.Writer, format+"\n", args...)
	return err
}
