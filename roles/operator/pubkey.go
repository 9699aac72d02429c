package operator

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
)

func derivePubkeyCommand() *cli.Command {
	return &cli.Command{
		Name: "derive-pubkey", Usage: "print the public half of a key file", ArgsUsage: "FILE",
		Description: "Reads PKCS#8 PEM, OpenSSH, 64 hex digits, 32 raw bytes, or any of these encrypted with age.\n" +
			"Prints what nixfleet.trust takes: base64 of the raw public key.\n\n" +
			"Example:\n   nixfleet derive-pubkey org-root.key",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "identity", Usage: "age identity or ssh private key `FILE` that opens an encrypted key"},
			command.JSONFlag(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return command.Usage("nixfleet derive-pubkey FILE", "derive-pubkey takes one file")
			}
			key, err := newKeyring(c.String("identity")).key(c.Args().First())
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return command.Document(c, key.Public())
			}
			_, err = fmt.Fprintln(c.App.Writer, key.Public().Public)
			return err
		},
	}
}
