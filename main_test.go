package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/operator"
)

// sources walks the Go files of the module.
func sources(t *testing.T, visit func(file string, parsed *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || file != "." && strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(file), parsed)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// allowed are the rooms that a room may import: those on the floors below it.
// Rooms that are not listed may not exist.
var allowed = map[string][]string{
	"pki":             {},
	"nixops/fleet":    {"pki"},
	"nixops":          {"pki", "nixops/fleet"},
	"nixops/testnix":  {"pki", "nixops/fleet", "nixops"},
	"nixops/lib":      {"pki", "nixops/fleet", "nixops/testnix"},
	"nixops/modules":  {"pki", "nixops/testnix"},
	"nixops/template": {},
	"roles/protocol":  {"pki", "nixops/fleet"},
	"roles/rollout":   {"pki", "nixops/fleet"},
	"store":           {"pki", "nixops/fleet", "roles/protocol", "roles/rollout"},
	"roles/cp":        {"pki", "nixops/fleet", "roles/protocol", "roles/rollout", "store", "nixops"},
	"roles/agent":     {"pki", "nixops/fleet", "roles/protocol", "roles/rollout", "store", "nixops"},
	"roles/operator":  {"pki", "nixops/fleet", "roles/protocol", "roles/rollout", "store", "nixops", "nixops/template"},
	"roles/sim":       {"pki", "nixops/fleet", "roles/protocol", "roles/rollout", "store", "nixops", "roles/cp", "roles/agent"}, // tests only
	"roles/e2e":       nil,                                                                                                      // tests only, of the built executable
	".":               {"roles/cp", "roles/agent", "roles/operator"},
}

// roomOf finds the room a package belongs to: a package inside a room may use
// that room and what the room may use.
func roomOf(dir string) string {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, ok := allowed[dir]; ok {
			return dir
		}
	}
	return "."
}

func TestFloors(t *testing.T) {
	sources(t, func(file string, parsed *ast.File) {
		dir := path.Dir(file)
		room := roomOf(dir)
		if room == "." && dir != "." {
			t.Errorf("%s lies in no room of the house", file)
		}
		if room == "roles/e2e" {
			if !strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s: roles/e2e holds tests only", file)
			}
			return
		}
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			target, ours := strings.CutPrefix(name, "nixfleet/")
			if !ours {
				continue
			}
			if to := roomOf(target); to != room && !slices.Contains(allowed[room], to) && !strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s imports %s: %s may import %v only", file, target, room, allowed[room])
			}
		}
	})
}

// TestPureRooms keeps I/O and clocks out of the rooms that decide: what they
// say must follow from what they are given.
func TestPureRooms(t *testing.T) {
	forbidden := []string{"net", "net/http", "os/exec", "os/signal", "database/sql", "math/rand", "math/rand/v2", "crypto/rand", "syscall", "os", "log"}
	sources(t, func(file string, parsed *ast.File) {
		room := roomOf(path.Dir(file))
		if room != "nixops/fleet" && room != "roles/rollout" || strings.HasSuffix(file, "_test.go") {
			return
		}
		for _, spec := range parsed.Imports {
			if name, err := strconv.Unquote(spec.Path.Value); err != nil || slices.Contains(forbidden, name) {
				t.Errorf("%s imports %s: %s does no I/O", file, name, room)
			}
		}
		for _, call := range calls(parsed) {
			switch call {
			case "time.Now", "time.Since", "time.Until", "time.After", "time.Sleep", "time.NewTimer", "time.NewTicker", "time.Tick":
				t.Errorf("%s calls %s: %s reads no clock", file, call, room)
			}
		}
	})
}

// TestOnlyMainExits: a role returns errors, and main alone ends the process.
func TestOnlyMainExits(t *testing.T) {
	sources(t, func(file string, parsed *ast.File) {
		if file == "main.go" || strings.HasSuffix(file, "_test.go") {
			return
		}
		for _, call := range calls(parsed) {
			if call == "os.Exit" || strings.HasPrefix(call, "log.Fatal") || call == "runtime.Goexit" {
				t.Errorf("%s calls %s", file, call)
			}
		}
	})
}

// calls lists the selectors called in a file, as package.Function.
func calls(parsed *ast.File) []string {
	var found []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if selector, ok := call.Fun.(*ast.SelectorExpr); ok {
				if name, ok := selector.X.(*ast.Ident); ok {
					found = append(found, name.Name+"."+selector.Sel.Name)
				}
			}
		}
		return true
	})
	return found
}

