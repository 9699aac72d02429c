package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/command/manual"
	"nixfleet/roles/operator"
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

// TestManualNamesEverything: each command and option that --help shows is in the manual, and groff has no complaint.
func TestManualNamesEverything(t *testing.T) {
	app := application()
	written := manual.Pages(app, manualPages, operator.NeverFromFile)
	walk(app.Commands, "nixfleet", func(path string, c *cli.Command) {
		words := strings.Fields(path)
		text := strings.ReplaceAll(written["nixfleet-"+words[1]+".1"], `\-`, "-")
		if len(c.Subcommands) == 0 && !strings.Contains(text, `\fB`+path+`\fR`) {
			t.Errorf("the manual has no %s", path)
		}
		for _, f := range c.VisibleFlags() {
			if name := f.Names()[0]; len(c.Subcommands) == 0 && !strings.Contains(text, `\fB--`+name+`\fR`) {
				t.Errorf("the page of %s has no --%s", path, name)
			}
		}
	})
	for _, file := range []string{"nixfleet.1", "nixfleet-config.5", "nixfleet-formats.5", "nixfleet-reasons.7"} {
		if written[file] == "" {
			t.Errorf("the manual has no %s", file)
		}
	}
	if keys := written["nixfleet-config.5"]; !strings.Contains(keys, `\fBcp_url\fR`) ||
		strings.Contains(keys, `\fBforce\fR`) {
		t.Error("nixfleet-config.5 lists other keys than those that the file may set")
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not installed")
	}
	for file, text := range written {
		roff := exec.CommandContext(t.Context(), groff, "-man", "-Tutf8", "-Kutf8", "-ww", "-z")
		roff.Stdin = strings.NewReader(text)
		if out, err := roff.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v %s", file, err, out)
		}
	}
}

// TestManFindsAPage takes a page by the words that people know it by.
func TestManFindsAPage(t *testing.T) {
	for words, title := range map[string]string{
		"man": `.TH "NIXFLEET" 1`, "man host": `.TH "NIXFLEET\-HOST" 1`, "man nixfleet-formats": `.TH "NIXFLEET\-FORMATS" 5`,
		"man config": `.TH "NIXFLEET\-CONFIG" 1`, "man config.5": `.TH "NIXFLEET\-CONFIG" 5`,
	} {
		var out bytes.Buffer
		app := application()
		app.Writer, app.ErrWriter = &out, io.Discard
		line := append([]string{"nixfleet"}, strings.Fields(words)...)
		if code := command.Run(t.Context(), app, line); code != 0 || !strings.HasPrefix(out.String(), title) {
			t.Errorf("%s ends with %d and begins %.40q, not %q", words, code, out.String(), title)
		}
	}
	app := application()
	app.Writer, app.ErrWriter = io.Discard, io.Discard
	if code := command.Run(t.Context(), app, []string{"nixfleet", "man", "hots"}); code != 2 {
		t.Errorf("a page that there is not ends with %d", code)
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
