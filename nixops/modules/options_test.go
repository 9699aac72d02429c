package modules

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/testnix"
)

const reference = "../../docs/options.md"

// chapters are the parts of the reference: a title, what to say, and the module.
var chapters = []struct{ title, about, module string }{
	{"services.nixfleet-agent", "The agent of a NixOS host (`nixosModules.agent`).", "roles/agent/module.nix"},
	{"services.nixfleet-control-plane", "The control plane (`nixosModules.control-plane`).", "roles/cp/module.nix"},
	{"nixfleet.operator", "The command line of those who run the fleet (`nixosModules.operator`).",
		"roles/operator/module.nix"},
	{"services.nixfleet-cache",
		"The fleet's binary cache as a substituter (`nixosModules.cache`). `nixfleet.cache` is another name of it.",
		"nixops/cache.nix"},
	{"nixfleet.trust",
		"The public keys that a machine believes (`nixosModules.trust`, which agent and control plane import).",
		"pki/module.nix"},
	{"services.nixfleet-agent on nix-darwin", "The agent under launchd (`darwinModules.agent`).",
		"roles/agent/darwin.nix"},
}

// documented is one option as nixpkgs' optionAttrSetToDocList describes it.
type documented struct {
	Name        string         `json:"name"`
	Description jsontext.Value `json:"description"`
	Type        string         `json:"type"`
	Default     *literal       `json:"default"`
	Example     *literal       `json:"example"`
	Internal    bool           `json:"internal"`
	ReadOnly    bool           `json:"readOnly"`
	Visible     jsontext.Value `json:"visible"`
}

type literal struct {
	Text string `json:"text"`
}

// The reference is what the modules declare today.
func TestOptionsReference(t *testing.T) {
	nixpkgsLib(t)
	var page strings.Builder
	page.WriteString(`# Options of the modules

Generated from the modules; edit those and run

    NIXPKGS_LIB=/path/to/nixpkgs/lib NIXFLEET_TEST_NIX=/path/to/nix go test ./nixops/modules -run Reference -update
`)
	for _, c := range chapters {
		var options []documented
		err := evaluate(t, fmt.Sprintf(`lib.filter (o: lib.hasPrefix "nixfleet." o.name || lib.hasPrefix "services.nixfleet-" o.name) (
  lib.optionAttrSetToDocList (import (root + "/nixops/modules/stub.nix") { inherit lib; modules = [ (root + "/%s") ]; }).options
)`, c.module), &options)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&page, "\n## %s\n\n%s\n", c.title, c.about)
		for _, o := range options {
			if o.Internal || string(o.Visible) == "false" || strings.HasPrefix(o.Name, "nixfleet.trust.") &&
				c.title != "nixfleet.trust" {
				continue
			}
			page.WriteString(o.markdown(t))
		}
	}
	if *update {
		if err := os.WriteFile(reference, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != page.String() {
		t.Errorf("%s is stale: run go test ./nixops/modules -run Reference -update", reference)
	}
}

// role is nixpkgs' markup for the name of something.
var role = regexp.MustCompile("\\{[a-z]+\\}`")

func (o *documented) markdown(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "\n### `%s`\n\n", o.Name)
	var text string
	if err := json.Unmarshal(o.Description, &text); err != nil {
		t.Fatalf("%s has no plain description: %v", o.Name, err)
	}
	fmt.Fprintf(&b, "%s\n\n- type: %s\n", strings.TrimSpace(role.ReplaceAllString(text, "`")), o.Type)
	for _, part := range []struct {
		word  string
		value *literal
	}{{"default", o.Default}, {"example", o.Example}} {
		if part.value == nil {
			if part.word == "default" {
				b.WriteString("- no default: it must be set\n")
			}
			continue
		}
		fmt.Fprintf(&b, "- %s: `%s`\n", part.word, strings.Join(strings.Fields(part.value.Text), " "))
	}
	return b.String()
}

// Every option that a module declares has its place in the reference, and nothing
// else has. This needs no nixpkgs.
func TestEveryOptionIsInTheReference(t *testing.T) {
	nix := testnix.Find(t)
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	for _, chapter := range strings.Split(string(text), "\n## ")[1:] {
		title, rest, _ := strings.Cut(chapter, "\n")
		i := slices.IndexFunc(chapters, func(c struct{ title, about, module string }) bool { return c.title == title })
		if i < 0 {
			t.Errorf("the chapter %q is of no module", title)
			continue
		}
		module, err := filepath.Abs("../../" + chapters[i].module)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(nix.Bin(), "nix-instantiate"), "--store", "dummy://", "--eval",
			"--strict", "--json",
			"--expr", fmt.Sprintf("import ./names.nix [ %s ]", module))
		cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+nix.ConfDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var declared, written []string
		if err := json.Unmarshal(out, &declared); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(rest) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "### `"); ok {
				written = append(written, strings.TrimSuffix(name, "`"))
			}
		}
		slices.Sort(declared)
		slices.Sort(written)
		for _, name := range declared {
			if !slices.Contains(written, name) {
				t.Errorf("%s declares %s, which docs/options.md does not have", chapters[i].module, name)
			}
		}
		for _, name := range written {
			if !slices.Contains(declared, name) {
				t.Errorf("docs/options.md has %s, which %s does not declare", name, chapters[i].module)
			}
		}
	}
	if n := strings.Count(string(text), "\n## "); n != len(chapters) {
		t.Errorf("docs/options.md has %d chapters, want %d", n, len(chapters))
	}
}
