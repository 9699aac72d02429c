package source

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// forge is a repository that CI pushes to.
type forge struct {
	t   testing.TB
	dir string
}

func newForge(t testing.TB) *forge {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	f := &forge{t, filepath.Join(t.TempDir(), "forge")}
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f.git("init", "--quiet", "--initial-branch=main", "--template=")
	f.git("config", "core.bigFileThreshold", "1m") // no deltas: huge files are to be quick
	f.git("config", "core.compression", "1")
	return f
}

// git runs git in the forge's own checkout.
func (f *forge) git(args ...string) string {
	f.t.Helper()
	return f.gitWith(nil, args...)
}

func (f *forge) gitWith(stdin []byte, args ...string) string {
	f.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Stdin = f.dir, bytes.NewReader(stdin)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.dir, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=ci", "GIT_AUTHOR_EMAIL=ci@localhost", "GIT_COMMITTER_NAME=ci", "GIT_COMMITTER_EMAIL=ci@localhost"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		f.t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit adds files below releases/ and returns the commit.
func (f *forge) commit(files map[string][]byte) string {
	f.t.Helper()
	writeFiles(f.t, filepath.Join(f.dir, "releases"), files)
	f.git("add", "--all")
	f.git("commit", "--quiet", "--allow-empty", "--message=release")
	return f.git("rev-parse", "HEAD")
}

// commitTree commits a tree that no checkout could hold.
func (f *forge) commitTree(listing string) string {
	f.t.Helper()
	releases := f.gitWith([]byte(listing), "mktree", "--missing")
	root := f.gitWith([]byte("040000 tree "+releases+"\treleases\n"), "mktree")
	commit := f.git("commit-tree", "-m", "crafted", root)
	f.git("update-ref", "refs/heads/main", commit)
	return commit
}

func (f *forge) blob(data []byte) string { return f.gitWith(data, "hash-object", "-w", "--stdin") }

func (f *forge) config(branch string) GitConfig {
	c := GitConfig{URL: "git+file://" + f.dir, ReleaseDir: "releases", Mirror: filepath.Join(f.t.TempDir(), "source.git")}
	if branch != "" {
		c.URL += "#" + branch
	}
	return c
}

func (f *forge) source() *gitSource { return gitSourceOf(f.t, f.config("")) }

func gitSourceOf(t testing.TB, c GitConfig) *gitSource {
	t.Helper()
	s, err := NewGit(c)
	if err != nil {
		t.Fatal(err)
	}
	return s.(*gitSource)
}

func TestGitGivesAReleaseFromOneCommit(t *testing.T) {
	files, trust := signedRelease(t)
	f := newForge(t)
	first := f.commit(files)
	s := f.source()
	got := fetched(t, s, "")
	if got.Revision != first {
		t.Errorf("revision %s, want %s", got.Revision, first)
	}
	rel := verifies(t, got.FS, trust)
	if len(rel.Channels) != 2 || rel.Channels["stable"].Head == nil {
		t.Errorf("%d channels", len(rel.Channels))
	}
	fetched(t, s, first)

	second := f.commit(map[string][]byte{fleet.FleetName: []byte("second")})
	next := fetched(t, s, first)
	if next.Revision != second || content(t, next.FS, fleet.FleetName) != "second" {
		t.Errorf("%s: not the second commit", next.Revision)
	}
	verifies(t, got.FS, trust)
}

// One listing and two runs of cat-file, however many channels there are.
func TestTheDocumentsOfAReleaseAreReadAtOnce(t *testing.T) {
	files, _ := signedRelease(t)
	old := strings.Repeat("0", 64)
	files[fleet.ManifestName(old)] = []byte("old")
	f := newForge(t)
	f.commit(files)
	tree := fetched(t, f.source(), "").FS.(*gitTree)
	for name := range files {
		if _, loaded := tree.loaded[name]; loaded != (name != fleet.ManifestName(old)) {
			t.Errorf("%s: loaded %v", name, loaded)
		}
	}
	if content(t, tree, fleet.ManifestName(old)) != "old" {
		t.Error("an older manifest is not found")
	}
}

// Releases that are refused must not push out the commit from which old
// manifests are still served.
func TestManifestsOfTheAcceptedCommitOutliveOthers(t *testing.T) {
	f := newForge(t)
	old := fleet.ManifestName(strings.Repeat("0", 64))
	accepted := f.commit(map[string][]byte{fleet.FleetName: []byte("good"), old: []byte("old")})
	s := f.source()
	got := fetched(t, s, "")
	f.git("checkout", "--quiet", "--orphan", "evil")
	f.git("rm", "-r", "--quiet", "--cached", ".")
	if err := os.RemoveAll(filepath.Join(f.dir, "releases")); err != nil {
		t.Fatal(err)
	}
	f.commit(map[string][]byte{fleet.FleetName: []byte("refused")})
	f.git("branch", "--force", "main", "evil")
	fetched(t, s, accepted)
	if _, err := s.git(t.Context(),
		gitCall{mirror: s.Mirror, args: []string{"gc", "--quiet", "--prune=now"}}); err != nil {
		t.Fatal(err)
	}
	if content(t, got.FS, old) != "old" {
		t.Error("the manifest was collected")
	}
}

func TestAForcedPushIsFollowed(t *testing.T) {
	f := newForge(t)
	f.commit(map[string][]byte{fleet.FleetName: []byte("one")})
	was := f.commit(map[string][]byte{fleet.FleetName: []byte("two")})
	s := f.source()
	fetched(t, s, "")
	f.git("reset", "--quiet", "--hard", "HEAD~1")
	if got := fetched(t, s, was); content(t, got.FS, fleet.FleetName) != "one" {
		t.Error("not what the branch points to")
	}
}

func TestBranches(t *testing.T) {
	f := newForge(t)
	f.commit(map[string][]byte{fleet.FleetName: []byte("main")})
	f.git("checkout", "--quiet", "-b", "aaa/refs/heads/deploy/eu")
	f.commit(map[string][]byte{fleet.FleetName: []byte("decoy")})
	for _, branch := range []string{"deploy/eu", "eu", "none", "heads/main"} {
		if _, err := gitSourceOf(t, f.config(branch)).Fetch(t.Context(), ""); !errors.Is(err, errNoBranch) ||
			!strings.Contains(err.Error(), branch) {
			t.Errorf("%s: %v", branch, err)
		}
	}
	f.git("checkout", "--quiet", "-b", "deploy/eu", "main")
	f.commit(map[string][]byte{fleet.FleetName: []byte("deploy")})
	if got := fetched(t, gitSourceOf(t, f.config("deploy/eu")), ""); content(t, got.FS, fleet.FleetName) != "deploy" {
		t.Error("not the branch's own release")
	}
	f.git("branch", "--delete", "--force", "main")
	f.git("tag", "main")
	if _, err := f.source().Fetch(t.Context(), ""); !errors.Is(err, errNoBranch) {
		t.Errorf("a tag is not a branch: %v", err)
	}
}

func TestLinksAndSubmodulesAreNoDocuments(t *testing.T) {
	f := newForge(t)
	blob := f.blob([]byte("/etc/passwd"))
	commit := f.commit(nil)
	f.commitTree(fmt.Sprintf("120000 blob %s\t%s\n160000 commit %s\t%s\n100755 blob %s\t%s\n",
		blob, fleet.FleetName, commit, fleet.RevocationsName, blob, fleet.NoncesName))
	got := fetched(t, f.source(), "")
	for _, name := range []string{fleet.FleetName, fleet.RevocationsName} {
		if _, err := got.FS.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if content(t, got.FS, fleet.NoncesName) != "/etc/passwd" {
		t.Error("a regular file is not read")
	}
}

func TestCommitsWithoutARelease(t *testing.T) {
	f := newForge(t)
	f.commit(nil)
	s := f.source()
	refused := func(name string, want error) {
		t.Helper()
		if _, err := s.Fetch(t.Context(), ""); !errors.Is(err, errRelease) || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("no directory", nil)
	link := f.blob([]byte("elsewhere"))
	for name, mode := range map[string]string{"a link": "120000", "a file": "100644"} {
		root := f.gitWith([]byte(mode+" blob "+link+"\treleases\n"), "mktree")
		f.git("update-ref", "refs/heads/main", f.git("commit-tree", "-m", name, root))
		refused(name, nil)
	}
	huge := f.blob(make([]byte, pki.MaxDocument+1))
	f.commitTree(fmt.Sprintf("100644 blob %s\t%s\n", huge, fleet.FleetName))
	refused("a huge document", pki.ErrSize)
	// One that nobody asks for is in nobody's way.
	rollouts := f.gitWith([]byte("100644 blob "+huge+"\thuge.json\n"), "mktree")
	f.commitTree(fmt.Sprintf("100644 blob %s\t%s\n040000 tree %s\trollouts\n", link, fleet.FleetName, rollouts))
	got := fetched(t, s, "")
	if _, err := fs.ReadFile(got.FS, "rollouts/huge.json"); !errors.Is(err, pki.ErrSize) {
		t.Errorf("a huge manifest: %v", err)
	}
}

func TestAGitReleaseHasABound(t *testing.T) {
	tree := &gitTree{blobs: map[string]gitBlob{}, loaded: Memory{}}
	var names []string
	for i := range maxReleaseBytes/pki.MaxDocument + 1 {
		names = append(names, fmt.Sprint(i))
		tree.blobs[names[i]] = gitBlob{"id", pki.MaxDocument}
	}
	if err := tree.load(t.Context(), names); !errors.Is(err, pki.ErrSize) || !errors.Is(err, errRelease) {
		t.Errorf("too much together: %v", err)
	}
	var many strings.Builder
	for i := range maxReleaseFiles + 1 {
		fmt.Fprintf(&many, "100644 blob abc       3\t%d\x00", i)
	}
	if _, err := parseListing(many.String()); !errors.Is(err, pki.ErrSize) || !errors.Is(err, errRelease) {
		t.Errorf("too many files: %v", err)
	}
}

// A git that was killed, or a full disk, leaves a mirror that fails for ever.
func TestABrokenMirrorIsMadeAnew(t *testing.T) {
	for name, spoil := range map[string]func(mirror string) error{
		"lock of the ref": func(m string) error {
			return os.WriteFile(filepath.Join(m, "refs/nixfleet/current.lock"), nil, 0o644)
		},
		"lock of the history": func(m string) error { return os.WriteFile(filepath.Join(m, "shallow.lock"), nil, 0o644) },
		"no HEAD":             func(m string) error { return os.Remove(filepath.Join(m, "HEAD")) },
		"garbled HEAD": func(m string) error {
			return os.WriteFile(filepath.Join(m, "HEAD"), []byte("\x00\x00"), 0o644)
		},
		"garbled config": func(m string) error {
			return os.WriteFile(filepath.Join(m, "config"), []byte("[core\n"), 0o644)
		},
		"garbled ref": func(m string) error {
			return os.WriteFile(filepath.Join(m, "refs/nixfleet/current"), []byte("x"), 0o644)
		},
		"no objects":          func(m string) error { return os.RemoveAll(filepath.Join(m, "objects")) },
		"a file":              func(m string) error { return errors.Join(os.RemoveAll(m), os.WriteFile(m, nil, 0o644)) },
		"remains of a repair": func(m string) error { return os.MkdirAll(m+".new/objects", 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			f.commit(map[string][]byte{fleet.FleetName: []byte("one")})
			s := f.source()
			known := fetched(t, s, "").Revision
			if err := spoil(s.Mirror); err != nil {
				t.Fatal(err)
			}
			f.commit(map[string][]byte{fleet.FleetName: []byte("two"), "rollouts/x.json": []byte("old")})
			got := fetched(t, s, known)
			if content(t, got.FS, fleet.FleetName) != "two" || content(t, got.FS, "rollouts/x.json") != "old" {
				t.Error("not the new commit")
			}
			f.commit(map[string][]byte{fleet.FleetName: []byte("three")})
			fetched(t, s, got.Revision)
			if left, _ := filepath.Glob(s.Mirror + ".new"); left != nil && name != "remains of a repair" {
				t.Error("the repair left its directory")
			}
		})
	}
}

func TestAFailingRemoteDoesNotCostTheMirror(t *testing.T) {
	f := newForge(t)
	commit := f.commit(map[string][]byte{fleet.FleetName: []byte("one"), "rollouts/x.json": []byte("old")})
	s := f.source()
	got := fetched(t, s, "")
	f.commit(map[string][]byte{fleet.FleetName: []byte("two")})
	tree := f.git("rev-parse", "HEAD:releases")
	if err := os.Remove(filepath.Join(f.dir, ".git/objects", tree[:2], tree[2:])); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), commit); err == nil || errors.Is(err, errRelease) {
		t.Errorf("fetched from a damaged repository: %v", err)
	}
	if content(t, got.FS, "rollouts/x.json") != "old" {
		t.Error("the accepted commit is gone")
	}
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), commit); err == nil || !strings.Contains(err.Error(), f.dir) {
		t.Errorf("no repository: %v", err)
	}
	if content(t, got.FS, "rollouts/x.json") != "old" {
		t.Error("the accepted commit is gone")
	}
}

