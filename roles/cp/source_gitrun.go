package cp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nixfleet/pki"
)

const (
	gitTimeout      = 2 * time.Minute  // of a fetch
	gitLocalTimeout = 30 * time.Second // of what needs no network
	gitStopTimeout  = 5 * time.Second  // from asking git to end to killing it
	gitOutput       = 64 << 20         // bytes of a listing
	gitComplaint    = 16 << 10         // bytes of stderr
)

// gitCall is one run of git.
type gitCall struct {
	mirror  string // --git-dir; none: no repository
	args    []string
	stdin   io.Reader
	limit   int64         // of the output, in bytes; gitOutput by default
	timeout time.Duration // gitLocalTimeout by default
	network bool          // hand over the credentials
}

// git runs git to its end and gives its output.
func (s *gitSource) git(ctx context.Context, call gitCall) ([]byte, error) {
	if call.timeout == 0 {
		call.timeout = gitLocalTimeout
	}
	if call.limit == 0 {
		call.limit = gitOutput
	}
	if call.mirror == "" {
		// Nothing that happens to be around is taken for the repository.
		call.mirror = os.DevNull
	}
	env, err := s.environment(call.network)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, call.timeout)
	defer cancel()
	out, said := &boundedBuffer{left: call.limit}, &boundedBuffer{left: gitComplaint, drop: true}
	cmd := exec.CommandContext(ctx, "git", call.args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append(env, "GIT_DIR="+call.mirror), call.stdin, out, said
	// git has helpers: the group is asked to end, so that git removes its locks.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = gitStopTimeout
	err = cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		// Whoever of the group did not listen; most often there is nobody left.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case out.full:
		return nil, fmt.Errorf("git %s: %w: more than %d bytes", call.args[0], pki.ErrSize, call.limit)
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("git is not installed: %w", err)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("git %s: %w", call.args[0], context.Cause(ctx))
	case err != nil:
		text := said.String()
		return nil, &gitError{fmt.Errorf("git %s: %w: %.300q", call.args[0], err, complaint(text)), gitHint(text)}
	}
	return out.Bytes(), nil
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
	{"Host key verification failed", "the forge shows a host key that --source-known-hosts-file does not have: compare ssh-keyscan of its address with what the forge publishes, and write the right line there"},
	{"bad permissions", "ssh ignores a key that others can read: chmod 600 the file of --source-ssh-key-file"},
	{"error in libcrypto", "--source-ssh-key-file is no private key in OpenSSH's or PEM form"},
	{"Permission denied (", "the forge does not take the key of --source-ssh-key-file: add its public half as a deploy key that may read"},
	{"Authentication failed", "the forge does not take the token of --source-token-file"},
	{"could not read Username", "the repository is not public: give --source-token-file"},
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

// complaint is the line that says what failed. What git adds when ssh fails is
// the same whatever it was.
func complaint(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	for i := len(lines) - 1; i > 0; i-- {
		switch strings.TrimSpace(lines[i]) {
		case "", "and the repository exists.", "Please make sure you have the correct access rights", "fatal: Could not read from remote repository.":
		default:
			return lines[i]
		}
	}
	return lines[0]
}

func exitCode(err error) int {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// boundedBuffer takes so many bytes; then it fails or drops the rest.
type boundedBuffer struct {
	bytes.Buffer
	left int64
	drop bool
	full bool
}

// Write takes what fits.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	if int64(len(p)) <= b.left {
		b.left -= int64(len(p))
		return b.Buffer.Write(p)
	}
	if b.drop {
		return len(p), nil
	}
	b.full = true
	return 0, pki.ErrSize
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
		{"safe.directory", "*"}, {"core.hooksPath", os.DevNull}, {"gc.autoDetach", "false"}, {"maintenance.autoDetach", "false"},
		{"http.followRedirects", "false"}, {"http.lowSpeedLimit", "1000"}, {"http.lowSpeedTime", "30"},
	}
	if network && s.scheme == "https" && s.TokenFile != "" {
		token, err := secretFile(s.TokenFile)
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
	words := []string{"ssh", "-F", os.DevNull, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10",
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