func TestNothingElseStandsAtTheTop(t *testing.T) {
	house := []string{
		".ci", ".git", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "docs", "flake.lock", "flake.nix",
		"go.mod", "go.sum", "main.go", "main_test.go", "nixops", "pki", "roles", "store",
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "nixfleet" && !slices.Contains(house, e.Name()) {
			t.Errorf("%s stands at the top of the repository", e.Name())
		}
	}
	for _, dir := range []string{"nixops", "roles", "pki", "store"} {
		rooms, err := os.ReadDir(dir)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range rooms {
			name := dir + "/" + e.Name()
			_, room := allowed[name]
			if e.IsDir() && !room && dir == "roles" {
				t.Errorf("%s is no role and no shared room", name)
			}
		}
	}
}

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
		if code := operator.Run(t.Context(), app, os.Args); code != 0 {
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
		"nixfleet status", "nixfleet rollout list", "nixfleet rollout show", "nixfleet rollout trace", "nixfleet rollout watch",
		"nixfleet host explain", "nixfleet config show", "nixfleet derive-pubkey", "nixfleet agent status",
		"nixfleet verify artifact", "nixfleet verify head", "nixfleet verify revocations", "nixfleet verify nonces", "nixfleet release",
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

// TestLessonsNameTestsThatExist holds docs/lessons.md to the code: a test that
// it names is in the package that it names.
func TestLessonsNameTestsThatExist(t *testing.T) {
	exists := map[string]bool{}
	sources(t, func(file string, parsed *ast.File) {
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				exists[path.Dir(file)+" "+f.Name.Name] = true
			}
		}
	})
	page, err := os.ReadFile("docs/lessons.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9_]+)(?:/[^`]*)?` \\(([a-z0-9/]+)\\)").FindAllStringSubmatch(string(page), -1)
	if len(named) < 50 {
		t.Fatalf("only %d tests found in the page; has its form changed?", len(named))
	}
	for _, m := range named {
		if !exists[m[2]+" "+m[1]] {
			t.Errorf("docs/lessons.md names %s in %s, which has no such test", m[1], m[2])
		}
	}
}

// TestDocsNameCommandsThatExist holds what people copy to the program: every
// command in README, docs, the template and the examples of --help, with its
// flags and variables.
func TestDocsNameCommandsThatExist(t *testing.T) {
	flags, variables := map[string][]string{}, map[string]bool{}
	for _, v := range []string{"NIXFLEET_HOST", "NIXFLEET_PATH", "NIXFLEET_CLOSURE_HASH", "NIXFLEET_INPUT", "NIXFLEET_OUTPUT", "NIXFLEET_TAGS"} {
		variables[v] = true // of hooks and probes
	}
	examples := map[string]string{}
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		flags[path] = []string{"help"}
		for _, f := range c.Flags {
			flags[path] = append(flags[path], f.Names()...)
			if doc, ok := f.(cli.DocGenerationFlag); ok {
				for _, v := range doc.GetEnvVars() {
					variables[v] = true
				}
			}
		}
		_, examples[path+" --help"], _ = strings.Cut(c.Description, "Example:")
	})
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "README.md", "nixops/template/fleet/README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		examples[page] = code(string(text))
	}
	command := regexp.MustCompile(`(?:^|[\s(|])nixfleet((?: [a-z][a-z-]*)+)([^\n|;#]*)`)
	flag := regexp.MustCompile(`\s--([a-z][a-z-]*)`)
	quoted := regexp.MustCompile(`'[^']*'|"[^"]*"`) // a hook, or another program's command
	variable := regexp.MustCompile(`NIXFLEET_[A-Z_]+[A-Z]`)
	seen := 0
	for where, text := range examples {
		text = strings.ReplaceAll(text, "\\\n", " ")
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			path, rest := "nixfleet", m[2]
			for _, word := range strings.Fields(m[1]) {
				if _, ok := flags[path+" "+word]; !ok {
					break
				}
				path += " " + word
			}
			if path == "nixfleet" {
				t.Errorf("%s: there is no command %q", where, "nixfleet"+m[1])
				continue
			}
			seen++
			for _, f := range flag.FindAllStringSubmatch(quoted.ReplaceAllString(rest, ""), -1) {
				if !slices.Contains(flags[path], f[1]) {
					t.Errorf("%s: %s has no flag --%s", where, path, f[1])
				}
			}
		}
		for _, v := range variable.FindAllString(text, -1) {
			if ours := strings.HasPrefix(v, "NIXFLEET_TEST_") || strings.HasPrefix(v, "NIXFLEET_SIM_"); !variables[v] && !ours {
				t.Errorf("%s: no flag has the variable %s", where, v)
			}
		}
	}
	if seen < 80 {
		t.Errorf("found %d commands in docs", seen)
	}
}

// code is what a page sets in fixed width: blocks, and spans on lines of their own.
func code(page string) string {
	var b strings.Builder
	fenced := false
	for line := range strings.Lines(page) {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			b.WriteString(line)
		default:
			for i, span := range strings.Split(line, "`") {
				if i%2 == 1 {
					b.WriteString(span + "\n")
				}
			}
		}
	}
	return b.String()
}

// Reason codes are stable words, listed in docs (contracts/additions.md §5), and
// so are the kinds of events.
func TestReasonsAreListed(t *testing.T) {
	source, err := os.ReadFile("roles/rollout/reasons.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t(?:Code|Event)\w+\s*= "([a-z-]+)"`).FindAllSubmatch(source, -1)
	if len(declared) < 50 {
		t.Fatalf("found %d codes and kinds in reasons.go", len(declared))
	}
	for _, m := range declared {
		if word := "`" + string(m[1]) + "`"; !strings.Contains(string(doc), word) {
			t.Errorf("docs/reasons.md does not list %s", word)
		}
	}
}
