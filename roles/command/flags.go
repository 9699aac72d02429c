package command

import (
	"flag"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// Variable returns the environment's way to write a name: "cp-url" is CP_URL.
func Variable(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Variables gives each flag that names no environment variable the variable
// PREFIX_FLAG, and returns flags that take an empty variable for none, as CI
// hands on what is not set. Boolean flags also read yes, no, on and off, as
// units in the field write them.
func Variables(prefix string, flags ...cli.Flag) []cli.Flag {
	out := make([]cli.Flag, 0, len(flags))
	for _, f := range flags {
		out = append(out, variable(f, []string{prefix + "_" + Variable(f.Names()[0])}))
	}
	return out
}

func variable(f cli.Flag, name []string) cli.Flag {
	switch f := f.(type) {
	case *cli.StringFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
		return textFlag{f}
	case *cli.StringSliceFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
		return listFlag{f}
	case *cli.BoolFlag:
		f.EnvVars, f.DisableDefaultText = otherwise(f.EnvVars, name), true
		return truthFlag{f}
	// The library itself skips the empty variable of a number.
	case *cli.IntFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
	case *cli.Int64Flag:
		f.EnvVars = otherwise(f.EnvVars, name)
	case *cli.Float64Flag:
		f.EnvVars = otherwise(f.EnvVars, name)
	case *cli.DurationFlag:
		f.EnvVars = otherwise(f.EnvVars, name)
	}
	return f
}

// WithoutVariables makes commands deaf to the environment, for a program that runs another role's command line in its
// own process: the variables around it are meant for itself.
func WithoutVariables(commands ...*cli.Command) {
	for _, c := range commands {
		WithoutVariables(c.Subcommands...)
		for _, f := range c.Flags {
			forget(f)
		}
	}
}

func forget(f cli.Flag) {
	switch f := f.(type) {
	case textFlag:
		forget(f.StringFlag)
	case listFlag:
		forget(f.StringSliceFlag)
	case truthFlag:
		forget(f.BoolFlag)
	case *cli.StringFlag:
		f.EnvVars = nil
	case *cli.StringSliceFlag:
		f.EnvVars = nil
	case *cli.BoolFlag:
		f.EnvVars = nil
	case *cli.IntFlag:
		f.EnvVars = nil
	case *cli.Int64Flag:
		f.EnvVars = nil
	case *cli.Float64Flag:
		f.EnvVars = nil
	case *cli.DurationFlag:
		f.EnvVars = nil
	}
}

func otherwise(have, names []string) []string {
	if len(have) > 0 {
		return have
	}
	return names
}

// Repeats says whether a flag may be given more than once.
func Repeats(f cli.Flag) bool {
	list, ok := f.(cli.DocGenerationSliceFlag)
	return ok && list.IsSliceFlag()
}

// textFlag is a flag with text.
type textFlag struct{ *cli.StringFlag }

// Apply defines the flag in set.
func (f textFlag) Apply(set *flag.FlagSet) error {
	defer func(all []string) { f.EnvVars = all }(f.EnvVars)
	f.EnvVars = filled(f.EnvVars)
	return f.StringFlag.Apply(set)
}

// listFlag is a flag that may be repeated.
type listFlag struct{ *cli.StringSliceFlag }

// Apply defines the flag in set.
func (f listFlag) Apply(set *flag.FlagSet) error {
	defer func(all []string) { f.EnvVars = all }(f.EnvVars)
	f.EnvVars = filled(f.EnvVars)
	return f.StringSliceFlag.Apply(set)
}

// filled are the variables that are set to something.
func filled(names []string) []string {
	var given []string
	for _, name := range names {
		if os.Getenv(name) != "" {
			given = append(given, name)
		}
	}
	return given
}

// truthFlag is a flag without a value, which also reads words for true and
// false from its variable and behind "=".
type truthFlag struct{ *cli.BoolFlag }

// Apply defines the flag in set, with what its variable says.
func (f truthFlag) Apply(set *flag.FlagSet) error {
	value := truth(f.Value)
	if names := filled(f.EnvVars); len(names) > 0 {
		if err := value.Set(os.Getenv(names[0])); err != nil {
			return fmt.Errorf("%s: %w", names[0], err)
		}
		f.HasBeenSet = true
	}
	for _, name := range f.Names() {
		set.Var(&value, name, f.Usage)
	}
	return nil
}

// truth is the value of a truthFlag.
type truth bool

// Set reads a word for true or false.
func (t *truth) Set(word string) error {
	switch strings.ToLower(word) {
	case "1", "t", "true", "yes", "on":
		*t = true
	case "0", "f", "false", "no", "off":
		*t = false
	default:
		return fmt.Errorf("%q is neither true nor false", word)
	}
	return nil
}

func (t *truth) String() string { return strconv.FormatBool(bool(*t)) }

// IsBoolFlag lets the flag stand without a value.
func (t *truth) IsBoolFlag() bool { return true }

// LongestTime is the longest time that the wire can say, 136 years.
const LongestTime = math.MaxUint32 * time.Second

// Seconds is a number of seconds. What is longer than LongestTime stays longer
// than it, where a Duration by itself would wrap around.
func Seconds(n int) time.Duration {
	const most = int64(LongestTime/time.Second) + 1
	return time.Duration(max(-most, min(int64(n), most))) * time.Second
}
