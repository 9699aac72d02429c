package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// releasing runs the release with more variables, as a CI job or a hook would have them.
func (f *nixFleet) releasing(more []string, flags ...string) (string, error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(append(f.releaseWords(), f.properly()...), flags...)...)
	cmd.Dir, cmd.Env = f.checkout(""), append(f.environment(), more...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// commits are those of a repository's branch main.
func (f *nixFleet) commits(repository string) string {
	f.t.Helper()
	return f.command(f.dir, "git", "-C", repository, "log", "--format=%H", "main")
}

// TestNixReleaseInAHookAndInAnothersCheckout releases with a real Nix, which runs git by itself to read the flake,
// where CI systems do: in the hook of another repository, which exports that repository's name, and in a container
// whose checkout belongs to another user.
func TestNixReleaseInAHookAndInAnothersCheckout(t *testing.T) {
	t.Parallel()
	f := newNixFleet(t, map[string]string{"web-1": "stable"})
	other := filepath.Join(f.dir, "other")
	f.git("init", "--quiet", "--initial-branch=main", other)
	f.write(filepath.Join(other, "precious"), "x", 0o644)
	f.git("-C", other, "add", "-A")
	f.git("-C", other, "-c", "user.name=jo", "-c", "user.email=jo@fleet.test", "commit", "--quiet", "-m", "precious")
	precious, source := f.commits(other), f.commits(f.checkout(""))

	f.edit("hooked", "web-1")
	out, err := f.releasing([]string{"GIT_DIR=" + filepath.Join(other, ".git"), "GIT_WORK_TREE=" + other,
		"GIT_INDEX_FILE=" + filepath.Join(other, ".git/index"), "GIT_PREFIX=", "GIT_QUARANTINE_PATH=" + other})
	if err != nil {
		t.Fatalf("in a hook of another repository: %v\n%s", err, out)
	}
	if now := f.commits(other); now != precious {
		t.Errorf("the release went into the repository of the hook: %s", now)
	}
	if n := strings.Count(f.commits(f.checkout("")), "\n") - strings.Count(source, "\n"); n != 2 {
		t.Errorf("%d commits came to the checkout, want that of the change and that of the release", n)
	}
	if strings.Contains(f.releasedDocument(), `"ciCommit":null`) {
		t.Error("the release names no commit")
	}

	if os.Getuid() != 0 {
		t.Skip("needs root, to give the checkout to another user")
	}
	f.edit("theirs", "web-1")
	f.command(f.dir, "chown", "-R", "12345:12345", f.checkout(""))
	tip := f.commits(filepath.Join(f.dir, "forge.git"))
	out, err = f.releasing(nil)
	if err == nil || !strings.Contains(out, "git config --global --add safe.directory") {
		t.Errorf("in a checkout of another user: %v\n%s", err, out)
	}
	if now := f.commits(filepath.Join(f.dir, "forge.git")); now != tip {
		t.Errorf("what was refused was pushed: %s", now)
	}
	// A file that only GIT_CONFIG_GLOBAL names is git's alone: Nix reads the one at home.
	config := filepath.Join(f.dir, "gitconfig")
	f.write(config, "[safe]\n\tdirectory = *\n", 0o644)
	if out, err = f.releasing([]string{"GIT_CONFIG_GLOBAL=" + config}); err == nil ||
		!strings.Contains(out, "hint: git config --file ~/.gitconfig --add safe.directory "+f.checkout("")) {
		t.Errorf("in a checkout that git may open and Nix may not: %v\n%s", err, out)
	}
	config = filepath.Join(f.dir, ".gitconfig")
	f.write(config, "[safe]\n\tdirectory = *\n", 0o644)
	if out, err = f.releasing([]string{"GIT_CONFIG_GLOBAL=" + config}); err != nil {
		t.Fatalf("in a checkout of another user that git may open: %v\n%s", err, out)
	}
	if now := f.commits(filepath.Join(f.dir, "forge.git")); now == tip ||
		strings.Contains(f.releasedDocument(), `"ciCommit":null`) {
		t.Errorf("nothing was pushed, or without its commit: %s", now)
	}
}

// releasedDocument is the fleet's document at the tip of the forge.
func (f *nixFleet) releasedDocument() string {
	f.t.Helper()
	return f.command(f.dir, "git", "-C", filepath.Join(f.dir, "forge.git"), "show", "main:releases/fleet.resolved.json")
}
