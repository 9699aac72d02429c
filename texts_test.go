package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
)

var update = flag.Bool("update", false, "write docs/texts.md")

// kinds are the chapters of docs/texts.md after that of the help, in order.
var kinds = []struct{ name, about string }{
	{"Errors", "What went wrong, from the inside out: an error is often part of a longer one."},
	{"Refusals", "What the control plane answers when it does not do what is asked."},
	{"Hints", "What to do next; printed below an error, or sent with a refusal."},
	{"Reasons", "Why a host or a rollout is where it is, for `host explain`, `status`, `plan` and events."},
	{"Log messages", "The constant part of each line of a log."},
	{"Metrics", "The help texts of `/metrics`."},
	{"Output", "What commands print."},
	{"Other texts", "Strings of several words that are none of these: parts of longer texts, names, formats."},
}

// text is one string that people may be shown, with its place.
type text struct{ kind, file, symbol, words string }

// TestTextsAreListed holds docs/texts.md to the code, so that all that people are shown can
// be read in one go. After a change: go test . -run TestTextsAreListed -update
func TestTextsAreListed(t *testing.T) {
	const page = "docs/texts.md"
	want := textsPage(t)
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not current: go test . -run TestTextsAreListed -update", page)
	}
}

func textsPage(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("# Texts\n\nWhat people are shown, with its place in the code. Generated: change the code and run\n\n" +
		"    go test . -run TestTextsAreListed -update\n\n" +
		"`%s` and the like stand for what is filled in, and `{…}` for what the code puts together.\n")
	listed := textsOfCode(t)
	writeHelp(&b, listed)
	for _, kind := range kinds {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", kind.name, kind.about)
		file := ""
		for _, x := range listed {
			if x.kind != kind.name {
				continue
			}
			if x.file != file {
				file = x.file
				fmt.Fprintf(&b, "\n### %s\n\n", file)
			}
			fmt.Fprintf(&b, "- %s (%s)\n", quoted(x.words), x.symbol)
		}
	}
	return b.String()
}

// writeHelp lists commands and flags as --help shows them.
func writeHelp(b *strings.Builder, listed []text) {
	places := map[string]string{}
	for _, x := range listed {
		if _, known := places[x.words]; !known {
			places[x.words] = x.file + ":" + x.symbol
		}
	}
	shared := map[string][]string{} // a flag's line -> the commands that have it
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		for _, f := range c.VisibleFlags() {
			shared[flagLine(f)] = append(shared[flagLine(f)], path)
		}
	})
	b.WriteString("\n## Help\n")
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		fmt.Fprintf(b, "\n### %s\n\n%s (%s)\n\n", path, quoted(c.Usage), cmp.Or(places[c.Usage], "put together"))
		for line := range strings.Lines(strings.TrimSpace(c.Description)) {
			b.WriteString(strings.TrimRight("    "+line, " \n") + "\n")
		}
		b.WriteString("\n")
		for _, f := range c.VisibleFlags() {
			if len(shared[flagLine(f)]) == 1 {
				fmt.Fprintf(b, "- %s (%s)\n", flagLine(f), strings.Join(f.(cli.DocGenerationFlag).GetEnvVars(), ", "))
			}
		}
	})
	b.WriteString("\n### Flags of several commands\n\n")
	for _, line := range slices.Sorted(maps.Keys(shared)) {
		if n := len(shared[line]); n > 1 {
			fmt.Fprintf(b, "- %s (%d commands, such as %s)\n", line, n, shared[line][0])
		}
	}
}

// flagLine shows a flag without its variable, which differs between commands.
func flagLine(f cli.Flag) string {
	return fmt.Sprintf("`--%s`: %s", strings.Join(f.Names(), "`, `-"), quoted(f.(cli.DocGenerationFlag).GetUsage()))
}

// quoted shows a text on one line.
func quoted(words string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(words), "\n", "\\n"), "\t", "\\t")
}

