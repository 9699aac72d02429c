package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The law of the house: which room may import which, which rooms do no I/O, who
// may end the process, and what stands at the top. How large a thing may be is
// in size_test.go, and what the pages in docs must say is in docs_test.go.

// allowed are the rooms that a room's product code may import. A package that has
// no row belongs to the nearest room above it. A package with a row of its own is a
// room of its own, also when it lies inside another: roles/cp may import
// roles/cp/source only because its row says so, and roles/cp/source may not import
// roles/cp.
var allowed = map[string][]string{
	"pki":                   {},
	"nixops/disk":           {},
	"nixops/git":            {"pki"},
	"nixops/loader":         {"nixops/disk"},
	"nixops/fleet":          {"pki"},
	"nixops":                {"nixops/disk", "nixops/fleet", "nixops/git", "nixops/loader", "pki"},
	"nixops/sim":            {"nixops", "nixops/disk"},
	"nixops/testnix":        {"nixops"}, // for tests only
	"nixops/lib":            {},         // Nix and its tests
	"nixops/modules":        {},         // Nix and its tests
	"nixops/template":       {},
	"roles/protocol":        {"nixops/fleet", "pki"},
	"roles/protocol/client": {"nixops/fleet", "pki", "roles/protocol"},
	"roles/rollout":         {"nixops/fleet", "pki", "roles/protocol"},
	"store":                 {"pki", "roles/protocol", "roles/rollout"},
	"docs":                  {}, // the pages that the manual shows
	"roles/command":         {"pki"},
	"roles/command/manual":  {"roles/command"},
	"roles/cp": {"nixops/fleet", "pki", "roles/command", "roles/cp/notify", "roles/cp/page", "roles/cp/source",
		"roles/cp/tick",
		"roles/protocol", "roles/protocol/client", "roles/rollout", "store"},
	"roles/cp/page":   {"nixops/fleet", "pki", "roles/command", "roles/protocol", "roles/protocol/client"},
	"roles/cp/notify": {"nixops/disk"},
	"roles/cp/source": {"nixops/disk", "nixops/fleet", "nixops/git", "pki"},
	"roles/cp/tick": {"nixops/fleet", "pki", "roles/command", "roles/cp/source", "roles/protocol",
		"roles/rollout"},
	"roles/agent": {"nixops", "nixops/disk", "nixops/fleet", "nixops/sim", "pki", "roles/agent/journal",
		"roles/agent/undo",
		"roles/agent/verify", "roles/command", "roles/protocol", "roles/protocol/client"},
	"roles/agent/journal": {"nixops", "nixops/disk", "pki", "roles/protocol"},
	"roles/agent/undo":    {"nixops", "roles/agent/journal", "roles/protocol"},
	"roles/agent/verify":  {"nixops/disk", "nixops/fleet", "pki", "roles/agent/journal", "roles/protocol"},
	"roles/operator": {"nixops/disk", "nixops/fleet", "nixops/git", "nixops/template", "pki", "roles/command",
		"roles/operator/demo", "roles/operator/release", "roles/protocol", "roles/protocol/client"},
	"roles/operator/release": {"nixops", "nixops/disk", "nixops/fleet", "nixops/git", "pki", "roles/command"},
	"roles/operator/demo": {"nixops", "nixops/fleet", "nixops/git", "nixops/sim", "pki", "roles/command",
		"roles/protocol", "roles/protocol/client"},
	"roles/sim": {}, // tests of several roles in one process
	"roles/e2e": {}, // tests of the built executable
	".": {"docs", "roles/agent", "roles/command", "roles/command/manual", "roles/cp", "roles/cp/page",
		"roles/operator"},
}

// testRooms hold tests only.
var testRooms = []string{"roles/sim", "roles/e2e"}

// pure are the rooms that decide: what they say follows from what they are given.
var pure = []string{"nixops/fleet", "roles/protocol", "roles/rollout"}

// roomOf finds the room that a package belongs to.
func roomOf(dir string) string {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, ok := allowed[dir]; ok {
			return dir
		}
	}
	return "."
}