func TestGitURLs(t *testing.T) {
	for _, bad := range []string{
		"", "releases", "https://forge/x.git", "git+http://forge/x.git", "git+ext::sh -c id", "git+ssh://host\x7f/x",
		"git+https://u:hunter2@forge/x.git",
		"git+https://hunter2@forge/x.git", "git+ssh://git:hunter2@forge/x.git", "git+https://forge/%zz?hunter2",
		"git+file:///x#--upload-pack=id", "git+file:///x#a b", "git+file:///x#a..b", "git+file:///x#a:b",
		"git+file:///x#x.lock", "git+file:///x#a/", "git+file:///x#-",
	} {
		if s, err := NewGit(GitConfig{URL: bad}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v %v", bad, s, err)
		}
	}
	s := gitSourceOf(t, GitConfig{URL: "git+ssh://git@forge:2222/fleet.git#deploy/eu"})
	if s.remote != "ssh://git@forge:2222/fleet.git" || s.branch != "deploy/eu" ||
		s.String() != "git+ssh://git@forge:2222/fleet.git#deploy/eu" {
		t.Errorf("%+v", s)
	}
}

// Configuration of the user must not redirect, and the token goes to no
// protocol but https.
func TestGitSeesNobodysConfiguration(t *testing.T) {
	f := newForge(t)
	f.commit(map[string][]byte{fleet.FleetName: []byte("real")})
	decoy := newForge(t)
	decoy.commit(map[string][]byte{fleet.FleetName: []byte("decoy")})
	home := t.TempDir()
	config := fmt.Sprintf("[url %q]\n\tinsteadOf = file://%s\n[core]\n\thooksPath = /nonexistent\n",
		"file://"+decoy.dir, f.dir)
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"HOME": home, "XDG_CONFIG_HOME": home, "GIT_CONFIG_GLOBAL": filepath.Join(home, ".gitconfig"), "GIT_DIR": decoy.dir,
		"GIT_CONFIG_PARAMETERS": "'core.bare=nonsense'", "GIT_TRACE": "1",
	} {
		t.Setenv(name, value)
	}
	if got := fetched(t, f.source(), ""); content(t, got.FS, fleet.FleetName) != "real" {
		t.Error("the decoy was read")
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for scheme, with := range map[string]bool{"https": true, "ssh": false, "file": false} {
		s := gitSourceOf(t, GitConfig{URL: "git+" + scheme + "://forge/x.git", TokenFile: token, SSHKeyFile: "/a key",
			KnownHosts: "/known hosts"})
		for _, network := range []bool{false, true} {
			env, err := s.environment(network)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(env, "\n")
			if strings.Contains(all, "extraHeader") != (with && network) ||
				!strings.Contains(all, "GIT_ALLOW_PROTOCOL="+scheme+"\n") {
				t.Errorf("%s, network %v:\n%s", scheme, network, all)
			}
			if !strings.Contains(all, "'/a key'") || !strings.Contains(all, `'UserKnownHostsFile="/known hosts"'`) ||
				!strings.Contains(all, "StrictHostKeyChecking=yes") {
				t.Errorf("ssh: %s", all)
			}
		}
	}
}

