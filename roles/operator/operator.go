// Package operator is what people type: keys, tokens, releases, verification,
// and the questions they ask of a running fleet.
//
// It promises that a private half is never printed and never written readable
// for others, that nothing is signed that would not verify, that whatever can
// be read by a person can be read by a program (--json), and that an error
// names the next command to try. Answers go to stdout; progress, warnings and
// hints go to stderr.
package operator

import (
	"fmt"
	"maps"
	"slices"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/operator/demo"
)

// Roles are the command lines that the demonstration runs in its own process.
type Roles = demo.Roles

// Commands returns the operator's verbs; page is what `dashboard` serves.
func Commands(roles Roles, page Page) []*cli.Command {
	verbs := []*cli.Command{
		statusCommand(), dashboardCommand(page), certsCommand(), doctorCommand(), tokenCommand(), planCommand(),
		rolloutCommand(), hostCommand(), freezeCommand(), thawCommand(),
		revokeCommand(),
		revocationsCommand(), initCommand(), releaseCommand(), importV1Command(), verifyCommand(), canonicalizeCommand(),
		keygenCommand(), trustCommand(), derivePubkeyCommand(), mintTokenCommand(), mintOperatorCertCommand(),
		configCommand(), command.Completion(), demo.Command(roles),
	}
	for _, c := range verbs {
		finish(c, "NIXFLEET")
	}
	return verbs
}

// finish gives a verb what all of them have: an environment variable for each
// flag, values from the configuration file, and refusals instead of silence
// for words that mean nothing.
func finish(c *cli.Command, prefix string) {
	for _, sub := range c.Subcommands {
		finish(sub, prefix+"_"+command.Variable(c.Name))
	}
	if c.Action == nil {
		return
	}
	c.Flags = append(c.Flags, &cli.StringFlag{
		Name: "config", EnvVars: []string{"NIXFLEET_CONFIG"},
		Usage: "configuration `FILE` (default: nixfleet/config.toml in the user's configuration directory)",
	})
	c.Flags = command.Variables(prefix+"_"+command.Variable(c.Name), c.Flags...)
	action := c.Action
	c.Before = fromConfig
	c.Action = func(ctx *cli.Context) error {
		if ctx.Bool("check-config") {
			return checkConnection(ctx)
		}
		if c.ArgsUsage == "" && ctx.NArg() > 0 {
			return command.Usage(ctx.Command.HelpName+" --help", "unexpected argument %q", ctx.Args().First())
		}
		return action(ctx)
	}
}

// verb speaks to the control plane, and says what it has to say with --json as well.
func verb(name, args, what, example string, action cli.ActionFunc, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name: name, Usage: what, ArgsUsage: args, Description: "Example:\n   " + example,
		Flags: append(append(connectionFlags(), command.JSONFlag()), flags...), Action: action,
	}
}

// progress says on stderr what takes its time.
func progress(c *cli.Context, format string, args ...any) {
	fmt.Fprintf(c.App.ErrWriter, format+"\n", args...)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
