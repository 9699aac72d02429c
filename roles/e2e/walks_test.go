package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

var updateWalks = flag.Bool("update-walks", false, "write the files of each walk into docs/architecture.md anew")

const (
	architecture = "../../docs/architecture.md"
	// steps is how often a walk is taken: what is run as often belongs to it, what
	// runs by the clock does not.
	steps = 40
	// mostFiles is how many files a check-in may touch between socket and answer,
	// and longestFile how many lines each of them may have.
	mostFiles, longestFile = 20, 400
)

// block is a stretch of statements of one file, as the coverage tool names it.
type block struct {
	file  string // relative to the module
	lines string // LINE.COLUMN,LINE.COLUMN
}

// TestWalks holds the walks of docs/architecture.md to what a real executable runs:
// it counts the statements that a request passes, and compares their files with the page.
func TestWalks(t *testing.T) {
	if testing.Short() {
		t.Skip("the walks build the executable once more")
	}
	w := newWalker(t)
	for _, walk := range []struct {
		name string
		take func(*walker) map[block]int
	}{
		{"check-in", (*walker).checkin},
		{"release", (*walker).release},
		{"failed activation", (*walker).failure},
		{"revocation", (*walker).revocation},
	} {
		t.Run(strings.ReplaceAll(walk.name, " ", "-"), func(t *testing.T) {
			w.t, w.simFleet.t = t, t
			taken := walk.take(w)
			files := filesOf(taken)
			w.compare(walk.name, files)
			if walk.name == "failed activation" {
				w.once(taken, "roles/protocol/evidence.go", "ParseReport")
				w.once(taken, "roles/protocol/evidence.go", "ParseDetails")
			}
			if walk.name != "check-in" {
				return
			}
			if len(files) > mostFiles {
				t.Errorf("a check-in touches %d files, want at most %d: %s", len(files), mostFiles, strings.Join(files, " "))
			}
			for _, file := range files {
				text, err := os.ReadFile("../../" + file)
				w.must(err)
				if n := bytes.Count(text, []byte("\n")); n > longestFile {
					t.Errorf("%s has %d lines, want at most %d", file, n, longestFile)
				}
			}
		})
	}
}

// walker is a fleet of one converged host, and an executable that counts what it runs.
type walker struct {
	*simFleet
	t        *testing.T
	counting string // path of that executable
	rollout  string // id of the one that has converged
	runs     int
}

// once wants a function to run once for each step of a walk.
func (w *walker) once(walk map[block]int, file, function string) {
	w.t.Helper()
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, "../../"+file, nil, 0)
	w.must(err)
	for _, declared := range parsed.Decls {
		f, ok := declared.(*ast.FuncDecl)
		if !ok || f.Name.Name != function {
			continue
		}
		opens := set.Position(f.Body.Lbrace)
		for b, n := range walk {
			if b.file == file && strings.HasPrefix(b.lines, fmt.Sprintf("%d.", opens.Line)) {
				if n != steps {
					w.t.Errorf("%s ran %d times in %d steps", function, n, steps)
				}
				return
			}
		}
	}
	w.t.Errorf("%s of %s did not run", function, file)
}

func newWalker(t *testing.T) *walker {
	w := &walker{simFleet: newSimFleet(t, "web-01"), t: t}
	w.counting = w.path("counting")
	build := exec.Command("go", "build", "-cover", "-covermode=atomic", "-coverpkg=nixfleet/...", "-o", w.counting,
		"nixfleet")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("build an executable that counts: %v\n%s", err, out)
	}
	w.machine("web-01")
	w.simFleet.release(1)
	w.startControlPlane()
	w.write("hosts/web-01/token", w.run(binary, "mint-token", "--hostname", "web-01", "--host-pubkey",
		w.pubkeys["web-01"], "--org-root-key", w.path("keys/org-root.key")))
	stop := w.startAgent("web-01")
	w.until("the rollout has converged", func() bool {
		all, err := w.client.Rollouts(t.Context(), client.RolloutsQuery{All: true})
		if err != nil || len(all.Rollouts) == 0 {
			return false
		}
		w.rollout = all.Rollouts[0].RolloutID
		return all.Rollouts[0].State == string(protocol.RolloutConverged)
	})
	stop()
	w.stopCP()
	return w
}

