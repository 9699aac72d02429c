package command

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// App assembles a command tree that fails like nixfleet does: usage errors
// carry exit code 2, unknown words are named, and nothing exits by itself.
func App(version string, commands ...*cli.Command) *cli.App {
	commands = append(slices.Clone(commands), versionCommand())
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
	return Usage(where+" --help", "%w", err)
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
			return Usage("nixfleet "+path+" --help", "%s needs one of: %s", path, strings.Join(verbs, ", "))
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
	return Usage(hint, "unknown command %q", word)
}

// nearly says whether two words are the same but for one letter that was
// changed, lost or added, or two that were swapped.
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
	stderr := io.Writer(os.Stderr)
	if app.ErrWriter != nil {
		stderr = app.ErrWriter
	}
	args, possible := completable(helped(args))
	if !possible {
		return 0
	}
	return Report(stderr, app.RunContext(ctx, Arrange(app, args)))
}

// Arrange moves flags in front of positional words, so that `rollout trace ID
// --json` means what it says; the flag package stops at the first word.
func Arrange(app *cli.App, args []string) []string {
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
	options, words := split(flags, args[at:])
	line := append(slices.Clone(args[:at]), options...)
	if len(words) > 0 {
		line = append(append(line, "--"), words...)
	}
	return line
}

// split parts what follows a command's name into flags with their values and
// positional words.
func split(flags []cli.Flag, rest []string) (options, words []string) {
	for ; len(rest) > 0; rest = rest[1:] {
		word := rest[0]
		if word == "--" {
			return options, append(words, rest[1:]...)
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
	return options, words
}

func takesValue(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if d, ok := f.(cli.DocGenerationFlag); ok && slices.Contains(f.Names(), name) {
			return d.TakesValue()
		}
	}
	return false
}
