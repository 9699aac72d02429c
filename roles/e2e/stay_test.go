package e2e

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var updateScreens = flag.Bool("update-screens", false, "write testdata/screens anew")

// stayingDemo is a demonstration after its last chapter, with the commands that it prints.
type stayingDemo struct {
	t     *testing.T
	home  string
	cmd   *exec.Cmd
	tries []string
}

// stay runs `demo --stay` until it says how to look around.
func stay(t *testing.T) *stayingDemo {
	t.Helper()
	// A socket's path is short.
	home, err := os.MkdirTemp("", "stay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	d := &stayingDemo{t: t, home: home, cmd: exec.Command(binary, "demo", "--stay", "--hosts", "6")}
	d.cmd.Env = d.environ()
	var said strings.Builder
	d.cmd.Stderr = &said
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	var told strings.Builder
	scan := bufio.NewScanner(out)
	for scan.Scan() {
		told.WriteString(scan.Text() + "\n")
		if line, found := strings.CutPrefix(scan.Text(), "  "+binary); found {
			d.tries = append(d.tries, binary+line)
		}
		if len(d.tries) == 8 {
			go io.Copy(io.Discard, out)
			return d
		}
	}
	t.Fatalf("the demonstration ended: %v\n%s%s", scan.Err(), told.String(), said.String())
	return nil
}

func (d *stayingDemo) environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.home, "TMPDIR=" + d.home}
}

// shell runs a line as a person pastes it, and returns what it printed and its exit code.
func (d *stayingDemo) shell(line string) (stdout, stderr string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Env = d.environ()
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		d.t.Fatalf("%s: %v", line, err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// nixfleet runs a command with the demonstration's configuration.
func (d *stayingDemo) nixfleet(words string) (stdout, stderr string, code int) {
	d.t.Helper()
	configs, err := filepath.Glob(filepath.Join(d.home, "nixfleet-demo-*", "config.toml"))
	if err != nil || len(configs) != 1 {
		d.t.Fatalf("configurations of the demonstration: %v %v", configs, err)
	}
	return d.shell(binary + " " + words + " --config " + configs[0])
}

// differ are texts that are another in each run, and what stands for them in a screen.
var differ = []struct {
	text *regexp.Regexp
	is   string
}{
	{regexp.MustCompile(`\(commit [^)]*\)`), "(BUILD)"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ROLLOUT"},
	{regexp.MustCompile(`\b[0-9a-f]{40}\b`), "COMMIT"},
	{regexp.MustCompile(`\b[0-9a-f]{8}\b`), "HASH"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| UTC|\+00:00)?`), "TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d`), "DATE"},
	{regexp.MustCompile(`\b(\d+[dhms])+\b`), "AGE"},
	{regexp.MustCompile(`/\S*/nixfleet-demo-\d+`), "DIR"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`operator-[^\s@]+@\S+`), "operator-NAME"},
	{regexp.MustCompile(`[ \t]+`), " "},
}

// screen is what a person sees, with what differs from run to run made the same. Columns are as wide as what
// stands in them, so runs of spaces count as one.
func screen(text string) string {
	for _, d := range differ {
		text = d.text.ReplaceAllString(text, d.is)
	}
	return strings.ReplaceAll(text, " \n", "\n")
}

// screens are commands against the control plane of the demonstration, in whose fleet a rollout is halted, with
// their exit codes.
var screens = []struct {
	name, words string
	code        int
}{
	{"status", "status", 0},
	{"status-channel", "status --channel 'ed*' --fail-on failed", 0},
	{"status-fail-on", "status --state failed --fail-on failed", 3},
	{"certs", "certs --agents 0", 0},
	{"doctor", "doctor", 1},
	{"release-show", "release show", 0},
	{"release-list", "release list", 0},
	{"rollout-list", "rollout list", 0},
	{"rollout-show", "rollout show stable", 0},
	{"rollout-trace", "rollout trace stable", 0},
	{"host-explain-canary", "host explain web-01", 0},
	{"host-explain-waiting", "host explain web-02", 0},
	{"plan", "plan", 0},
	{"host-show-canary", "host show web-01", 0},
	{"host-show-waiting", "host show web-02", 0},
	{"host-log", "host log web-01", 0},
	{"host-history", "host history web-01 --limit 6", 0},
}

// TestScreens looks at what every command prints of a running fleet, pastes what the demonstration prints, plays on,
// and closes the terminal.
func TestScreens(t *testing.T) {
	t.Parallel()
	d := stay(t)
	for _, s := range screens {
		out, said, code := d.nixfleet(s.words)
		if code != s.code {
			t.Errorf("nixfleet %s ends with %d, want %d\n%s", s.words, code, s.code, said)
			continue
		}
		d.golden(s.name, fmt.Sprintf("$ nixfleet %s\n%s%s", s.words, screen(out), screen(said)))
	}
	for _, line := range d.tries {
		if out, said, code := d.shell(line); code != 0 || out == "" {
			t.Errorf("pasted: %s\nends with %d: %s%s", line, code, out, said)
		}
	}
	// The newest demonstration is found without its directory.
	if out, said, code := d.shell(binary + " demo push good"); code != 0 ||
		out != "release 9 is pushed to both channels\n" {
		t.Errorf("push: %d %q %q", code, out, said)
	}
	// A release that waits says how it ended, and not how the one before did.
	if out, said, code := d.released(); code != 0 || !strings.Contains(said, "has converged") {
		t.Errorf("release --wait after a good one: %d %s%s", code, out, said)
	}
	if _, said, code := d.shell(binary + " demo push bad"); code != 0 {
		t.Errorf("push: %d %s", code, said)
	}
	if out, said, code := d.released(); code != 3 || !strings.Contains(said, "is halted: host web-01: activation-failed") {
		t.Errorf("release --wait after a bad one: %d %s%s", code, out, said)
	}
	if _, said, code := d.shell(binary + " demo push worse"); code != 2 {
		t.Errorf("push worse: %d %s", code, said)
	}
	d.closed()
}

// released signs the newest release of the demonstration again, and waits for its end.
func (d *stayingDemo) released() (stdout, stderr string, code int) {
	d.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(d.home, "nixfleet-demo-*"))
	if err != nil || len(dirs) != 1 {
		d.t.Fatalf("directories of the demonstration: %v %v", dirs, err)
	}
	dir := dirs[0]
	return d.nixfleet("release --resign --build-flake " + dir + "/fleet --release-dir " + dir + "/fleet/releases" +
		" --sign-key " + dir + "/keys/release.key --trust-file " + dir + "/keys/trust.json --git-push origin:main" +
		" --git-user-name ci --git-user-email ci@localhost --wait --wait-timeout 4m")
}

func (d *stayingDemo) golden(name, got string) {
	d.t.Helper()
	file := filepath.Join("testdata", "screens", name+".golden")
	if *updateScreens {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			d.t.Error(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		d.t.Error(err)
	} else if got != string(want) {
		d.t.Errorf("%s differs (go test ./roles/e2e -run TestScreens -update-screens writes it anew)\n%s\nwant\n%s", name,
			got, want)
	}
}

// closed closes the terminal: nothing of the demonstration stays behind, its keys least of all.
func (d *stayingDemo) closed() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			d.t.Errorf("after SIGHUP: %v", err)
		}
	case <-time.After(patience):
		d.t.Fatal("SIGHUP does not end it")
	}
	if left, err := filepath.Glob(filepath.Join(d.home, "*")); err != nil || len(left) != 0 {
		d.t.Errorf("left behind: %v %v", left, err)
	}
}
