package command

import (
	"bytes"
	"context"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// try runs a command with one flag of every kind and returns what it read.
func try(t *testing.T, args ...string) (c *cli.Context, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	app := App("test", &cli.Command{
		Name: "try",
		Flags: Variables("NIXFLEET_TRY",
			&cli.BoolFlag{Name: "dry-run"}, &cli.StringFlag{Name: "name", Value: "web"}, &cli.IntFlag{Name: "count", Value: 3},
			&cli.StringSliceFlag{Name: "hosts", Value: cli.NewStringSlice("a")},
			&cli.DurationFlag{Name: "pause", Value: time.Second},
			&cli.Float64Flag{Name: "part", Value: 0.5}, &cli.Int64Flag{Name: "after", Value: 7},
		),
		Action: func(ctx *cli.Context) error { c = ctx; return nil },
	})
	app.Writer, app.ErrWriter = &out, &errs
	code = Run(context.Background(), app, append([]string{"nixfleet", "try"}, args...))
	return c, errs.String(), code
}

func TestBooleansOfTheEnvironment(t *testing.T) {
	for value, want := range map[string]bool{
		"yes": true, "on": true, "1": true, "true": true, "ON": true, "T": true,
		"no": false, "off": false, "0": false, "false": false, "f": false, "": false,
	} {
		t.Setenv("NIXFLEET_TRY_DRY_RUN", value)
		c, stderr, code := try(t)
		if code != 0 || c.Bool("dry-run") != want || c.IsSet("dry-run") != (value != "") {
			t.Errorf("%s: exit %d, read as %v: %s", value, code, c != nil && c.Bool("dry-run"), stderr)
		}
		if got := os.Getenv("NIXFLEET_TRY_DRY_RUN"); got != value {
			t.Errorf("the variable was %q and is %q", value, got)
		}
		if value == "" {
			continue
		}
		t.Setenv("NIXFLEET_TRY_DRY_RUN", "")
		if c, _, code := try(t, "--dry-run="+value); code != 0 || c.Bool("dry-run") != want {
			t.Errorf("--dry-run=%s: exit %d", value, code)
		}
	}
	t.Setenv("NIXFLEET_TRY_DRY_RUN", "perhaps")
	want := "nixfleet: NIXFLEET_TRY_DRY_RUN: \"perhaps\" is neither true nor false\nhint: nixfleet try --help\n"
	if _, stderr, code := try(t); code != 2 || stderr != want {
		t.Errorf("perhaps: exit %d, %q", code, stderr)
	}
}

// CI hands on variables that it does not set as empty ones.
func TestEmptyVariableIsNone(t *testing.T) {
	for _, name := range []string{"DRY_RUN", "NAME", "COUNT", "HOSTS", "PAUSE", "PART", "AFTER"} {
		t.Setenv("NIXFLEET_TRY_"+name, "")
	}
	c, stderr, code := try(t)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if c.String("name") != "web" || c.Int("count") != 3 || !slices.Equal(c.StringSlice("hosts"), []string{"a"}) ||
		c.Duration("pause") != time.Second || c.Float64("part") != 0.5 || c.Int64("after") != 7 {
		t.Error("an empty variable took the place of a default")
	}
	for _, f := range c.Command.Flags {
		if c.IsSet(f.Names()[0]) {
			t.Errorf("--%s counts as set", f.Names()[0])
		}
	}
	t.Setenv("NIXFLEET_TRY_HOSTS", "b,c")
	t.Setenv("NIXFLEET_TRY_NAME", "db")
	c, _, _ = try(t)
	if got := c.StringSlice("hosts"); !slices.Equal(got, []string{"b", "c"}) || c.String("name") != "db" ||
		!c.IsSet("hosts") || !c.IsSet("name") {
		t.Errorf("hosts %v, name %s", got, c.String("name"))
	}
	for _, f := range c.Command.Flags {
		if doc, ok := f.(cli.DocGenerationFlag); ok && f.Names()[0] != "help" && len(doc.GetEnvVars()) != 1 {
			t.Errorf("--%s names the variables %v", f.Names()[0], doc.GetEnvVars())
		}
		if Repeats(f) != (f.Names()[0] == "hosts") {
			t.Errorf("--%s may be repeated: %t", f.Names()[0], Repeats(f))
		}
	}
}

func TestSecondsDoNotWrapAround(t *testing.T) {
	for n, want := range map[int]time.Duration{
		0: 0, 60: time.Minute, -5: -5 * time.Second, math.MaxUint32: LongestTime,
		math.MaxInt64: LongestTime + time.Second, math.MinInt64: -LongestTime - time.Second,
	} {
		if got := Seconds(n); got != want {
			t.Errorf("%d seconds: %s, want %s", n, got, want)
		}
	}
}