// https serves the forge as forges do, behind a token.
func (f *forge) https(t *testing.T, token string) *httptest.Server {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Skip("needs git-http-backend")
	}
	handler := &cgi.Handler{Path: backend,
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(f.dir), "GIT_HTTP_EXPORT_ALL=1",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/moved/") {
			http.Redirect(w, r, strings.TrimPrefix(r.URL.Path, "/moved")+"?"+r.URL.RawQuery, http.StatusFound)
			return
		}
		if user, password, _ := r.BasicAuth(); user == "" || password != token {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	gitTrusts(t, server)
	return server
}

// gitTrusts makes the server's certificate the only one that git accepts.
func gitTrusts(t *testing.T, server *httptest.Server) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GIT_SSL_CAINFO", ca)
}

func TestGitOverHTTPSWithAToken(t *testing.T) {
	files, trust := signedRelease(t)
	f := newForge(t)
	f.commit(files)
	server := f.https(t, "hunter2")
	c := f.config("")
	c.URL, c.TokenFile = "git+"+server.URL+"/forge/.git", filepath.Join(t.TempDir(), "token")
	s := gitSourceOf(t, c)
	if err := os.WriteFile(c.TokenFile, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), ""); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong token: %v", err)
	}
	if err := os.WriteFile(c.TokenFile, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	verifies(t, fetched(t, s, "").FS, trust)

	c.URL, c.Mirror = "git+"+server.URL+"/moved/forge/.git", filepath.Join(t.TempDir(), "source.git")
	if _, err := gitSourceOf(t, c).Fetch(t.Context(), ""); err == nil {
		t.Error("a redirect was followed with the token")
	}
}