// counted runs a program to its end by visit, and gives how often each block ran.
func (w *walker) counted(visit func(env string)) map[block]int {
	w.t.Helper()
	w.runs++
	dir := w.path(fmt.Sprintf("counters-%d", w.runs))
	w.must(os.Mkdir(dir, 0o700))
	visit("GOCOVERDIR=" + dir)
	text := w.simFleet.run("go", "tool", "covdata", "textfmt", "-i", dir, "-o", "/dev/stdout")
	counts := map[block]int{}
	for line := range strings.Lines(text) {
		place, numbers, ok := strings.Cut(strings.TrimPrefix(line, "nixfleet/"), " ")
		file, lines, isPlace := strings.Cut(place, ":")
		fields := strings.Fields(numbers)
		if !ok || !isPlace || len(fields) != 2 {
			continue // the mode
		}
		n, err := strconv.Atoi(fields[1])
		w.must(err)
		counts[block{file, lines}] = n
	}
	return counts
}

// serving runs a counting control plane, and with it visit.
func (w *walker) serving(visit func()) map[block]int {
	w.t.Helper()
	return w.counted(func(env string) {
		plain := w.program
		w.program = w.counting
		name, value, _ := strings.Cut(env, "=")
		w.t.Setenv(name, value)
		stop := w.serve("--poll-interval", "1h", "--checkin-interval", "60s", "--max-rate", "10000")
		w.program = plain
		w.until("the control plane answers", func() bool { _, err := w.client.Whoami(w.t.Context()); return err == nil })
		visit()
		stop()
	})
}

// taken gives the blocks that ran once more for every step.
func (w *walker) taken(prepare func(), step func(i int)) map[block]int {
	w.t.Helper()
	without := w.serving(prepare)
	with := w.serving(func() {
		prepare()
		for i := range steps {
			step(i)
		}
	})
	walk := map[block]int{}
	for b, n := range with {
		// What runs by the clock makes a difference of a few, either way.
		if more := n - without[b]; more >= steps*3/4 {
			walk[b] = more
		}
	}
	return walk
}

// checkin asks as an idle host of the fleet does that has converged.
func (w *walker) checkin() map[block]int {
	var c *client.Client
	request := w.idle()
	return w.taken(func() {
		c = w.asHost("web-01")
		_, err := c.Checkin(w.t.Context(), request, 0)
		w.must(err)
	}, func(int) {
		_, err := c.Checkin(w.t.Context(), request, 0)
		w.must(err)
	})
}

// idle is the check-in of web-01, with a confirm that it attests.
func (w *walker) idle() *protocol.CheckinRequest {
	w.t.Helper()
	key, err := pki.ReadPrivateKey(w.path("hosts/web-01/key"))
	w.must(err)
	id, at := w.rollout, pki.At(time.Now().Add(-time.Minute).Truncate(time.Second))
	signature, err := protocol.SignAttestation(key, "web-01", at, id)
	w.must(err)
	mode, uptime := "enforce", uint64(3600)
	return &protocol.CheckinRequest{
		Hostname: "web-01", AgentVersion: "0.1.0",
		LastConfirmedAt: &at, AttestationSignature: &signature, UptimeSecs: &uptime,
		CurrentGeneration: protocol.Generation{ClosureHash: simClosureName("web-01", 1), BootID: "walk"},
		HealthProbes:      []protocol.ProbeResult{{Name: "http", Kind: protocol.ProbeHTTP, Status: protocol.ProbePass}},
		HealthCheckMode:   &mode, Phase: &protocol.Phase{Name: protocol.PhaseIdle},
	}
}

