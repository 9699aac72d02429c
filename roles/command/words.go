package command

import (
	"slices"

	"github.com/urfave/cli/v2"
)

// versionCommand is `nixfleet version`, for people who do not know flags yet.
func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "which nixfleet this is", Description: "Example:\n   nixfleet version",
		Action: func(c *cli.Context) error {
			cli.ShowVersion(c)
			return nil
		},
	}
}

// helped makes of `nixfleet help rollout watch` what the library understands. Help is not a command: the library gives
// an app that has one no --help.
func helped(args []string) []string {
	if len(args) < 2 || args[1] != "help" {
		return args
	}
	return slices.Concat(args[:1], args[2:], []string{"--help"})
}