// textsOfCode finds every string in product code that a person may be shown.
func textsOfCode(t *testing.T) []text {
	t.Helper()
	var found []text
	for _, p := range house(t) {
		if p.dir == "nixops/testnix" {
			continue
		}
		for _, file := range p.syntax {
			name := path.Join(p.dir, filepath.Base(p.files.Position(file.Pos()).Filename))
			for _, decl := range file.Decls {
				found = append(found, p.textsOf(name, decl)...)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b text) int { return strings.Compare(a.file, b.file) })
	return slices.Compact(found)
}

// textsOf finds the texts of one declaration. What a text is follows from where it stands:
// the field or the parameter that takes it.
func (p *typed) textsOf(file string, decl ast.Decl) []text {
	var found []text
	var stack []ast.Node
	symbol := ""
	if f, ok := decl.(*ast.FuncDecl); ok {
		symbol = p.symbol(f)
	}
	ast.Inspect(decl, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		stack = append(stack, n)
		skip := func() bool { stack = stack[:len(stack)-1]; return false }
		switch n := n.(type) {
		case *ast.ImportSpec:
			return skip()
		case *ast.ValueSpec:
			if symbol == "" || len(stack) <= 2 {
				symbol = n.Names[0].Name
			}
		case *ast.Field: // a tag is not text
			return n.Tag == nil || skip()
		}
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		words, isText := p.words(e)
		if !isText {
			return true
		}
		kind, sure := p.kindOf(stack)
		switch {
		case sure:
		case strings.HasSuffix(symbol, ".Error"):
			kind = "Errors"
		case strings.HasSuffix(symbol, ".Hint"):
			kind = "Hints"
		}
		if sure && verb.ReplaceAllString(words, "") != "" || prose(words) {
			found = append(found, text{kind, file, symbol, words})
		}
		return skip()
	})
	return found
}

var (
	verb     = regexp.MustCompile(`%[-+# 0-9.*]*[a-zA-Z]|[^a-zA-Z%]+`)
	twoWords = regexp.MustCompile(`[A-Za-z',;:.)]{2,} +[A-Za-z(%{]{2,}`)
	query    = regexp.MustCompile(
		`^\s*(SELECT|INSERT|UPDATE|DELETE|PRAGMA|CREATE|DROP|ALTER|VACUUM|SAVEPOINT|ROLLBACK|RELEASE|ATTACH|DETACH|ORDER BY)\b|\b(FROM|WHERE) [a-z_]+\b.*[=?]`)
)

// prose tells whether a string reads like words of a language and not like a query.
func prose(words string) bool {
	return twoWords.MatchString(words) && !query.MatchString(words) && !strings.Contains(words, "(?")
}

// words gives the text of a string expression. What is not known before the program runs
// stands in braces. It is not text when no part of it is known.
func (p *typed) words(e ast.Expr) (string, bool) {
	tv, ok := p.info.Types[e]
	if !ok || tv.Type == nil {
		return "", false
	}
	if basic, ok := tv.Type.Underlying().(*types.Basic); !ok || basic.Info()&types.IsString == 0 {
		return "", false
	}
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.StringVal(tv.Value), true
	case *ast.ParenExpr:
		return p.words(e.X)
	case *ast.BinaryExpr:
		if tv.Value != nil {
			return constant.StringVal(tv.Value), true
		}
		if e.Op != token.ADD {
			return "", false
		}
		left, l := p.words(e.X)
		right, r := p.words(e.Y)
		if !l && !r {
			return "", false
		}
		if !l {
			left = "{" + types.ExprString(e.X) + "}"
		}
		if !r {
			right = "{" + types.ExprString(e.Y) + "}"
		}
		return left + right, true
	}
	return "", false
}

// byName says what the strings of a field or parameter of this name are.
var byName = map[string]string{
	"Usage": "Help", "Description": "Help", "UsageText": "Help", "ArgsUsage": "Help", "usage": "Help",
	"Hint": "Hints", "hint": "Hints", "Next": "Hints", "next": "Hints", "mend": "Hints",
	"Help": "Metrics", "help": "Metrics",
	"Msg": "Log messages", "msg": "Log messages",
}

