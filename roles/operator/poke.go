package operator

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// PokeCommand is `nixfleet cp poke`. It is an operator's question to a running
// control plane, so it lives here; main hangs it under cp.
func PokeCommand() *cli.Command {
	c := &cli.Command{
		Name: "poke", Usage: "make the control plane look for a new release now",
		Description: "What a webhook of the forge does, by hand.\n\nExample:\n   git push && nixfleet cp poke",
		Flags:       connectionFlags(),
		Action: func(c *cli.Context) error {
			client, err := connect(c)
			if err != nil {
				return err
			}
			if err := client.Poke(c.Context); err != nil {
				return explained(err, "poke the control plane")
			}
			_, err = fmt.Fprintln(c.App.Writer, "the control plane is polling its source now")
			return err
		},
	}
	finish(c, "NIXFLEET_CP")
	return c
}