func TestFloors(t *testing.T) {
	used, rooms := map[string]bool{}, map[string]bool{}
	sources(t, func(file string, parsed *ast.File) {
		dir := path.Dir(file)
		room := roomOf(dir)
		rooms[room] = true
		if room == "." && dir != "." {
			t.Errorf("%s lies in no room of the house", file)
		}
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		if slices.Contains(testRooms, room) && len(parsed.Decls) > 0 {
			t.Errorf("%s: %s holds tests only", file, room)
		}
		for _, name := range imports(t, parsed) {
			target, ours := strings.CutPrefix(name, "nixfleet/")
			if !ours {
				continue
			}
			to := roomOf(target)
			used[room+" "+to] = true
			if to != room && !slices.Contains(allowed[room], to) {
				t.Errorf("%s imports %s: %s may import %v only", file, target, room, allowed[room])
			}
		}
	})
	for room, others := range allowed {
		if !rooms[room] {
			t.Errorf("%s is not a room any more: delete its row", room)
		}
		for _, other := range others {
			if !used[room+" "+other] {
				t.Errorf("%s does not import %s any more: delete it from its row", room, other)
			}
		}
	}
}

// TestPureRooms keeps I/O, clocks and goroutines out of the rooms that decide. It
// reads types, so that `clock := time.Now` counts as much as a call does, and a
// function of ours counts when its file does I/O.
func TestPureRooms(t *testing.T) {
	packages := []string{
		"bytes", "cmp", "embed", "encoding/base64", "encoding/binary", "errors", "fmt", "io", "io/fs", "maps", "math",
		"reflect", "regexp", "slices", "sort", "strconv", "strings", "time", "unicode", "unicode/utf8",
		"github.com/go-json-experiment/json", "github.com/go-json-experiment/json/jsontext",
	}
	clocks := []string{
		"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Ticker", "Timer", "Until", "Local",
		"LoadLocation",
	}
	impure := filesWithIO(t, "pki")
	for _, p := range house(t) {
		room := roomOf(p.dir)
		if !slices.Contains(pure, room) {
			continue
		}
		for _, file := range p.syntax {
			for _, name := range imports(t, file) {
				target, ours := strings.CutPrefix(name, "nixfleet/")
				if !ours && !slices.Contains(packages, name) {
					t.Errorf("%s imports %s, which is not on the list of what a pure room may import", p.place(file), name)
				}
				if ours && target != "pki" && !slices.Contains(pure, roomOf(target)) {
					t.Errorf("%s imports %s, which is not a pure room", p.place(file), target)
				}
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n.(type) {
				case *ast.GoStmt, *ast.SelectStmt, *ast.SendStmt, *ast.ChanType:
					t.Errorf("%s: a pure room has no goroutines and no channels", p.place(n))
				}
				return true
			})
		}
		for name, object := range p.info.Uses {
			if object.Pkg() == nil {
				continue
			}
			_, function := object.(*types.Func)
			switch object.Pkg().Path() {
			case "time":
				if isTop(object) && slices.Contains(clocks, object.Name()) {
					t.Errorf("%s uses time.%s: a pure room reads no clock", p.place(name), object.Name())
				}
			case "fmt":
				if strings.HasPrefix(object.Name(), "Print") || strings.HasPrefix(object.Name(), "Scan") {
					t.Errorf("%s uses fmt.%s: a pure room does no I/O", p.place(name), object.Name())
				}
			case "nixfleet/pki":
				if file := filepath.Base(p.files.Position(object.Pos()).Filename); function && impure[file] {
					t.Errorf("%s uses pki.%s of %s, which does I/O", p.place(name), object.Name(), file)
				}
			}
		}
	}
}

// filesWithIO are the files of a package that run programs, or read files, the
// network or randomness.
func filesWithIO(t *testing.T, dir string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	sources(t, func(file string, parsed *ast.File) {
		for _, name := range imports(t, parsed) {
			if path.Dir(file) == dir && slices.Contains([]string{"os", "os/exec", "net", "syscall", "crypto/rand"}, name) {
				found[path.Base(file)] = true
			}
		}
	})
	return found
}