// kindOf tells what the innermost expression of a stack of nodes is for. A string that
// stands there by itself is sure to be a text; a part of one may be anything.
func (p *typed) kindOf(stack []ast.Node) (kind string, sure bool) {
	for i := len(stack) - 2; i >= 0; i-- {
		outer, inner, kind := stack[i], stack[i+1], ""
		switch outer := outer.(type) {
		case *ast.KeyValueExpr:
			if key, ok := outer.Key.(*ast.Ident); ok && inner == outer.Value {
				kind = byName[key.Name]
			}
		case *ast.CompositeLit:
			kind = p.kindOfElement(outer, inner)
		case *ast.CallExpr:
			kind = p.kindOfArgument(outer, inner)
		case *ast.FuncLit, ast.Stmt:
			return p.otherwise(), false
		}
		if kind != "" {
			return kind, i == len(stack)-2
		}
	}
	return p.otherwise(), false
}

// otherwise is the kind of a string that nothing tells more of.
func (p *typed) otherwise() string {
	if p.dir == "roles/rollout" {
		return "Reasons"
	}
	return "Other texts"
}

// kindOfElement tells what an element of a struct literal without keys is, by the name of
// its field.
func (p *typed) kindOfElement(literal *ast.CompositeLit, element ast.Node) string {
	s, ok := p.info.TypeOf(literal).Underlying().(*types.Struct)
	if !ok {
		return ""
	}
	for i, e := range literal.Elts {
		if e == element && i < s.NumFields() {
			return byName[s.Field(i).Name()]
		}
	}
	return ""
}

// kindOfArgument tells what a function makes of an argument, by the function or the name
// of the parameter.
func (p *typed) kindOfArgument(call *ast.CallExpr, argument ast.Node) string {
	at := slices.IndexFunc(call.Args, func(a ast.Expr) bool { return a == argument })
	var called types.Object
	switch f := call.Fun.(type) {
	case *ast.Ident:
		called = p.info.Uses[f]
	case *ast.SelectorExpr:
		called = p.info.Uses[f.Sel]
	}
	f, ok := called.(*types.Func)
	if !ok || f.Pkg() == nil || at < 0 {
		return ""
	}
	role := strings.HasPrefix(p.dir, "roles/")
	switch from := f.Pkg().Path() + "." + f.Name(); {
	case from == "errors.New", from == "fmt.Errorf":
		return "Errors"
	case from == "net/http.Error", p.dir == "roles/cp" && strings.Contains(strings.ToLower(f.Name()), "refus"):
		return "Refusals"
	case strings.HasPrefix(from, "fmt.Fprint") && role:
		return "Output"
	case strings.HasPrefix(from, "github.com/rs/zerolog.Msg"):
		return "Log messages"
	case strings.HasPrefix(from, "regexp."), strings.HasPrefix(from, "fmt."):
		return ""
	}
	parameters, results := f.Signature().Params(), f.Signature().Results()
	if parameters.Len() == 0 {
		return ""
	}
	switch name := parameters.At(min(at, parameters.Len()-1)).Name(); {
	case f.Name() == "Hinted" && name == "format":
		return "Hints"
	case results.Len() == 1 && results.At(0).Type().String() == "error" && name == "format":
		return "Errors"
	case slices.Contains([]string{"Say", "say", "Title", "Detail", "print"}, f.Name()):
		return "Output"
	default:
		return byName[name]
	}
}

// unrunnable are commands that a hint may name and a test may not run: they would build or sign.
var unrunnable = []string{"nixfleet release", "nixfleet init"}