// release makes one in a process of its own; what any command does is left out.
func (w *walker) release() map[block]int {
	walk := w.counted(func(env string) {
		w.t.Setenv("GOCOVERDIR", strings.TrimPrefix(env, "GOCOVERDIR="))
		plain := binary
		binary = w.counting
		w.simFleet.release(2)
		binary = plain
	})
	any := w.counted(func(env string) {
		w.t.Setenv("GOCOVERDIR", strings.TrimPrefix(env, "GOCOVERDIR="))
		w.simFleet.run(w.counting, "--version")
	})
	maps.DeleteFunc(walk, func(b block, n int) bool { return n == 0 || any[b] > 0 })
	return walk
}

// failure reports a failed activation, each time as if it were another.
func (w *walker) failure() map[block]int {
	key, err := pki.ReadPrivateKey(w.path("hosts/web-01/key"))
	w.must(err)
	id, tail, code := w.rollout, "unit failed", int32(4)
	details, err := protocol.SignEvidence(key, "web-01", &id, protocol.EventActivationFailed,
		&protocol.ActivationFailed{Phase: "health-gate", ExitCode: &code, StderrTail: &tail})
	w.must(err)
	start := time.Now().Add(-steps * time.Second).Truncate(time.Second)
	var c *client.Client
	walk := w.taken(func() {
		c = w.asHost("web-01")
		_, err := c.Whoami(w.t.Context())
		w.must(err)
	}, func(i int) {
		_, err := c.Report(w.t.Context(), &protocol.ReportRequest{
			Hostname: "web-01", AgentVersion: "0.1.0", OccurredAt: pki.At(start.Add(time.Duration(i) * time.Second)),
			Rollout: &id, Event: protocol.EventActivationFailed, Details: details,
		})
		w.must(err)
	})
	return walk
}

// revocation revokes names that no host has.
func (w *walker) revocation() map[block]int {
	return w.taken(func() {}, func(i int) {
		w.must(w.client.Revocations().Add(w.t.Context(), fmt.Sprintf("stolen-%d", i), nil, "stolen"))
	})
}

func filesOf(walk map[block]int) []string {
	var files []string
	for b := range walk {
		if !slices.Contains(files, b.file) {
			files = append(files, b.file)
		}
	}
	slices.Sort(files)
	return files
}

// compare holds the page's list of a walk's files, between two marks, to what ran.
func (w *walker) compare(name string, files []string) {
	w.t.Helper()
	page, err := os.ReadFile(architecture)
	w.must(err)
	between := regexp.MustCompile(`(?s)(<!-- files of the walk: ` + name + ` -->\n)(.*?)(<!-- end -->)`)
	match := between.FindSubmatch(page)
	if match == nil {
		w.t.Fatalf("%s has no list of files for the walk %q", filepath.Base(architecture), name)
	}
	want := filesByRoom(files)
	if string(match[2]) == want {
		return
	}
	if !*updateWalks {
		w.t.Errorf("docs/architecture.md names other files for the walk %q than those that ran:\n%s\n"+
			"run: go test ./roles/e2e -run TestWalks -update-walks", name, want)
		return
	}
	page = between.ReplaceAll(page, []byte("${1}"+want+"${3}"))
	w.must(os.WriteFile(architecture, page, 0o644))
}

// filesByRoom is the list as the page shows it: a line for each directory.
func filesByRoom(files []string) string {
	var rooms []string
	names := map[string][]string{}
	for _, file := range files {
		room := filepath.Dir(file)
		if !slices.Contains(rooms, room) {
			rooms = append(rooms, room)
		}
		names[room] = append(names[room], strings.TrimSuffix(filepath.Base(file), ".go"))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Files, %d in all:\n\n", len(files))
	for _, room := range rooms {
		line := fmt.Sprintf("- `%s`:", room)
		for i, name := range names[room] {
			if i > 0 {
				line += ","
			}
			if len(line)+len(name) > 110 {
				b.WriteString(line + "\n")
				line = " "
			}
			line += " " + name
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}
