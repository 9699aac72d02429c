package cp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"nixfleet/pki"
)

const (
	gitTimeout = 2 * time.Minute
	// maxReleaseFiles bounds how many files a release directory may hold.
	maxReleaseFiles = 100_000
)

// GitConfig is a repository and a branch of it.
type GitConfig struct {
	URL        string // git+https://host/repo.git#branch, git+ssh://, git+file://; branch main by default
	ReleaseDir string // directory of the release in the repository
	Mirror     string // bare repository of ours
	TokenFile  string // for https; read at each fetch
	SSHKeyFile string
	KnownHosts string
}

type gitSource struct {
	GitConfig
	remote, branch string
}

// NewGitSource reads every file of a release from one commit, so that nothing
// is torn. It uses the git program, without any configuration of the user or
// the machine.
func NewGitSource(cfg GitConfig) (Source, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("git source: %w", err)
	}
	scheme, ok := strings.CutPrefix(u.Scheme, "git+")
	if !ok || scheme != "https" && scheme != "ssh" && scheme != "file" {
		return nil, fmt.Errorf("git source %q: use git+https://, git+ssh:// or git+file://", u.Redacted())
	}
	if u.User != nil && scheme == "https" {
		return nil, fmt.Errorf("git source %q: a secret in a URL is seen by others; use --source-token-file", u.Redacted())
	}
	s := &gitSource{GitConfig: cfg, branch: "main"}
	if u.Fragment != "" {
		s.branch = u.Fragment
	}
	if strings.HasPrefix(s.branch, "-") || strings.ContainsAny(s.branch, " ~^:?*[\\") {
		return nil, fmt.Errorf("git source: %q is no branch", s.branch)
	}
	u.Scheme, u.Fragment = scheme, ""
	s.remote = u.String()
	return s, nil
}

func (s *gitSource) String() string { return "git+" + s.remote + "#" + s.branch }

// git runs one git command on the mirror.
func (s *gitSource) git(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", append([]string{"--git-dir", s.Mirror}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	env, err := s.environment()
	if err != nil {
		return nil, err
	}
	cmd.Env = env
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("git is not installed: %w", err)
		}
		return nil, fmt.Errorf("git %s: %w: %s", args[0], err, lastLine(said.String()))
	}
	return out.Bytes(), nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// environment keeps configuration of others out, forbids prompts, and hands
