package command

import (
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// TestWithoutVariables sets the variable of every kind of flag that Variables knows.
func TestWithoutVariables(t *testing.T) {
	var set []string
	app := func() *cli.App {
		flags := []cli.Flag{
			&cli.StringFlag{Name: "text"}, &cli.StringSliceFlag{Name: "list"}, &cli.BoolFlag{Name: "truth"},
			&cli.IntFlag{Name: "int"}, &cli.Int64Flag{Name: "long"}, &cli.Float64Flag{Name: "float"},
			&cli.DurationFlag{Name: "time", Value: time.Second},
		}
		c := &cli.Command{Name: "inner", Flags: Variables("WITHOUT", flags...), Action: func(c *cli.Context) error {
			set = c.LocalFlagNames()
			return nil
		}}
		return App("test", &cli.Command{Name: "outer", Subcommands: []*cli.Command{c}})
	}
	for name, value := range map[string]string{
		"TEXT": "x", "LIST": "x", "TRUTH": "true", "INT": "7", "LONG": "7", "FLOAT": "7", "TIME": "7s",
	} {
		t.Setenv("WITHOUT_"+name, value)
	}
	line := []string{"nixfleet", "outer", "inner"}
	if err := app().Run(line); err != nil || len(set) != 7 {
		t.Fatalf("with their variables %v are set: %v", set, err)
	}
	deaf := app()
	WithoutVariables(deaf.Commands...)
	if err := deaf.Run(line); err != nil || len(set) != 0 {
		t.Errorf("without variables %v are set: %v", set, err)
	}
}
