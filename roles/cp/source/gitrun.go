package source

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"nixfleet/nixops/git"
)

const (
	gitTimeout      = 2 * time.Minute  // of a fetch
	gitLocalTimeout = 30 * time.Second // of what needs no network
)

// gitCall is one run of git.
type gitCall struct {
	mirror  string // --git-dir; none: no repository
	args    []string
	stdin   io.Reader
	limit   int64         // of the output, in bytes; 64 MiB by default
	timeout time.Duration // gitLocalTimeout by default
	network bool          // hand over the credentials
}

// git runs git to its end and returns its output.
func (s *gitSource) git(ctx context.Context, call gitCall) ([]byte, error) {
	if call.timeout == 0 {
		call.timeout = gitLocalTimeout
	}
	if call.mirror == "" {
		// Nothing that happens to be around is taken for the repository.
		call.mirror = os.DevNull
	}
	env, err := s.environment(call.network)
	if err != nil {
		return nil, err
	}
	out, err := git.Runner{Environ: append(env, "GIT_DIR="+call.mirror)}.Run(ctx, git.Call{
		Args: call.args, Stdin: call.stdin, Limit: call.limit, Timeout: call.timeout,
	})
	if failed := (*git.Error)(nil); errors.As(err, &failed) {
		return nil, &gitError{err, gitHint(failed.Said)}
	}
	return out, err
}

// transport are the words that begin a call of git which asks the remote. A repository on this machine may belong
// to another user; the git that serves it does not see the configuration in our environment, so it is told.
func (s *gitSource) transport(verb string, args ...string) []string {
	words := []string{verb}
	if s.scheme == "file" {
		words = append(words, "--upload-pack=git -c 'safe.directory=*' upload-pack")
	}
	return append(words, args...)
}

// gitError is a failed run of git with what its reader should look at.
type gitError struct {
	err  error
	hint string
}

func (e *gitError) Error() string { return e.err.Error() }
func (e *gitError) Unwrap() error { return e.err }

// Hint is one line, empty when git's words say enough.
func (e *gitError) Hint() string { return e.hint }

// gitHints tell what the words of git 2.39 and OpenSSH 9.2 mean for a source. The
// first that is found counts.
var gitHints = []struct{ words, hint string }{
	{"Host key verification failed",
		"the forge shows a host key that --source-known-hosts-file does not have: " +
			"compare ssh-keyscan of its address with what the forge publishes, and write the right line there"},
	{"bad permissions", "ssh ignores a key that others can read: chmod 600 the file of --source-ssh-key-file"},
	{"error in libcrypto", "--source-ssh-key-file is not a private key in OpenSSH or PEM format"},
	{"Permission denied (",
		"the forge refuses the key of --source-ssh-key-file: add its public half as a deploy key with read access"},
	{"Authentication failed", "the forge refuses the token of --source-token-file"},
	{"could not read Username", "the repository is not public: give --source-token-file"},
	{"detected dubious ownership",
		"the repository belongs to another user than that of this key: on the forge, " +
			"git config --system --add safe.directory '*'"},
	{"does not appear to be a git repository", "is the path in --source right, and may this key or token read it?"},
	{"not found", "is the path in --source right, and may this key or token read it?"},
	{"Connection refused", "is the forge up, and are host and port in --source right?"},
	{"Could not resolve host", "is the host in --source right, and does DNS work here?"},
	{"timed out", "is the forge up, and are host and port in --source right?"},
}

func gitHint(said string) string {
	for _, h := range gitHints {
		if strings.Contains(said, h.words) {
			return h.hint
		}
	}
	return ""
}

// passed are the variables that name certificates, proxies and the ssh agent.
var passed = []string{
	"PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO", "SSH_AUTH_SOCK",
	"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
}

// environment keeps configuration of others out, forbids prompts and every
// protocol but the one, and hands the token over where no other user reads it.
func (s *gitSource) environment(network bool) ([]string, error) {
	env := []string{
		"HOME=" + os.DevNull, "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull,
		"GIT_ALLOW_PROTOCOL=" + s.scheme, "GIT_SSH_COMMAND=" + s.sshCommand(),
	}
	for _, name := range passed {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	config := [][2]string{
		{"safe.directory", "*"}, {"core.hooksPath", os.DevNull}, {"gc.autoDetach", "false"},
		{"maintenance.autoDetach", "false"},
		{"http.followRedirects", "false"}, {"http.lowSpeedLimit", "1000"}, {"http.lowSpeedTime", "30"},
	}
	if network && s.scheme == "https" && s.TokenFile != "" {
		token, err := Secret(s.TokenFile)
		if err != nil {
			return nil, err
		}
		remote, err := url.Parse(s.remote)
		if err != nil {
			return nil, err
		}
		// Forges take the token as the password of any user.
		basic := base64.StdEncoding.EncodeToString([]byte("x-access-token:" + token))
		config = append(config, [2]string{"http.https://" + remote.Host + "/.extraHeader", "Authorization: Basic " + basic})
	}
	env = append(env, "GIT_CONFIG_COUNT="+strconv.Itoa(len(config)))
	for i, kv := range config {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return env, nil
}

// sshCommand never asks and never takes an unknown host key.
func (s *gitSource) sshCommand() string {
	words := []string{"ssh", "-F", os.DevNull, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o",
		"ConnectTimeout=10",
		"-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"}
	if s.SSHKeyFile != "" {
		words = append(words, "-o", "IdentitiesOnly=yes", "-i", s.SSHKeyFile)
	}
	if s.KnownHosts != "" {
		// ssh splits this one at spaces by itself.
		words = append(words, "-o", `UserKnownHostsFile="`+s.KnownHosts+`"`)
	}
	for i, word := range words {
		words[i] = shellQuote(word)
	}
	return strings.Join(words, " ")
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
