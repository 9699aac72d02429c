package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"nixfleet/nixops/git"
	"nixfleet/roles/command"
)

// errMoved: the remote branch is no longer where it was when we read it.
var errMoved = errors.New("the branch has moved")

// repository is where a release is committed. A release is written on top of
// the commit it was read from and pushed only if the remote branch still is
// where it was (compare-and-swap); the work tree is touched after that.
type repository struct {
	top, rel       string // work tree; the release directory in it, with slashes
	head           string // commit checked out when we began
	base           string // commit that the release is read from and put upon
	remote, branch string // "" without --git-push
	expected       string // the remote branch as read; "" when it does not exist
	cfg            Git
}

// openRepository finds the repository around dir. It is nil when nothing is to be committed. Signing anew may go on
// top of any commit.
func openRepository(ctx context.Context, dir string, cfg Git, resign bool) (*repository, error) {
	if !cfg.Commit && cfg.Remote == "" {
		return nil, nil
	}
	r := &repository{cfg: cfg, remote: cfg.Remote, branch: cfg.Branch}
	inside := dir
	for {
		if _, err := os.Stat(inside); err == nil {
			break
		}
		inside = filepath.Dir(inside)
	}
	real, err := filepath.EvalSymlinks(inside)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", inside, err)
	}
	r.top = real
	top, err := r.git(ctx, nil, "rev-parse", "--show-toplevel")
	switch {
	case errors.Is(err, git.ErrNoRepository):
		return nil, command.Hinted(fmt.Errorf("%s is not in a git repository: %w", dir, err),
			"leave out --git-commit and --git-push, or run it in a checkout")
	case err != nil:
		return nil, fmt.Errorf("open the repository of %s: %w", dir, err)
	}
	r.top = top
	rel, err := filepath.Rel(top, filepath.Join(real, strings.TrimPrefix(dir, inside)))
	if err != nil || rel == "." || strings.HasPrefix(rel, "..") {
		return nil, fmt.Errorf("the release directory %s must be a directory below %s", dir, top)
	}
	r.rel = filepath.ToSlash(rel)
	if r.head, err = r.git(ctx, nil, "rev-parse", "--verify", "HEAD^{commit}"); err != nil {
		return nil, command.Hinted(fmt.Errorf("%s has no commit yet: %w", top, err), "commit the fleet first")
	}
	r.base = r.head
	if r.remote == "" {
		return r, nil
	}
	return r, r.read(ctx, resign)
}

// read learns where the remote branch is and chooses the commit to build upon.
// A new release describes the commit that is checked out, so it may only be
// put on top of that, or of releases made of it since; renewing signatures
// describes nothing new and goes on top of whatever is there.
func (r *repository) read(ctx context.Context, resign bool) error {
	var err error
	if r.expected, err = r.tip(ctx); err != nil {
		return err
	}
	if r.expected == "" || r.expected == r.head {
		r.base = r.head
		return nil
	}
	if _, err := r.git(ctx, nil, "fetch", "--quiet", "--no-tags", r.remote, "refs/heads/"+r.branch); err != nil {
		return fmt.Errorf("fetch %s: %w", r.branch, err)
	}
	if _, err := r.git(ctx, nil, "cat-file", "-e", r.expected+"^{commit}"); err != nil {
		return errMoved
	}
	behind, err := r.ancestor(ctx, r.expected, r.head)
	if err != nil {
		return err
	}
	if behind {
		r.base = r.head
		return nil
	}
	if resign {
		r.base = r.expected
		return nil
	}
	ahead, err := r.ancestor(ctx, r.head, r.expected)
	if err != nil {
		return err
	}
	if ahead {
		outside, err := r.git(ctx, nil, "diff", "--name-only", r.head, r.expected, "--", ":(top)", ":(exclude,top)"+r.rel)
		if err != nil {
			return err
		}
		if outside == "" {
			r.base = r.expected
			return nil
		}
	}
	return command.Hinted(fmt.Errorf("%s of %s has moved on to %.12s; this checkout is at %.12s", r.branch, r.remote,
		r.expected, r.head),
		"git pull --rebase, then release again: a release must describe the newest commit")
}

// tip is the commit that the remote branch points to; "" when there is no such branch.
func (r *repository) tip(ctx context.Context) (string, error) {
	ref := "refs/heads/" + r.branch
	out, err := r.git(ctx, nil, "ls-remote", r.remote, ref)
	if err != nil {
		return "", command.Hinted(fmt.Errorf("read %s of %s: %w", r.branch, r.remote, err),
			"is %q a remote of this repository, and can you reach it?", r.remote)
	}
	// git matches the end of names: a branch x/refs/heads/main is listed too.
	for line := range strings.Lines(out) {
		if commit, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); name == ref {
			return commit, nil
		}
	}
	return "", nil
}

