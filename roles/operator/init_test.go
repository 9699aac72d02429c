package operator

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nixfleet/nixops/template"
	"nixfleet/roles/command"
)

// `nix flake init -t` copies the very tree that init writes.
func TestInitWithoutKeysIsTheTemplate(t *testing.T) {
	app := testApp(t)
	dir := filepath.Join(t.TempDir(), "fleet")
	if code := command.Run(t.Context(), app, []string{"nixfleet", "init", dir, "--no-keys"}); code != 0 {
		t.Fatalf("exit %d: %s", code, app.ErrWriter)
	}
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		t.Fatal(err)
	}
	have, err := filesBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := fs.Sub(template.Fleet, "fleet")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	err = fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		want = append(want, path)
		in, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		out, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(path)))
		if err == nil && !bytes.Equal(in, out) {
			t.Errorf("%s differs from the template", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(have, want) {
		t.Errorf("wrote %q, the template has %q", have, want)
	}
}

// Keys that are made in a tree without any have the names by which its README goes on.
func TestKeysByHandAreThoseOfTheReadme(t *testing.T) {
	app := testApp(t)
	readme, err := fs.ReadFile(template.Fleet, "fleet/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(readme), "\n    nixfleet keygen all ")
	if !ok {
		t.Fatal("README.md does not say how keys are made")
	}
	line, _, _ = strings.Cut(line, "\n")
	t.Chdir(t.TempDir())
	if code := command.Run(t.Context(), app, append([]string{"nixfleet", "keygen", "all"},
		strings.Fields(line)...)); code != 0 {
		t.Fatalf("exit %d: %s", code, app.ErrWriter)
	}
	named := regexp.MustCompile(`secrets/([a-z-]+(?:[.][a-z]+)+)`).FindAllStringSubmatch(string(readme), -1)
	if len(named) < 8 {
		t.Fatalf("README.md names %q", named)
	}
	for _, m := range named {
		if _, err := os.Stat(filepath.Join("secrets", strings.TrimSuffix(m[1], ".age"))); err != nil {
			t.Errorf("README.md goes on with %s: %v", m[0], err)
		}
	}
}

// docs/getting-started.md has the commands of the tree's README, which the end-to-end
// suite runs.
func TestGettingStartedHasTheCommandsOfTheTree(t *testing.T) {
	page, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := fs.ReadFile(template.Fleet, "fleet/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, steps, ok := strings.Cut(string(readme), "\n## ")
	if !ok {
		t.Fatal("README.md has no chapters")
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		documented[strings.TrimSpace(line)] = true
	}
	commands := 0
	for line := range strings.Lines(steps) {
		if !strings.HasPrefix(line, "    ") {
			continue
		}
		commands++
		if !documented[strings.TrimSpace(line)] {
			t.Errorf("docs/getting-started.md lacks %q", strings.TrimSpace(line))
		}
	}
	if commands < 15 {
		t.Errorf("README.md has %d lines of commands", commands)
	}
}

// An address stands in a URL as URLs want it, and as ssh wants it elsewhere.
func TestInitForAnIPv6Address(t *testing.T) {
	app := testApp(t)
	dir := filepath.Join(t.TempDir(), "fleet")
	if code := command.Run(t.Context(), app, []string{"nixfleet", "init", dir, "--no-keys", "--server",
		"2001:db8::1"}); code != 0 {
		t.Fatalf("exit %d: %s", code, app.ErrWriter)
	}
	for file, want := range map[string][]string{
		"README.md": {"--copy-to ssh-ng://root@[2001:db8::1] ", "| ssh root@2001:db8::1 ",
			"root@[2001:db8::1]:/var/lib/nixfleet-keys/"},
		"hosts/common.nix": {`"https://[2001:db8::1]:8080"`, `"http://[2001:db8::1]:5000"`},
	} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s has no %q", file, w)
			}
		}
	}
}

// A token in a URL would be committed, and readable in every store that the fleet's
// repository gets to.
func TestInitRefusesSecretsInURLs_T13(t *testing.T) {
	for flag, url := range map[string]string{
		"--source-url":   "git+https://oauth2:glpat-1@forge.example.com/fleet.git#main",
		"--nixfleet-url": "git+https://ghp_1@forge.example.com/nixfleet.git",
		"--cache-url":    "s3://key:secret@cache",
	} {
		app := testApp(t)
		dir := filepath.Join(t.TempDir(), "fleet")
		if code := command.Run(t.Context(), app, []string{"nixfleet", "init", dir, "--no-keys", flag, url}); code != 2 {
			t.Errorf("%s %s: exit %d, %s", flag, url, code, app.ErrWriter)
		}
		said := app.ErrWriter.(*bytes.Buffer).String()
		if !strings.Contains(said, flag+" holds a password or token") || strings.Contains(said, "glpat-1") {
			t.Errorf("it says %q", said)
		}
	}
	app := testApp(t)
	dir := filepath.Join(t.TempDir(), "fleet")
	if code := command.Run(t.Context(), app, []string{"nixfleet", "init", dir, "--no-keys", "--source-url",
		"git+ssh://git@forge.example.com:2222/fleet.git#main"}); code != 0 {
		t.Errorf("git over ssh: exit %d, %s", code, app.ErrWriter)
	}
}