// A repository on this machine may belong to another user, as a forge's do.
func TestARepositoryOfAnotherUserIsRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	f := newForge(t)
	f.commit(map[string][]byte{fleet.FleetName: []byte("theirs")})
	err := filepath.WalkDir(f.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 12345, 12345)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fetched(t, f.source(), ""); content(t, got.FS, fleet.FleetName) != "theirs" {
		t.Error("another release was read")
	}
}

// A forge that accepts and never answers.
func TestAHangingForgeIsLeft(t *testing.T) {
	asked := make(chan struct{}, 10)
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer server.Close()
	f := newForge(t)
	c := f.config("")
	c.URL = "git+" + server.URL + "/x.git"
	gitTrusts(t, server)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	started := time.Now()
	if _, err := gitSourceOf(t, c).Fetch(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func FuzzParseListing(f *testing.F) {
	f.Add(
		"100644 blob abc       3\theads/edge.json\x00120000 blob abc       3\tlink\x00160000 commit abc       -\tsub\x00")
	f.Add("100644 blob abc       -1\tx\x00")
	f.Fuzz(func(t *testing.T, listing string) {
		blobs, err := parseListing(listing)
		if err != nil {
			return
		}
		for name, blob := range blobs {
			if blob.size < 0 || !strings.Contains(listing, "\t"+name) || !strings.Contains(listing, blob.id) {
				t.Errorf("%q: %+v", name, blob)
			}
		}
	})
}

func FuzzNextBlob(f *testing.F) {
	f.Add([]byte("abc blob 2\nhi\n"), int64(2))
	f.Add([]byte("abc missing\n"), int64(2))
	f.Add([]byte("abc blob 2\nh"), int64(2))
	f.Fuzz(func(t *testing.T, answer []byte, size int64) {
		if size < 0 || size > 1<<16 {
			return
		}
		data, err := nextBlob(bufio.NewReader(bytes.NewReader(answer)), gitBlob{"abc", size})
		if err == nil && (int64(len(data)) != size || !bytes.Contains(answer, data)) {
			t.Errorf("%q of %q", data, answer)
		}
	})
}
