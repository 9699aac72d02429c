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
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Roles are the other roles' command lines, which main hands over because the
// roles do not import each other; the demo runs them in its own process.
type Roles struct {
	ControlPlane, Agent func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// Commands returns the operator's verbs.
func Commands(roles Roles) []*cli.Command {
	verbs := []*cli.Command{
		statusCommand(), planCommand(), rolloutCommand(), hostCommand(), revokeCommand(),
		initCommand(), releaseCommand(), verifyCommand(), canonicalizeCommand(),
		keygenCommand(), derivePubkeyCommand(), mintTokenCommand(), mintOperatorCertCommand(),
		configCommand(), completionCommand(), demoCommand(roles),
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
	if len(c.Subcommands) > 0 {
		for _, sub := range c.Subcommands {
			finish(sub, prefix+"_"+variable(c.Name))
		}
		return
	}
	c.Flags = append(c.Flags, &cli.StringFlag{
		Name: "config", EnvVars: []string{"NIXFLEET_CONFIG"},
		Usage: "configuration `FILE` (default: nixfleet/config.toml in the user's configuration directory)",
	})
	for _, f := range c.Flags {
		giveVariable(f, prefix+"_"+variable(c.Name))
	}
	action := c.Action
	c.Before = fromConfig
	c.Action = func(ctx *cli.Context) error {
		if ctx.Bool("check-config") {
			return checkConnection(ctx)
		}
		if c.ArgsUsage == "" && ctx.NArg() > 0 {
			return usage(ctx.Command.HelpName+" --help", "unexpected argument %q", ctx.Args().First())
		}
		return action(ctx)
	}
}

func variable(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

func giveVariable(f cli.Flag, prefix string) {
	name := []string{prefix + "_" + variable(f.Names()[0])}
	switch f := f.(type) {
	case *cli.StringFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
	case *cli.BoolFlag:
		f.EnvVars, f.DisableDefaultText = otherwise(f.EnvVars, name), true
	case *cli.IntFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
	case *cli.Int64Flag:
		f.EnvVars = otherwise(f.EnvVars, name)
	case *cli.DurationFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
	case *cli.StringSliceFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
	}
}

func otherwise(have, names []string) []string {
	if len(have) > 0 {
		return have
	}
	return names
}

// App assembles a command tree that fails like nixfleet does: usage errors
// carry exit code 2, unknown words are named, and nothing exits by itself.
func App(version string, commands ...*cli.Command) *cli.App {
	for _, c := range commands {
		refuseUnknown(c, c.Name)
	}
	return &cli.App{
		Name:                 "nixfleet",
		Usage:                "keep a fleet of NixOS machines at the state declared in git",
		Description:          "Example:\n   nixfleet status",
		Version:              version,
		HideHelpCommand:      true,
		EnableBashCompletion: true,
		Commands:             commands,
		ExitErrHandler:       func(*cli.Context, error) {},
		OnUsageError:         usageError,
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return cli.ShowAppHelp(c)
			}
			return unknownWord(c.Args().First(), "nixfleet", commands)
		},
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	where := "nixfleet"
	if c.Command != nil && c.Command.HelpName != "" {
		where = c.Command.HelpName
	}
	return usage(where+" --help", "%w", err)
}

func refuseUnknown(c *cli.Command, path string) {
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	for _, sub := range c.Subcommands {
		refuseUnknown(sub, path+" "+sub.Name)
	}
	if len(c.Subcommands) == 0 || c.Action != nil {
		return
	}
	c.Action = func(ctx *cli.Context) error {
		if ctx.NArg() == 0 {
			var verbs []string
			for _, sub := range c.Subcommands {
				verbs = append(verbs, sub.Name)
			}
			return usage("nixfleet "+path+" --help", "%s needs one of: %s", path, strings.Join(verbs, ", "))
		}
		return unknownWord(ctx.Args().First(), "nixfleet "+path, c.Subcommands)
	}
}

func unknownWord(word, where string, commands []*cli.Command) error {
	hint := where + " --help"
	for _, c := range commands {
		if strings.HasPrefix(c.Name, word) || strings.HasPrefix(word, c.Name) || nearly(c.Name, word) {
			hint = "did you mean " + where + " " + c.Name
		}
	}
	return usage(hint, "unknown command %q", word)
}

// nearly: the same letters but for one that was swapped, lost or added.
func nearly(a, b string) bool {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return len(a) <= 1 && len(b) <= 1 || len(a) == 2 && len(b) == 2 && a[0] == b[1] && a[1] == b[0]
}

// Run executes one command line (with the program's name as first word),
// prints its error and returns the exit code of the process.
func Run(ctx context.Context, app *cli.App, args []string) int {
	tidyVariables(app.Commands)
	stderr := io.Writer(os.Stderr)
	if app.ErrWriter != nil {
		stderr = app.ErrWriter
	}
	args, possible := completable(args)
	if !possible {
		return 0
	}
	return report(stderr, app.RunContext(ctx, arrange(app, args)))
}

// tidyVariables takes an empty variable for none, as CI hands on what is not set,
// and accepts yes/no and on/off for boolean flags, as units in the field write them.
func tidyVariables(commands []*cli.Command) {
	for _, c := range commands {
		tidyVariables(c.Subcommands)
		for _, f := range c.Flags {
			doc, ok := f.(cli.DocGenerationFlag)
			if !ok {
				continue
			}
			_, boolean := f.(*cli.BoolFlag)
			for _, name := range doc.GetEnvVars() {
				switch value := strings.ToLower(os.Getenv(name)); {
				case value == "":
					os.Unsetenv(name)
				case boolean && (value == "yes" || value == "on"):
					os.Setenv(name, "true")
				case boolean && (value == "no" || value == "off"):
					os.Setenv(name, "false")
				}
			}
		}
	}
}

// arrange moves flags in front of positional words, so that `rollout trace ID
// --json` means what it says; the flag package stops at the first word.
func arrange(app *cli.App, args []string) []string {
	if args[len(args)-1] == completeWord {
		return args // which must stay the last
	}
	commands, flags, at := app.Commands, app.Flags, 1
	for at < len(args) {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[at]) })
		if i < 0 {
			break
		}
		flags, commands = commands[i].Flags, commands[i].Subcommands
		at++
	}
	if len(commands) > 0 || at >= len(args) {
		return args
	}
	var options, words []string
	for rest := args[at:]; len(rest) > 0; rest = rest[1:] {
		word := rest[0]
		if word == "--" {
			words = append(words, rest[1:]...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			words = append(words, word)
			continue
		}
		options = append(options, word)
		if takesValue(flags, strings.TrimLeft(word, "-")) && len(rest) > 1 {
			options, rest = append(options, rest[1]), rest[1:]
		}
	}
	line := append(slices.Clone(args[:at]), options...)
	if len(words) > 0 {
		line = append(append(line, "--"), words...)
	}
	return line
}

func takesValue(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if d, ok := f.(cli.DocGenerationFlag); ok && slices.Contains(f.Names(), name) {
			return d.TakesValue()
		}
	}
	return false
}

// progress says on stderr what takes its time.
func progress(c *cli.Context, format string, args ...any) {
	fmt.Fprintf(newLineWriter(c, ""), format+"\n", args...)
}
