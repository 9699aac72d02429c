package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/urfave/cli/v2"
)

// Error is an error with what its reader should type next, and the exit code
// that scripts see. Codes are those of the v1 tools: 1 the work failed, 2 usage
// (in `release` also: a hook failed), 3 the release did not verify.
type Error struct {
	Err  error
	Hint string // one line, lowercase, without a full stop; empty when there is none
	Code int    // 0 counts as 1
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is never 0.
func (e *Error) ExitCode() int { return max(e.Code, 1) }

// Hinted adds a hint to err and keeps the exit code it has.
func Hinted(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Hint: fmt.Sprintf(format, args...), Code: ExitCode(err)}
}

// Coded gives err an exit code and keeps its hint.
func Coded(code int, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Hint: HintOf(err), Code: code}
}

// Usage is a mistake in the command line; its exit code is 2.
func Usage(hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: hint, Code: 2}
}

// Needs refuses a command line that lacks one of the flags, in the order given.
func Needs(c *cli.Context, flags ...string) error {
	for _, name := range flags {
		if c.String(name) == "" {
			return Usage(c.Command.HelpName+" --help", "--%s is missing", name)
		}
	}
	return nil
}

// HintOf returns the outermost hint that err carries, in an Error or as its
// method Hint, and "" when nothing in err has one.
func HintOf(err error) string {
	for err != nil {
		switch e := err.(type) {
		case *Error:
			if e.Hint != "" {
				return e.Hint
			}
		case interface{ Hint() string }:
			if hint := e.Hint(); hint != "" {
				return hint
			}
		case interface{ Unwrap() []error }:
			for _, one := range e.Unwrap() {
				if hint := HintOf(one); hint != "" {
					return hint
				}
			}
			return ""
		}
		err = errors.Unwrap(err)
	}
	return ""
}

// ExitCode returns the exit code of the process for err, which is 0 for nil.
func ExitCode(err error) int {
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
	}
	return 1
}

// Report prints err with its hint, as every command of nixfleet does, and
// returns the exit code of the process.
func Report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	fmt.Fprintf(stderr, "nixfleet: %s\n", strings.TrimRight(PlainLines(text), "\n"))
	if hint := HintOf(err); hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", PlainLines(hint))
	}
	return ExitCode(err)
}
