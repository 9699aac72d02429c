package git

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
)

// here is a runner with the environment of the test, less what names a repository.
func here(t *testing.T) Runner {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	return Runner{Environ: Environ(os.Environ())}
}

func (r Runner) must(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := r.Run(t.Context(), Call{Dir: dir, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestEveryLocalVariableIsDropped asks the installed git which variables belong to one repository.
func TestEveryLocalVariableIsDropped(t *testing.T) {
	out := here(t).must(t, "", "rev-parse", "--local-env-vars")
	for name := range strings.Lines(out) {
		name = strings.TrimSpace(name)
		if name == "GIT_CONFIG_PARAMETERS" || name == "GIT_CONFIG_COUNT" {
			continue
		}
		if left := Environ([]string{name + "=x"}); len(left) > 0 {
			t.Errorf("git calls %s local to a repository, and it is handed on", name)
		}
	}
}

func TestWhatAuthenticatesIsKept(t *testing.T) {
	given := []string{
		"HOME=/h", "SSH_AUTH_SOCK=/s", "GIT_SSH=/ssh", "GIT_SSH_COMMAND=ssh -i key", "GIT_ASKPASS=/a", "SSH_ASKPASS=/b",
		"https_proxy=http://p", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=x",
		"GIT_CONFIG_PARAMETERS='http.sslCAInfo'='/ca'", "GIT_CONFIG_GLOBAL=/g", "GIT_AUTHOR_NAME=jo",
	}
	if got := Environ(append([]string{"GIT_DIR=/other", "GIT_INDEX_FILE=i"}, given...)); !slices.Equal(got, given) {
		t.Errorf("kept %q", got)
	}
}

// TestTheNamedRepositoryIsMeant runs git with what a hook of another repository exports.
func TestTheNamedRepositoryIsMeant(t *testing.T) {
	r := here(t)
	ours, other := t.TempDir(), t.TempDir()
	for _, dir := range []string{ours, other} {
		r.must(t, dir, "init", "--quiet")
	}
	for name, value := range map[string]string{
		"GIT_DIR": filepath.Join(other, ".git"), "GIT_WORK_TREE": other, "GIT_INDEX_FILE": filepath.Join(other, ".git/index"),
		"GIT_PREFIX": "sub/", "GIT_NAMESPACE": "n", "GIT_QUARANTINE_PATH": other, "GIT_CEILING_DIRECTORIES": ours,
	} {
		t.Setenv(name, value)
	}
	below := filepath.Join(ours, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(ours)
	if err != nil {
		t.Fatal(err)
	}
	r.Environ = Environ(os.Environ())
	if got := r.must(t, below, "rev-parse", "--show-toplevel"); got != real {
		t.Errorf("the work tree is %s, want %s", got, real)
	}
}

func TestFailuresAreToldApart(t *testing.T) {
	r := here(t)
	dir := t.TempDir()
	top := Call{Dir: dir, Args: []string{"rev-parse", "--show-toplevel"}}
	if _, err := r.Run(t.Context(), top); !errors.Is(err, ErrNoRepository) || errors.Is(err, ErrOwner) {
		t.Errorf("a plain directory: %v", err)
	}
	r.must(t, dir, "init", "--quiet")
	theirs := top
	theirs.Env = []string{"GIT_TEST_ASSUME_DIFFERENT_OWNER=1"}
	_, err := r.Run(t.Context(), theirs)
	if !errors.Is(err, ErrOwner) || errors.Is(err, ErrNoRepository) ||
		!strings.Contains(err.Error(), "dubious ownership") {
		t.Errorf("a repository of another user: %v", err)
	}
	if failed := (*Error)(nil); !errors.As(err, &failed) ||
		!strings.HasPrefix(failed.Hint(), "git config --global --add safe.directory /") {
		t.Errorf("its hint: %+v", failed)
	}
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".git"), []byte("gitdir: gone\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(t.Context(), top); err == nil || errors.Is(err, ErrNoRepository) {
		t.Errorf("a work tree whose repository is gone: %v", err)
	}
	if _, err := r.Run(t.Context(), Call{Args: []string{"--version"}, Limit: 4}); !errors.Is(err, pki.ErrSize) {
		t.Errorf("more output than asked for: %v", err)
	}
	if _, err := r.Run(t.Context(), Call{Dir: dir, Args: []string{"no-such-verb"}}); ExitCode(err) == 0 {
		t.Errorf("an unknown verb: %v", err)
	}
	t.Setenv("PATH", dir)
	if _, err := r.Run(t.Context(), top); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("without git: %v", err)
	}
}

// TestWhatGitStartedEndsWithIt has an alias hang in a child that ignores the request to end.
func TestWhatGitStartedEndsWithIt(t *testing.T) {
	r := here(t)
	pids := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	go func() {
		for ctx.Err() == nil {
			if pid, err := os.ReadFile(pids); err == nil && strings.HasSuffix(string(pid), "\n") {
				cancel(reason)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	stubborn := "alias.hang=!trap '' TERM; echo $$ >" + pids + "; while :; do sleep 1; done"
	if _, err := r.Run(ctx, Call{Args: []string{"-c", stubborn, "hang"}}); !errors.Is(err, reason) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	// A process that was killed is there until init has taken note of it.
	for range 500 {
		state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d goes on", pid)
}

func TestComplaint(t *testing.T) {
	for said, want := range map[string]string{
		"Warning: added\nfatal: no\n": "fatal: no",
		"ssh: timed out\nfatal: Could not read from remote repository.\n\nPlease make sure you have the correct access " +
			"rights\n" +
			"and the repository exists.\n": "ssh: timed out",
		"error: failed to push\nhint: pull first\n": "error: failed to push",
		"fatal: detected dubious ownership in repository at '/x'\nTo add\n\n\tgit c\n": "fatal: detected dubious ownership " +
			"in repository at '/x'",
		"and the repository exists.": "and the repository exists.",
		"":                           "",
	} {
		if got := complaint(said); got != want {
			t.Errorf("%q: %q", said, got)
		}
	}
}