// TestHintsWorkWhenPasted takes every command out of what people are shown and checks that it exists with its flags.
// Those that ask a control plane are run, without one: they may fail for want of it, and not because the hint is not
// a whole command. `--reason` was missing from four hints once.
func TestHintsWorkWhenPasted(t *testing.T) {
	listed := textsOfCode(t) // before HOME, where the compiler's cache is, is another
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("NIXFLEET_CONFIG", filepath.Join(home, "config.toml"))
	for _, name := range []string{"CP_URL", "CA_CERT", "CLIENT_CERT", "CLIENT_KEY"} {
		t.Setenv("NIXFLEET_"+name, "")
	}
	if err := os.WriteFile(os.Getenv("NIXFLEET_CONFIG"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	commands := map[string]*cli.Command{}
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) { commands[path] = c })
	t.Chdir(home)
	seen, ran := 0, map[string]bool{}
	for _, text := range listed {
		if strings.Contains(text.words, "Example:") || text.kind == "Log messages" {
			continue // TestDocsNameCommandsThatExist looks at examples
		}
		for _, words := range commandsIn(text.words, commands) {
			seen++
			where := text.file + ":" + text.symbol + ": " + strings.Join(words, " ")
			path, rest := split(words, commands)
			c := commands[path]
			asks := false
			for _, f := range c.Flags {
				asks = asks || slices.Contains(f.Names(), "cp-url")
			}
			for _, word := range rest {
				name, isFlag := strings.CutPrefix(word, "--")
				if isFlag && name != "help" && !slices.ContainsFunc(c.Flags, func(f cli.Flag) bool {
					return slices.Contains(f.Names(), name)
				}) {
					t.Errorf("%s: %s has no flag %s", where, path, word)
				}
			}
			if !asks || slices.Contains(unrunnable, path) || ran[strings.Join(words, " ")] {
				continue
			}
			ran[strings.Join(words, " ")] = true
			var out, said bytes.Buffer
			app := application()
			app.Writer, app.ErrWriter = &out, &said
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			code := command.Run(ctx, app, words)
			cancel()
			if code == 2 {
				t.Errorf("%s\nis not a whole command: %s", where, said.String())
			}
		}
	}
	if seen < 80 || len(ran) < 25 {
		t.Errorf("found %d commands in hints, %d of them ask a control plane", seen, len(ran))
	}
}

var (
	pasted      = regexp.MustCompile(`\bnixfleet( [a-z][a-z0-9-]*)+`)
	placeholder = regexp.MustCompile(`^(%[a-z]|\{.*\}|[A-Z][A-Z0-9_-]*)$`)
)

// commandsIn are the command lines in a text, with something in the place of what is filled in. A line ends where
// prose goes on.
func commandsIn(words string, commands map[string]*cli.Command) (lines [][]string) {
	for _, at := range pasted.FindAllStringIndex(words, -1) {
		one, _, _ := strings.Cut(words[at[0]:], "\n")
		fields := strings.Fields(strings.NewReplacer("{", " {", "}", "} ", ";", " ; ").Replace(one))
		path, rest := split(fields, commands)
		if path == "nixfleet" {
			continue // a sentence about nixfleet
		}
		line := strings.Fields(path)
		wants := ""
		for i := 0; i < len(rest); i++ {
			word := strings.TrimRight(rest[i], ",.):")
			last := i == len(rest)-1 || rest[i+1] == ";" || strings.HasPrefix(rest[i+1], "--")
			switch {
			case strings.HasPrefix(word, "--"):
				line, wants = append(line, word), valueOf(commands[path], word)
				continue
			case wants != "":
				line, wants = append(line, filled(wants, word)), ""
				continue
			case placeholder.MatchString(word) || strings.HasPrefix(word, "'"),
				last && commands[path].ArgsUsage != "" && len(line) == len(strings.Fields(path)):
				line = append(line, filled("", word))
				continue
			}
			rest = rest[:i]
		}
		// A command that is named without its words is talked of, and not to be pasted.
		args := commands[path].ArgsUsage
		if len(line) > len(strings.Fields(path)) || args == "" || args[0] == '[' {
			lines = append(lines, line)
		}
	}
	return lines
}

// valueOf is the name of a flag that takes a value, else empty.
func valueOf(c *cli.Command, word string) string {
	name := strings.TrimPrefix(word, "--")
	for _, f := range c.Flags {
		if d, ok := f.(cli.DocGenerationFlag); ok && slices.Contains(f.Names(), name) && d.TakesValue() {
			return name
		}
	}
	return ""
}

// filled is what stands for a word that somebody fills in.
func filled(flag, word string) string {
	switch {
	case flag == "cp-url":
		return "https://127.0.0.1:1"
	case placeholder.MatchString(word) || strings.HasPrefix(word, "'"):
		return "filled-in"
	}
	return word
}

// split parts a line into the longest command that there is, and the rest.
func split(fields []string, commands map[string]*cli.Command) (path string, rest []string) {
	path, rest = fields[0], fields[1:]
	for len(rest) > 0 && commands[path+" "+strings.TrimRight(rest[0], ";,.):")] != nil {
		whole := strings.TrimRight(rest[0], ";,.):")
		path += " " + whole
		if whole != rest[0] {
			return path, nil
		}
		rest = rest[1:]
	}
	return path, rest
}