func (r *repository) ancestor(ctx context.Context, old, young string) (bool, error) {
	_, err := r.git(ctx, nil, "merge-base", "--is-ancestor", old, young)
	if git.ExitCode(err) == 1 {
		return false, nil
	}
	return err == nil, err
}

// file reads a file of the release directory in the base commit; nil when it
// is not there.
func (r *repository) file(ctx context.Context, name string) ([]byte, error) {
	object := r.base + ":" + r.rel + "/" + name
	out, err := r.gitBytes(ctx, nil, object+"\n", "cat-file", "--batch")
	if err != nil {
		return nil, err
	}
	if string(out) == object+" missing\n" {
		return nil, nil
	}
	header, body, ok := bytes.Cut(out, []byte("\n"))
	if fields := bytes.Fields(header); !ok || len(fields) != 3 || string(fields[1]) != "blob" {
		return nil, fmt.Errorf("read %s/%s of commit %.12s: git answered %.80q", r.rel, name, r.base, header)
	}
	return bytes.TrimSuffix(body, []byte("\n")), nil
}

// names lists the files below a directory of the release in the base commit.
func (r *repository) names(ctx context.Context, dir string) ([]string, error) {
	out, err := r.git(ctx, nil, "ls-tree", "-z", "--name-only", "--full-tree", r.base, r.rel+"/"+dir+"/")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, path := range strings.Split(out, "\x00") {
		if path != "" {
			names = append(names, dir+"/"+filepath.Base(path))
		}
	}
	return names, nil
}

