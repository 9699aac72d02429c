// Command nixfleet is the whole of nixfleet in one executable: the control
// plane, the agent and the operator's verbs. The name it was called by picks
// the role, then the first word of the command line.
package main

import (
	"cmp"
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"nixfleet/docs"
	"nixfleet/roles/agent"
	"nixfleet/roles/command"
	"nixfleet/roles/command/manual"
	"nixfleet/roles/cp"
	"nixfleet/roles/cp/page"
	"nixfleet/roles/operator"
)

// version and commit are set by the linker (-X main.commit=…); a plain `go
// build` in a checkout takes the commit from the build information instead.
var version, commit = "0.1.0", ""

func main() { os.Exit(run(os.Args)) }

// run is the process without its exit.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks, the second one kills.
	context.AfterFunc(ctx, stop)
	return command.Run(ctx, application(), commandLine(args))
}

// application is the command tree of all three roles. `cp poke` is an operator's question to a running control plane.
func application() *cli.App {
	verbs := operator.Commands(operator.Roles{
		ControlPlane: inProcess("cp", func() []*cli.Command { return []*cli.Command{cp.Command()} }),
		Agent:        inProcess("agent", func() []*cli.Command { return []*cli.Command{agent.Command()} }),
		Operator:     inProcess("", func() []*cli.Command { return operator.Commands(operator.Roles{}, nil) }),
	}, page.Workstation)
	return command.App(build(), append(verbs, cp.Command(operator.PokeCommand()), agent.Command(),
		manual.Command(manualPages, operator.NeverFromFile))...)
}

// manualPages are those of the manual that are pages of docs as well.
var manualPages = []manual.Page{
	{Name: "nixfleet-formats", Section: 5, Text: docs.Formats},
	{Name: "nixfleet-reasons", Section: 7, Text: docs.Reasons},
	{Name: "nixfleet-recovery", Section: 7, Text: docs.Recovery},
	{Name: "nixfleet-troubleshooting", Section: 7, Text: docs.Troubleshooting},
}

// inProcess runs command lines for the demonstration, without the environment, whose variables are meant for another
// fleet. The words of a role follow its name.
func inProcess(role string, commands func() []*cli.Command) func(context.Context, []string, io.Writer,
	io.Writer) error {
	return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
		app := command.App(build(), commands()...)
		command.WithoutVariables(app.Commands...)
		app.Writer, app.ErrWriter = stdout, stderr
		line := []string{"nixfleet"}
		if role != "" {
			line = append(line, role)
		}
		return app.RunContext(ctx, append(line, args...))
	}
}

// called maps the names of the separate v1 tools, which scripts and units in
// the field still use, to the words that mean the same here.
var called = map[string][]string{
	"nixfleet-control-plane":   {"cp"},
	"nixfleet-agent":           {"agent"},
	"nixfleet-release":         {"release", "--allow-unverified"}, // v1 knows no trust file at release
	"nixfleet-verify-artifact": {"verify", "--all-required"},      // v1 has no defaults here
	"nixfleet-canonicalize":    {"canonicalize"},
}

// commandLine turns argv into the words after "nixfleet". The v1 agent has no
// verb: flags alone mean `agent run`.
func commandLine(args []string) []string {
	if len(args) == 0 {
		return []string{"nixfleet"}
	}
	words, rest := called[filepath.Base(args[0])], args[1:]
	line := []string{"nixfleet"}
	if len(rest) > 0 && (rest[0] == "--version" || rest[0] == "-v") {
		return append(line, "--version")
	}
	line = append(line, words...)
	if len(words) > 0 && words[0] == "agent" && (len(rest) == 0 || strings.HasPrefix(rest[0], "-") && !isHelp(rest[0])) {
		line = append(line, "run")
	}
	return append(line, rest...)
}

func isHelp(word string) bool { return word == "--help" || word == "-h" || word == "-help" }

// build is what --version prints after the name.
func build() string {
	c := commit
	if info, ok := debug.ReadBuildInfo(); ok && c == "" {
		dirty := ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				c = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "-dirty"
			}
		}
		if c != "" {
			c += dirty
		}
	}
	return version + " (commit " + cmp.Or(c, "unknown") + ")"
}
