package template

import (
	"io/fs"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"
)

// jobs are the files of the forges: one that releases, one that renews, or both.
func jobs(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, pattern := range []string{"fleet/.github/workflows/*.yml", "fleet/.forgejo/workflows/*.yml",
		"fleet/.gitlab-ci.yml"} {
		names, err := fs.Glob(Fleet, pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v, %v", pattern, names, err)
		}
		for _, name := range names {
			text, err := fs.ReadFile(Fleet, name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = string(text)
		}
	}
	if len(files) != 5 {
		t.Fatalf("%d files of forges", len(files))
	}
	return files
}

// commands are the shell lines of a job: `run: …`, a `run: |` block, and the lists below
// `script:` and `before_script:`.
func commands(text string) []string {
	var found []string
	depth := -1 // indentation of the key whose lines follow
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if trimmed == "" || strings.HasPrefix(trimmed, "#") {
			continue
		}
		if depth >= 0 && indent > depth {
			found = append(found, strings.TrimPrefix(trimmed, "- "))
			continue
		}
		depth = -1
		key, value, _ := strings.Cut(strings.TrimPrefix(trimmed, "- "), ":")
		switch value = strings.TrimSpace(value); {
		case key == "run" && value != "|":
			found = append(found, value)
		case key == "run", key == "script", key == "before_script":
			depth = indent
		}
	}
	return found
}

func syntax(t *testing.T, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, script)
	}
}

var released = regexp.MustCompile(`^sh (ci/release\.sh)( --resign)?$`)

// Every forge runs the one script, which the end-to-end suite runs too, both for a push
// and by a timer.
func TestForgesRunTheScript(t *testing.T) {
	for name, text := range jobs(t) {
		if strings.Contains(text, "\t") {
			t.Errorf("%s has a tab, which YAML does not take for indentation", name)
		}
		lines := commands(text)
		syntax(t, strings.Join(lines, "\n"))
		var release, resign bool
		for _, line := range lines {
			m := released.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			if _, err := fs.Stat(Fleet, path.Join("fleet", m[1])); err != nil {
				t.Errorf("%s runs %s: %v", name, m[1], err)
			}
			release, resign = release || m[2] == "", resign || m[2] != ""
		}
		gitlab := path.Base(name) == ".gitlab-ci.yml"
		if release != (gitlab || path.Base(name) == "release.yml") || resign != (gitlab || path.Base(name) == "resign.yml") {
			t.Errorf("%s releases: %t, renews: %t; it runs %q", name, release, resign, lines)
		}
		if timed := strings.Contains(text, "- cron:") ||
			gitlab && strings.Contains(text, `$CI_PIPELINE_SOURCE == "schedule"`); timed != resign {
			t.Errorf("%s has a timer: %t", name, timed)
		}
		// One at a time, since each is made on top of the one before.
		if !strings.Contains(text, "group: nixfleet-release\n") {
			t.Errorf("%s may run beside another", name)
		}
	}
}

// Secrets reach a job by its environment: text put into a command line by the forge
// could be a command of its own, and is seen in the list of processes and in logs.
func TestSecretsStayOutOfCommands(t *testing.T) {
	for name, text := range jobs(t) {
		for _, line := range commands(text) {
			if strings.Contains(line, "${{") {
				t.Errorf("%s puts text of the forge into %q", name, line)
			}
			for _, secret := range []string{"RELEASE_KEY", "CACHE_KEY"} {
				if strings.Contains(line, secret) {
					t.Errorf("%s names a secret in %q", name, line)
				}
			}
		}
	}
	script, err := fs.ReadFile(Fleet, "fleet/ci/release.sh")
	if err != nil {
		t.Fatal(err)
	}
	syntax(t, string(script))
	// Only the printf of the shell itself, which is not a process, may be handed a key.
	for line := range strings.Lines(string(script)) {
		line = strings.TrimSpace(line)
		if (strings.Contains(line, "$RELEASE_KEY") || strings.Contains(line, "$CACHE_KEY")) &&
			!strings.Contains(line, "printf ") && !strings.HasPrefix(line, "case ") && !strings.HasPrefix(line, "#") {
			t.Errorf("a key is handed on in %q", line)
		}
	}
	unset, called := strings.Index(string(script), "\nunset RELEASE_KEY CACHE_KEY\n"),
		strings.Index(string(script), "\nnixfleet release ")
	if unset < 0 || called < unset {
		t.Error("what builds the fleet inherits the keys")
	}
}

var pinned = regexp.MustCompile(`^[a-z0-9-]+/[a-z0-9-]+@[0-9a-f]{40} # v[0-9]+\.[0-9]+\.[0-9]+$`)

// What a job that holds the release key runs of others is named by its commit: whoever
// may move a tag could otherwise sign the next release.
func TestActionsArePinned(t *testing.T) {
	var found int
	for name, text := range jobs(t) {
		for line := range strings.Lines(text) {
			_, action, ok := strings.Cut(line, "uses: ")
			if !ok {
				continue
			}
			found++
			if !pinned.MatchString(strings.TrimSpace(action)) {
				t.Errorf("%s uses %s, want a commit and its version as a comment", name, action)
			}
		}
	}
	if found != 4 {
		t.Errorf("%d actions are used", found)
	}
}
