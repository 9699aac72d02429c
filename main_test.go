package main

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
)

func TestCommandLineByName(t *testing.T) {
	for _, c := range []struct{ argv, want string }{
		{"nixfleet status --json", "nixfleet status --json"},
		{"/run/current-system/sw/bin/nixfleet cp serve", "nixfleet cp serve"},
		{"./anything status", "nixfleet status"},
		{"nixfleet-control-plane serve --listen :1", "nixfleet cp serve --listen :1"},
		{"/nix/store/x/bin/nixfleet-control-plane tick", "nixfleet cp tick"},
		{"nixfleet-agent --machine-id a", "nixfleet agent run --machine-id a"},
		{"nixfleet-agent", "nixfleet agent run"},
		{"nixfleet-agent status", "nixfleet agent status"},
		{"nixfleet-agent --help", "nixfleet agent --help"},
		{"nixfleet-agent --version", "nixfleet --version"},
		{"nixfleet-release --sign-cmd x", "nixfleet release --allow-unverified --sign-cmd x"},
		{"nixfleet-verify-artifact artifact --now x", "nixfleet verify --all-required artifact --now x"},
		{"nixfleet-canonicalize", "nixfleet canonicalize"},
		{"nixfleet-canonicalize --version", "nixfleet --version"},
		{"nixfleet", "nixfleet"},
	} {
		if got := strings.Join(commandLine(strings.Fields(c.argv)), " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.argv, got, c.want)
		}
	}
	if got := commandLine(nil); len(got) != 1 {
		t.Errorf("no argv at all: %q", got)
	}
}

// walk visits every command of the three roles that people can see.
func walk(commands []*cli.Command, path string, visit func(path string, c *cli.Command)) {
	for _, c := range commands {
		if c.Hidden {
			continue
		}
		visit(path+" "+c.Name, c)
		walk(c.Subcommands, path+" "+c.Name, visit)
	}
}

func TestEveryCommandHasAnExampleInItsHelp(t *testing.T) {
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		if c.Usage == "" {
			t.Errorf("%s has no one-line usage", path)
		}
		_, example, ok := strings.Cut(c.Description+c.UsageText, "Example")
		if !ok || !strings.Contains(example, "nixfleet") {
			t.Errorf("%s --help shows no example", path)
		}
	})
}

// TestCompletionNamesEverything: the scripts of all shells ask the executable.
func TestCompletionNamesEverything(t *testing.T) {
	defer func(args []string) { os.Args = args }(os.Args)
	suggested := func(words ...string) []string {
		var out bytes.Buffer
		app := application()
		app.Writer, app.ErrWriter = &out, io.Discard
		os.Args = append(words, "--generate-bash-completion") // where the library looks for the last word
		if code := command.Run(t.Context(), app, os.Args); code != 0 {
			t.Errorf("%s ends with %d", words, code)
		}
		return strings.Fields(out.String())
	}
	check := func(path string, got []string, want string) {
		if !slices.Contains(got, want) {
			t.Errorf("%s is completed to %v, without %s", path, got, want)
		}
	}
	visible := map[string][]string{}
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		parent := strings.TrimSuffix(path, " "+c.Name)
		visible[parent] = append(visible[parent], c.Name)
		flags := suggested(append(strings.Fields(path), "--")...)
		for _, f := range c.VisibleFlags() {
			check(path+" --", flags, "--"+f.Names()[0])
		}
		if got := suggested(append(strings.Fields(path), "--", "")...); len(got) > 0 {
			t.Errorf("%s -- is followed by %v", path, got)
		}
	})
	for parent, names := range visible {
		commands := suggested(strings.Fields(parent)...)
		for _, name := range names {
			check(parent, commands, name)
		}
	}
}

func TestEveryFlagHasAVariable(t *testing.T) {
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		for _, f := range c.Flags {
			doc, ok := f.(cli.DocGenerationFlag)
			if !ok || f.Names()[0] == "help" {
				continue
			}
			if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
				continue
			}
			if vars := doc.GetEnvVars(); len(vars) == 0 || !strings.HasPrefix(vars[0], "NIXFLEET_") {
				t.Errorf("%s --%s has no NIXFLEET_ variable", path, f.Names()[0])
			}
			if doc.GetUsage() == "" {
				t.Errorf("%s --%s is not explained", path, f.Names()[0])
			}
		}
	})
}

// TestWhatReadsPrintsJSON: whatever a person can read a program can read.
func TestWhatReadsPrintsJSON(t *testing.T) {
	readers := []string{
		"nixfleet release list", "nixfleet release show", "nixfleet doctor", "nixfleet token inspect",
		"nixfleet host show", "nixfleet host log", "nixfleet host history",
		"nixfleet status", "nixfleet rollout list", "nixfleet rollout show", "nixfleet rollout trace",
		"nixfleet rollout watch",
		"nixfleet revocations list",
		"nixfleet host explain", "nixfleet config show", "nixfleet derive-pubkey", "nixfleet agent status",
		"nixfleet agent preview",
		"nixfleet verify artifact", "nixfleet verify head", "nixfleet verify revocations", "nixfleet verify nonces",
		"nixfleet release", "nixfleet import-v1", "nixfleet certs",
	}
	seen := map[string]bool{}
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		seen[path] = slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), "json") })
	})
	for _, path := range readers {
		if json, there := seen[path]; !there || !json {
			t.Errorf("%s: there %v, --json %v", path, there, json)
		}
	}
}

func TestVersionNamesACommit(t *testing.T) {
	commit = "0123456789abcdef"
	defer func() { commit = "" }()
	if got := build(); got != version+" (commit 0123456789abcdef)" {
		t.Errorf("build() = %q", got)
	}
}
