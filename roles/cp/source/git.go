package source

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"nixfleet/nixops/git"
)

// GitConfig is a repository and a branch of it.
type GitConfig struct {
	URL        string // git+https://host/repo.git#branch, git+ssh://, git+file://; branch main by default
	ReleaseDir string // directory of the release in the repository
	Mirror     string // bare repository of ours; made anew when it is missing or broken
	TokenFile  string // for https; read at each fetch
	SSHKeyFile string // for ssh; without one ssh takes what it finds for this user
	KnownHosts string // for ssh; without one that of this user
}

type gitSource struct {
	GitConfig
	scheme, remote, branch string
}

// errNoBranch means that the repository answers and has no such branch.
var errNoBranch = errors.New("the repository has no such branch")

// branchName is narrower than git's own rule.
var branchName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/+-]*$`)

// NewGit reads every file of a release from one commit, so that nothing
// is torn. It uses the git program, without any configuration of the user or
// the machine.
func NewGit(cfg GitConfig) (Source, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		// The error of the parser repeats the URL with all that may be secret in it.
		return nil, errors.New("git source: the URL cannot be read")
	}
	shown := shownURL(cfg.URL)
	scheme, ok := strings.CutPrefix(u.Scheme, "git+")
	if !ok || scheme != "https" && scheme != "ssh" && scheme != "file" {
		return nil, fmt.Errorf("git source %q: use git+https://, git+ssh:// or git+file://", shown)
	}
	if _, secret := u.User.Password(); secret || u.User != nil && scheme == "https" {
		return nil, fmt.Errorf("git source %q: a secret in a URL is seen by others; use --source-token-file", shown)
	}
	s := &gitSource{GitConfig: cfg, scheme: scheme, branch: "main"}
	if u.Fragment != "" {
		s.branch = u.Fragment
	}
	if !branchName.MatchString(s.branch) || strings.Contains(s.branch, "..") || strings.HasSuffix(s.branch, "/") ||
		strings.HasSuffix(s.branch, ".lock") {
		return nil, fmt.Errorf("git source: %q is not a branch name", s.branch)
	}
	u.Scheme, u.Fragment = scheme, ""
	s.remote = u.String()
	return s, nil
}

func (s *gitSource) String() string { return "git+" + s.remote + "#" + s.branch }

// Fetch asks the remote for the branch first, which is cheap, and fetches one
// commit when it has moved.
func (s *gitSource) Fetch(ctx context.Context, known string) (Fetched, error) {
	got, err := s.fetch(ctx, known)
	if err != nil {
		return Fetched{}, fmt.Errorf("%s: %w", s, err)
	}
	return got, nil
}

func (s *gitSource) fetch(ctx context.Context, known string) (Fetched, error) {
	tip, err := s.tip(ctx)
	if err != nil {
		return Fetched{}, err
	}
	if tip == known {
		return Fetched{Revision: tip, Unchanged: true}, nil
	}
	got, err := s.pull(ctx, s.Mirror, known)
	if err == nil || ctx.Err() != nil || errors.Is(err, errRelease) {
		return got, err
	}
	// The remote answers, so the mirror may be what is broken: a git that was
	// killed leaves locks, a full disk half an object. A new one tells.
	fresh := s.Mirror + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return Fetched{}, err
	}
	got, again := s.pull(ctx, fresh, "")
	if again != nil && !errors.Is(again, errRelease) {
		return Fetched{}, errors.Join(err, os.RemoveAll(fresh))
	}
	if err := errors.Join(os.RemoveAll(s.Mirror), os.Rename(fresh, s.Mirror)); err != nil {
		return Fetched{}, err
	}
	if again != nil {
		return Fetched{}, again
	}
	got.FS.(*gitTree).mirror = s.Mirror
	return got, nil
}

// tip is the commit that the branch points to.
func (s *gitSource) tip(ctx context.Context) (string, error) {
	ref := "refs/heads/" + s.branch
	out, err := s.git(ctx, gitCall{args: s.transport("ls-remote", "--exit-code", s.remote, ref), timeout: FetchTimeout,
		network: true})
	if git.ExitCode(err) == 2 {
		return "", fmt.Errorf("%w: %s", errNoBranch, s.branch)
	}
	if err != nil {
		return "", err
	}
	// git matches the end of names: a branch x/refs/heads/main is listed too.
	for line := range strings.Lines(string(out)) {
		commit, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if name == ref && validCommit(commit) {
			return commit, nil
		}
	}
	return "", fmt.Errorf("%w: %s", errNoBranch, s.branch)
}

// pull fetches the branch into a mirror and reads the release of what came: the
// branch may have moved on since it was looked up. The commit that is known,
// because it was accepted, is kept as well: manifests are still read from it.
func (s *gitSource) pull(ctx context.Context, mirror, known string) (Fetched, error) {
	if _, err := os.Stat(filepath.Join(mirror, "HEAD")); err != nil {
		if err := os.MkdirAll(mirror, 0o750); err != nil {
			return Fetched{}, err
		}
		if _, err := s.git(ctx, gitCall{args: []string{"init", "--quiet", "--bare", "--template=", mirror}}); err != nil {
			return Fetched{}, err
		}
	}
	if validCommit(known) {
		// A mirror that was made anew does not have it, and nothing depends on it.
		_, _ = s.git(ctx, gitCall{mirror: mirror, args: []string{"update-ref", "refs/nixfleet/accepted", known}})
	}
	const current = "refs/nixfleet/current"
	if _, err := s.git(ctx, gitCall{mirror: mirror, timeout: gitTimeout, network: true, args: s.transport("fetch",
		"--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--depth=1", "--update-shallow",
		"--force",
		s.remote, "+refs/heads/"+s.branch+":"+current,
	)}); err != nil {
		return Fetched{}, err
	}
	out, err := s.git(ctx, gitCall{mirror: mirror, args: []string{"rev-parse", "--verify", current + "^{commit}"}})
	if err != nil {
		return Fetched{}, err
	}
	commit := strings.TrimSpace(string(out))
	if !validCommit(commit) {
		return Fetched{}, fmt.Errorf("rev-parse answered %.80q", commit)
	}
	tree, err := s.tree(ctx, mirror, commit)
	if err != nil {
		return Fetched{}, fmt.Errorf("commit %s: %w", commit, err)
	}
	return Fetched{FS: tree, Revision: commit}, nil
}

func validCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}
