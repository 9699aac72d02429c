// Package git runs the git program for the control plane's source, for releases, for init and for the demo.
//
// It promises that git works in the repository that the caller names, whatever environment the caller was started
// in; that every run ends within its time, with everything that git started; that the output is bounded; and that a
// failed run has an error of one form with what git said. git itself never asks a question on the terminal.
package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"nixfleet/pki"
)

const (
	// LocalTimeout bounds a run that needs no network.
	LocalTimeout = 2 * time.Minute
	// TransferTimeout bounds a run that moves objects over a network, of which a fleet's history has many.
	TransferTimeout = 15 * time.Minute
	// stopTimeout is how long git may take to end and to remove its locks before Run kills it.
	stopTimeout = 5 * time.Second

	outputLimit = 64 << 20 // bytes of standard output that Run accepts if the caller sets no limit
	saidLimit   = 16 << 10 // bytes of standard error that Run keeps
)

var (
	// ErrNoRepository means that neither the directory nor one above it is a repository. It does not mean that git
	// refuses to open a repository.
	ErrNoRepository = errors.New("not a git repository")
	// ErrOwner means that git refuses the repository because another user owns it.
	ErrOwner = errors.New("the repository belongs to another user")
)

// Runner runs git in one environment.
type Runner struct {
	// Environ is the whole environment of git. The function Environ makes it from the environment of a process.
	Environ []string
	// Attended says that a person may be at the terminal. git then stays in the caller's process group, because
	// the kernel stops a program of another group that reads the terminal, and ssh asks there for a passphrase.
	// Otherwise git gets a group of its own, and all of it ends when the run does.
	Attended bool
}

// Attended returns a Runner with the environment of this process, for a command that a person runs.
func Attended() Runner { return Runner{Environ: Environ(os.Environ()), Attended: true} }

// Call is one run of git.
type Call struct {
	Args    []string // the verb first
	Dir     string   // where git runs; "" is the caller's working directory
	Env     []string // added to the runner's
	Stdin   io.Reader
	Limit   int64         // of the output, in bytes; 0 means 64 MiB
	Timeout time.Duration // 0 means LocalTimeout
}

// Run runs git and returns its standard output. The error of a failed run is an *Error; it is also pki.ErrSize if the
// output is larger than the limit.
func (r Runner) Run(ctx context.Context, call Call) ([]byte, error) {
	if call.Timeout == 0 {
		call.Timeout = LocalTimeout
	}
	if call.Limit == 0 {
		call.Limit = outputLimit
	}
	ctx, cancel := context.WithTimeout(ctx, call.Timeout)
	defer cancel()
	out, said := &bounded{left: call.Limit}, &bounded{left: saidLimit, drop: true}
	args := call.Args
	if call.Dir != "" {
		args = append([]string{"-C", call.Dir}, args...)
	}
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env = slices.Concat(r.Environ, []string{"GIT_TERMINAL_PROMPT=0", "LC_ALL=C"}, call.Env)
	cmd.Stdin = call.Stdin
	cmd.Stdout = out
	cmd.Stderr = said
	whom := func() int { return cmd.Process.Pid }
	if !r.Attended {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		whom = func() int { return -cmd.Process.Pid }
	}
	// SIGTERM lets git remove its locks before it ends.
	cmd.Cancel = func() error { return syscall.Kill(whom(), syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	err := cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil && !r.Attended {
		// This kills what is left of the group, which is usually nothing.
		_ = syscall.Kill(whom(), syscall.SIGKILL)
	}
	switch {
	case err == nil && !out.full:
		return out.kept.Bytes(), nil
	case out.full:
		err = fmt.Errorf("%w: more than %d bytes", pki.ErrSize, call.Limit)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		err = fmt.Errorf("git is not installed: %w", err)
	default:
		return nil, &Error{Verb: call.Args[0], Said: said.kept.String(), Err: err}
	}
	return nil, &Error{Verb: call.Args[0], Err: err}
}

// Error is a failed run of git.
type Error struct {
	Verb string
	Said string // standard error; empty if Run stopped git or could not start it
	Err  error  // an *exec.ExitError if git failed by itself
}

// complaintLimit bounds, in bytes, how much of what git said an error text contains.
const complaintLimit = 300

// Error returns the verb, how git ended, and the line in which git says why. The line is quoted, because it may come
// from the server.
func (e *Error) Error() string {
	if line := complaint(e.Said); line != "" {
		return fmt.Sprintf("git %s: %v: %.*q", e.Verb, e.Err, complaintLimit, line)
	}
	return fmt.Sprintf("git %s: %v", e.Verb, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// words are the texts by which git (2.39 to 2.47, with LC_ALL=C) says what the sentinels mean. For a work tree whose
// repository is gone, git says "not a git repository: PATH". That text is not in the list: git found a repository and
// could not open it.
var words = []struct {
	text string
	is   error
}{
	{"fatal: detected dubious ownership in repository", ErrOwner},
	{"fatal: unsafe repository (", ErrOwner}, // until 2.35
	{"fatal: not a git repository (or any ", ErrNoRepository},
}

// Is says whether git's words mean target, which is ErrOwner or ErrNoRepository.
func (e *Error) Is(target error) bool {
	for _, w := range words {
		if w.is == target && strings.Contains(e.Said, w.text) {
			return true
		}
	}
	return false
}

// Hint returns the command that git advises if another user owns the repository, else "".
func (e *Error) Hint() string {
	if !errors.Is(e, ErrOwner) {
		return ""
	}
	for line := range strings.Lines(e.Said) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "git config --global --add safe.directory ") {
			return line
		}
	}
	return ""
}

// ExitCode returns the status with which git ended, or 0 if git did not end by itself.
func ExitCode(err error) int {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// boilerplate are the lines that git adds to every failure of a transport.
var boilerplate = []string{
	"", "and the repository exists.", "Please make sure you have the correct access rights",
	"fatal: Could not read from remote repository.",
}

// complaint returns the line that says what failed: the last line that is neither boilerplate nor a hint, or the line
// about ownership, below which git gives advice.
func complaint(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	last := ""
	for _, line := range lines {
		line = strings.TrimSpace(line)
		switch {
		case slices.Contains(boilerplate, line), strings.HasPrefix(line, "hint: "):
		case strings.HasPrefix(line, "fatal: detected dubious ownership"):
			return line
		default:
			last = line
		}
	}
	if last == "" {
		return lines[0]
	}
	return last
}

// bounded accepts a number of bytes; then it fails, or drops the rest. It does not embed the buffer, because io.Copy
// would then call the buffer's ReadFrom and not Write.
type bounded struct {
	kept bytes.Buffer
	left int64
	drop bool
	full bool
}

// Write accepts p if it fits. Otherwise it drops p or returns pki.ErrSize.
func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) <= b.left {
		b.left -= int64(len(p))
		return b.kept.Write(p)
	}
	if b.drop {
		return len(p), nil
	}
	b.full = true
	return 0, pki.ErrSize
}
