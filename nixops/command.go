package nixops

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"nixfleet/nixops/git"
)

// waitDelay bounds how long run waits for a command that was cancelled, or whose pipes its orphans still hold.
const waitDelay = 2 * time.Second

// maxCapture bounds, in bytes, how much of a command's output run keeps.
const maxCapture = 16 << 20

// A command is one run of a program that ends soon. A supervisor runs what must outlive its caller.
type command struct {
	path    string
	args    []string
	env     []string // added to the environment of this process
	timeout time.Duration
	lines   func(string) // gets each line of stderr; may be nil
	limit   int          // of the output, in bytes; 0 means maxCapture
}

// commandError is a failed run, with the end of what the program wrote to stderr.
type commandError struct {
	name   string
	stderr string
	err    error
}

func (e *commandError) Error() string {
	said := strings.TrimSpace(e.stderr)
	if len(said) > MaxOutput {
		said = "… " + legible(said[len(said)-MaxOutput:])
	}
	if said == "" {
		return fmt.Sprintf("run %s: %v", e.name, e.err)
	}
	return fmt.Sprintf("run %s: %v: %s", e.name, e.err, said)
}

func (e *commandError) Unwrap() error { return e.err }

// exitCode returns the exit status of a failed run, or -1 if the program did not exit by itself.
func (e *commandError) exitCode() int {
	if exit, ok := errors.AsType[*exec.ExitError](e.err); ok {
		return exit.ExitCode()
	}
	return -1
}

// run runs the command and returns its stdout, or a *commandError.
func (c command) run(ctx context.Context) ([]byte, error) {
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.WaitDelay = waitDelay
	// Nix must run git in the flake that it reads, even if this process runs in a git hook of another repository.
	cmd.Env = append(git.Environ(os.Environ()), c.env...)
	stdout := head{limit: cmp.Or(c.limit, maxCapture)}
	stderr := tail{lines: c.lines}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	stderr.flush()
	switch {
	case ctx.Err() != nil && err != nil:
		err = ctx.Err()
	case err == nil && stdout.over:
		err = fmt.Errorf("printed more than %d bytes", stdout.limit)
	}
	if err != nil {
		return nil, &commandError{name: commandName(c), stderr: stderr.String(), err: err}
	}
	return stdout.buf.Bytes(), nil
}

// commandName returns the base name of the program and, for nix, its first argument, which is the verb.
func commandName(c command) string {
	name := c.path[strings.LastIndexByte(c.path, '/')+1:]
	if len(c.args) > 0 && name == "nix" {
		name += " " + c.args[0]
	}
	return name
}

// head keeps the first bytes written to it.
type head struct {
	limit int
	buf   bytes.Buffer
	over  bool
}

func (h *head) Write(p []byte) (int, error) {
	room := h.limit - h.buf.Len()
	if len(p) > room {
		h.over = true
		h.buf.Write(p[:room])
	} else {
		h.buf.Write(p)
	}
	return len(p), nil
}

// tail keeps the last part of what is written to it and passes each line to a function.
type tail struct {
	lines func(string)

	mu   sync.Mutex
	kept []byte
	line []byte
}

const (
	tailKept = 64 << 10 // bytes
	maxLine  = 4 << 10  // bytes; longer lines are cut
)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailKept; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	if t.lines == nil {
		return len(p), nil
	}
	for _, b := range p {
		switch {
		case b == '\n':
			t.lines(legible(string(t.line)))
			t.line = t.line[:0]
		case len(t.line) < maxLine:
			t.line = append(t.line, b)
		}
	}
	return len(p), nil
}

// flush passes on a last line that has no line end.
func (t *tail) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines != nil && len(t.line) > 0 {
		t.lines(legible(string(t.line)))
		t.line = nil
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return legible(string(t.kept))
}

// legible makes text valid UTF-8, so that a journal or a report can hold it: programs may write any bytes, and a cut
// may divide a character.
func legible(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