// TestOnlyMainExits: a role returns errors, and main alone ends the process.
func TestOnlyMainExits(t *testing.T) {
	exits := []string{
		"os.Exit", "syscall.Exit", "runtime.Goexit", "log.Fatal", "log.Fatalf", "log.Fatalln", "log.Panic", "log.Panicf",
		"log.Panicln",
	}
	for _, p := range house(t) {
		for name, object := range p.info.Uses {
			if object.Pkg() == nil || !isTop(object) {
				continue
			}
			if used := object.Pkg().Path() + "." + object.Name(); slices.Contains(exits, used) && p.dir != "." {
				t.Errorf("%s uses %s", p.place(name), used)
			}
		}
	}
}

func TestNothingElseStandsAtTheTop(t *testing.T) {
	top := []string{
		".ci", ".git", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "docs", "findings", "flake.lock", "flake.nix",
		"go.mod", "go.sum", "main.go", "nixops", "pki", "roles", "store",
		"main_test.go", "house_test.go", "size_test.go", "skips_test.go", "docs_test.go", "texts_test.go",
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "nixfleet" && !slices.Contains(top, e.Name()) {
			t.Errorf("%s stands at the top of the repository", e.Name())
		}
	}
	rooms, err := os.ReadDir("roles")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range rooms {
		if _, room := allowed["roles/"+e.Name()]; e.IsDir() && !room {
			t.Errorf("roles/%s is neither a role nor a shared room", e.Name())
		}
	}
}

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

// imports lists what a file imports.
func imports(t *testing.T, parsed *ast.File) []string {
	t.Helper()
	var names []string
	for _, spec := range parsed.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// isTop tells whether an object is declared at the top of its package: a function,
// type or variable, not a method or field of the same name.
func isTop(object types.Object) bool {
	return object.Parent() != nil && object.Parent() == object.Pkg().Scope()
}

// A typed package is the product code of one package with its types. Tests are not
// part of it.
type typed struct {
	dir    string // below the module, "." for main
	files  *token.FileSet
	syntax []*ast.File
	info   *types.Info
	scope  *types.Scope
}

// place names where a node stands.
func (p *typed) place(n ast.Node) string {
	at := p.files.Position(n.Pos())
	return path.Join(p.dir, filepath.Base(at.Filename)) + ":" + strconv.Itoa(at.Line)
}

// house gives every package of the module with its types, read once.
func house(t *testing.T) []*typed {
	t.Helper()
	packages, err := readHouse()
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

// readHouse has the go command compile what the module imports, and checks the
// types of the module's own packages against that.
var readHouse = sync.OnceValues(func() ([]*typed, error) {
	list := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,GoFiles,Export,Module", "./...")
	var stderr strings.Builder
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return nil, errors.New("go list: " + err.Error() + "\n" + stderr.String())
	}
	files, exports := token.NewFileSet(), map[string]string{}
	imported := importer.ForCompiler(files, "gc",
		func(name string) (io.ReadCloser, error) { return os.Open(exports[name]) })
	var packages []*typed
	for decoder := json.NewDecoder(bytes.NewReader(out)); decoder.More(); { // in the order of imports
		var p struct {
			ImportPath, Dir, Export string
			GoFiles                 []string
			Module                  *struct{ Main bool }
		}
		if err := decoder.Decode(&p); err != nil {
			return nil, err
		}
		exports[p.ImportPath] = p.Export
		if p.Module == nil || !p.Module.Main {
			continue
		}
		read := &typed{dir: path.Clean("./" + strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, "nixfleet"), "/")),
			files: files}
		for _, name := range p.GoFiles {
			parsed, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				return nil, err
			}
			read.syntax = append(read.syntax, parsed)
		}
		read.info = &types.Info{
			Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{},
			Selections: map[*ast.SelectorExpr]*types.Selection{},
		}
		checker := types.Config{Importer: imported}
		checked, err := checker.Check(p.ImportPath, files, read.syntax, read.info)
		if err != nil {
			return nil, err
		}
		read.scope = checked.Scope()
		packages = append(packages, read)
	}
	return packages, nil
})
