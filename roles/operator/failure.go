package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// failure is an error with what its reader should type next, and the exit
// code that scripts see. Codes are those of the v1 tools: 1 the work failed,
// 2 usage (in `release` also: a hook failed), 3 the release did not verify.
type failure struct {
	err  error
	hint string
	code int
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Hint is one line, lowercase, without a full stop; empty when there is none.
func (f *failure) Hint() string { return f.hint }

// ExitCode is never 0.
func (f *failure) ExitCode() int { return f.code }

// hinted adds a hint to err and keeps the exit code it has.
func hinted(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &failure{err: err, hint: fmt.Sprintf(format, args...), code: exitCode(err)}
}

// coded gives err an exit code and keeps its hint.
func coded(code int, err error) error {
	if err == nil {
		return nil
	}
	return &failure{err: err, hint: hintOf(err), code: code}
}

// usage is a mistake in the command line.
func usage(hint, format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), hint: hint, code: 2}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func exitCode(err error) int {
	var c interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return 130
	case errors.As(err, &c) && c.ExitCode() > 0:
		if _, another := c.(*exec.ExitError); another {
			return 1 // the status of a program that we ran means nothing to a caller of ours
		}
		return c.ExitCode()
	case strings.HasPrefix(err.Error(), "Required flag"):
		// urfave/cli has no exported type for a missing flag.
		return 2
	}
	return 1
}

// report prints err as every command of nixfleet does and returns the exit
// code of the process.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	fmt.Fprintf(stderr, "nixfleet: %s\n", strings.TrimRight(text, "\n"))
	if h := hintOf(err); h != "" {
		fmt.Fprintf(stderr, "hint: %s\n", h)
	}
	return exitCode(err)
}
