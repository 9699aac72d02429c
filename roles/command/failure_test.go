package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"testing"
)

// ownHint is an error of another package that has a hint as its method.
type ownHint struct{ error }

func (ownHint) Hint() string { return "its own" }

func TestExitCodesAndHints(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{errors.New("plain"), 1, "nixfleet: plain\n"},
		{Hinted(errors.New("x"), "do %s", "y"), 1, "nixfleet: x\nhint: do y\n"},
		{Usage("--help", "bad"), 2, "nixfleet: bad\nhint: --help\n"},
		{fmt.Errorf("outer: %w", Coded(3, Hinted(errors.New("in"), "h"))), 3, "nixfleet: outer: in\nhint: h\n"},
		{Hinted(Coded(2, errors.New("x")), "new"), 2, "nixfleet: x\nhint: new\n"},
		{fmt.Errorf("ask: %w", context.Canceled), 130, "nixfleet: interrupted\n"},
		{Coded(4, fmt.Errorf("open: %w", ownHint{errors.New("x")})), 4, "nixfleet: open: x\nhint: its own\n"},
		{&Error{Err: errors.Join(errors.New("a"), ownHint{errors.New("b")})}, 1, "nixfleet: a\nb\nhint: its own\n"},
		{fmt.Errorf("run git: %w", exec.Command("/bin/sh", "-c", "exit 7").Run()), 1, "nixfleet: run git: exit status 7\n"},
		{errors.New("host said \x1b[2J\u202e\u0085\xff"), 1, "nixfleet: host said  [2J  \ufffd\n"},
	} {
		var out bytes.Buffer
		if code := Report(&out, c.err); code != c.code || out.String() != c.text {
			t.Errorf("%v: code %d, %q; want %d, %q", c.err, code, out.String(), c.code, c.text)
		}
	}
}