// the token over where no other user can read it.
func (s *gitSource) environment() ([]string, error) {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.DevNull, "LC_ALL=C", "GIT_TERMINAL_PROMPT=0",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_ALLOW_PROTOCOL=https:ssh:file",
	}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	config := [][2]string{{"safe.directory", "*"}, {"http.followRedirects", "false"}, {"http.lowSpeedLimit", "1000"}, {"http.lowSpeedTime", "30"}}
	if s.TokenFile != "" {
		token, err := secretFile(s.TokenFile)
		if err != nil {
			return nil, err
		}
		basic := base64.StdEncoding.EncodeToString([]byte("x-access-token:" + token))
		config = append(config, [2]string{"http.extraHeader", "Authorization: Basic " + basic})
	}
	env = append(env, "GIT_CONFIG_COUNT="+strconv.Itoa(len(config)))
	for i, kv := range config {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	if s.SSHKeyFile != "" {
		ssh := "ssh -o BatchMode=yes -o IdentitiesOnly=yes -o ConnectTimeout=10 -i " + shellQuote(s.SSHKeyFile)
		if s.KnownHosts != "" {
			ssh += " -o StrictHostKeyChecking=yes -o UserKnownHostsFile=" + shellQuote(s.KnownHosts)
		}
		env = append(env, "GIT_SSH_COMMAND="+ssh)
	}
	return env, nil
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// secretFile reads a token, trimmed. It is read anew at each use.
func secretFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	defer f.Close()
	var buf [8192]byte
	n, err := f.Read(buf[:])
	if err != nil {
		return "", fmt.Errorf("read token %s: %w", path, err)
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

// Fetch asks the remote for the branch first, which is cheap, and fetches one
// commit when it has moved.
func (s *gitSource) Fetch(ctx context.Context, known string) (Snapshot, error) {
	if err := os.MkdirAll(filepath.Dir(s.Mirror), 0o750); err != nil {
		return Snapshot{}, fmt.Errorf("git source: %w", err)
	}
	if _, err := os.Stat(filepath.Join(s.Mirror, "HEAD")); err != nil {
		if _, err := s.git(ctx, "init", "--quiet", "--bare", s.Mirror); err != nil {
			return Snapshot{}, err
		}
	}
	ref := "refs/heads/" + s.branch
	out, err := s.git(ctx, "ls-remote", "--exit-code", s.remote, ref)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w", s, err)
	}
	commit, _, _ := strings.Cut(string(out), "\t")
	if !validCommit(commit) {
		return Snapshot{}, fmt.Errorf("%s: ls-remote answered %.80q", s, commit)
	}
	if commit == known {
		return Snapshot{Revision: commit, Unchanged: true}, nil
	}
	if _, err := s.git(ctx, "fetch", "--quiet", "--no-tags", "--depth=1", "--force", s.remote, "+"+ref+":refs/nixfleet/current"); err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w", s, err)
	}
	// The branch may have moved on since ls-remote; what was fetched counts.
	out, err = s.git(ctx, "rev-parse", "refs/nixfleet/current^{commit}")
	if err != nil {
		return Snapshot{}, err
	}
	if commit = strings.TrimSpace(string(out)); !validCommit(commit) {
		return Snapshot{}, fmt.Errorf("%s: rev-parse answered %.80q", s, commit)
	}
	tree, err := s.tree(ctx, commit)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s: commit %s: %w", s, commit, err)
	}
	return Snapshot{FS: tree, Revision: commit}, nil
}

func validCommit(s string) bool {
	if len(s) != 40 && len(s) != 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// gitTree is the release directory of one commit. Files are read when they are
// asked for: a repository keeps the manifests of every release it ever had.
type gitTree struct {
	s     *gitSource
	blobs map[string]gitBlob
}

type gitBlob struct {
	id   string
	size int64
}

func (s *gitSource) tree(ctx context.Context, commit string) (*gitTree, error) {
	dir := strings.Trim(filepath.ToSlash(filepath.Clean(s.ReleaseDir)), "/")
	spec := commit
	if dir != "" && dir != "." {
		spec += ":" + dir
	}
	out, err := s.git(ctx, "ls-tree", "-r", "-l", "-z", "--full-tree", spec)
	if err != nil {
		return nil, fmt.Errorf("directory %q: %w", dir, err)
	}
	t := &gitTree{s: s, blobs: map[string]gitBlob{}}
	for line := range strings.SplitSeq(string(out), "\x00") {
		meta, path, ok := strings.Cut(line, "\t")
		fields := strings.Fields(meta)
		// Links and submodules are no documents.
		if !ok || len(fields) != 4 || fields[1] != "blob" || fields[0] == "120000" {
			continue
		}
		size, err := strconv.ParseInt(fields[3], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("ls-tree: %q", meta)
		}
		if t.blobs[path] = (gitBlob{fields[2], size}); len(t.blobs) > maxReleaseFiles {
			return nil, fmt.Errorf("more than %d files", maxReleaseFiles)
		}
	}
	return t, nil
}

// Open is there for fs.FS and refuses: documents are read whole, by ReadFile.
func (t *gitTree) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported}
}

// ReadFile reads one document of the commit.
func (t *gitTree) ReadFile(name string) ([]byte, error) {
	blob, ok := t.blobs[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if blob.size > pki.MaxDocument {
		return nil, fmt.Errorf("read %s: %w", name, pki.ErrSize)
	}
	data, err := t.s.git(context.Background(), "cat-file", "blob", blob.id)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}