// commit makes a commit of the staged files on top of base without touching
// the work tree, the index or any branch, and pushes it when asked to.
func (r *repository) commit(
	ctx context.Context, staged string, files, obsolete []string, ciCommit string, now time.Time,
) (string, error) {
	index, err := os.MkdirTemp("", "nixfleet-index-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(index)
	env := []string{"GIT_INDEX_FILE=" + filepath.Join(index, "index")}
	if _, err := r.git(ctx, env, "read-tree", r.base); err != nil {
		return "", fmt.Errorf("read commit %s: %w", r.base, err)
	}
	var paths strings.Builder
	for _, name := range files {
		paths.WriteString(filepath.Join(staged, name) + "\n")
	}
	hashes, err := r.gitInput(ctx, env, paths.String(), "hash-object", "-w", "--no-filters", "--stdin-paths")
	if err != nil {
		return "", fmt.Errorf("store release: %w", err)
	}
	lines := strings.Split(hashes, "\n")
	if len(lines) != len(files) {
		return "", fmt.Errorf("store release: git hashed %d of %d files", len(lines), len(files))
	}
	var entries strings.Builder
	for i, name := range files {
		fmt.Fprintf(&entries, "100644 %s\t%s/%s\n", lines[i], r.rel, name)
	}
	for _, name := range obsolete {
		fmt.Fprintf(&entries, "0 %s\t%s/%s\n", strings.Repeat("0", len(lines[0])), r.rel, name)
	}
	if _, err := r.gitInput(ctx, env, entries.String(), "update-index", "--index-info"); err != nil {
		return "", fmt.Errorf("stage release: %w", err)
	}
	tree, err := r.git(ctx, env, "write-tree")
	if err != nil {
		return "", fmt.Errorf("stage release: %w", err)
	}
	args := []string{"commit-tree", tree, "-p", r.base}
	sign, err := r.git(ctx, nil, "config", "--type=bool", "--get", "commit.gpgSign")
	if err != nil && git.ExitCode(err) != 1 {
		return "", err
	}
	if sign == "true" {
		args = append(args, "-S") // commit-tree does not look at the option by itself
	}
	commit, err := r.gitInput(ctx, append(env, r.person()...), r.message(ciCommit, now), args...)
	if err != nil {
		return "", command.Hinted(fmt.Errorf("commit release: %w", err),
			"does git know who you are? --git-user-name and --git-user-email name the committer")
	}
	if r.remote == "" {
		return commit, nil
	}
	ref := "refs/heads/" + r.branch
	if _, err := r.git(ctx, nil, "push", "--quiet", "--no-verify", "--force-with-lease="+ref+":"+r.expected, r.remote,
		commit+":"+ref); err != nil {
		if tip, tipErr := r.tip(ctx); tipErr == nil && tip != r.expected {
			return "", errMoved
		}
		return "", command.Hinted(fmt.Errorf("push to %s: %w", r.remote, err),
			"may this job push to %s? a protected branch must allow it", r.branch)
	}
	return commit, nil
}

// advance moves the checked-out branch to the commit, if it still is where it
// was and nothing lies between; the caller then writes the same files into the
// work tree. False leaves the checkout alone.
func (r *repository) advance(ctx context.Context, commit string) (bool, error) {
	if r.base != r.head {
		return false, nil
	}
	if _, err := r.git(ctx, nil, "update-ref", "-m", "nixfleet release", "HEAD", commit, r.head); err != nil {
		if r.remote != "" {
			return false, nil
		}
		return false, fmt.Errorf("move the branch: %w", err)
	}
	return true, nil
}

// settle makes the index agree with the commit and the files just written.
func (r *repository) settle(ctx context.Context) error {
	_, err := r.git(ctx, nil, "reset", "--quiet", "--", ":(top)"+r.rel)
	return err
}

func (r *repository) person() []string {
	var env []string
	if r.cfg.UserName != "" {
		env = append(env, "GIT_AUTHOR_NAME="+r.cfg.UserName, "GIT_COMMITTER_NAME="+r.cfg.UserName)
	}
	if r.cfg.Email != "" {
		env = append(env, "GIT_AUTHOR_EMAIL="+r.cfg.Email, "GIT_COMMITTER_EMAIL="+r.cfg.Email)
	}
	return env
}

// message fills {sha}, {sha:0:8} and {ts} of the template.
func (r *repository) message(sha string, now time.Time) string {
	if sha == "" {
		sha = r.base
	}
	return strings.NewReplacer("{sha}", sha, "{sha:0:8}", command.Short(sha), "{ts}",
		now.UTC().Format(time.RFC3339)).Replace(r.cfg.Template) + "\n"
}

func (r *repository) git(ctx context.Context, env []string, args ...string) (string, error) {
	return r.gitInput(ctx, env, "", args...)
}

func (r *repository) gitInput(ctx context.Context, env []string, input string, args ...string) (string, error) {
	out, err := r.gitBytes(ctx, env, input, args...)
	return strings.TrimRight(string(out), "\n\x00"), err
}

func (r *repository) gitBytes(ctx context.Context, env []string, input string, args ...string) ([]byte, error) {
	call := git.Call{Args: args, Dir: r.top, Env: env, Stdin: strings.NewReader(input)}
	if args[0] == "push" || args[0] == "fetch" {
		call.Timeout = git.TransferTimeout
	}
	return git.Attended().Run(ctx, call)
}

// commitOf is the commit that a local flake is checked out at; nil when it is not in a git repository, or in one
// without
// a commit. A repository that git refuses to open has a commit all the same: that is an error.
func (r *releaser) commitOf(ctx context.Context, flake string) (*string, error) {
	dir := checkoutOf(flake)
	head, err := (&repository{top: dir}).git(ctx, nil, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	switch {
	case err == nil:
		return &head, nil
	case errors.Is(err, git.ErrNoRepository) || git.ExitCode(err) == 1:
		return nil, nil
	case errors.Is(err, exec.ErrNotFound):
		if hasRepository(dir) {
			r.say("warning: git is not installed: the release cannot name its commit")
		}
		return nil, nil
	}
	return nil, fmt.Errorf("read the commit of %s: %w", dir, err)
}

// hasRepository says whether a directory or one above it has a .git.
func hasRepository(dir string) bool {
	dir, err := filepath.Abs(dir)
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		if dir == filepath.Dir(dir) {
			return false
		}
	}
	return false
}

// checkoutOf is the directory of a local flake.
func checkoutOf(flake string) string {
	dir, _, _ := strings.Cut(flake, "#")
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "."
	}
	return dir
}

// uncommitted lists the files that Nix builds from although no commit has them as
// they are; the release directory's are not among them.
func uncommitted(ctx context.Context, flake, releaseDir string) ([]string, error) {
	r := &repository{top: checkoutOf(flake)}
	top, err := r.git(ctx, nil, "rev-parse", "--show-toplevel")
	if err != nil {
		return nil, err
	}
	scope := []string{"."}
	real, err := filepath.EvalSymlinks(releaseDir)
	if err != nil {
		real = releaseDir
	}
	if rel, err := filepath.Rel(top, real); err == nil && !strings.HasPrefix(rel, "..") {
		scope = append(scope, ":(exclude,top)"+filepath.ToSlash(rel))
	}
	out, err := r.git(ctx, nil, append([]string{"diff", "--name-only", "HEAD", "--"}, scope...)...)
	if err != nil || out == "" {
		return nil, err
	}
	return strings.Split(out, "\n"), nil
}
