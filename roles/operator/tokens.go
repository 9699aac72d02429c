package operator

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

func tokenCommand() *cli.Command {
	return &cli.Command{
		Name: "token", Usage: "bootstrap tokens", Description: "Example:\n   nixfleet token inspect token.json",
		Subcommands: []*cli.Command{{
			Name: "inspect", Usage: "what a bootstrap token admits, and until when", ArgsUsage: "FILE",
			Description: "The signature is not printed. FILE is - for the standard input.\n\n" +
				"Example:\n   nixfleet token inspect token.json",
			Flags: []cli.Flag{command.JSONFlag()},
			Action: func(c *cli.Context) error {
				if c.NArg() != 1 {
					return command.Usage("nixfleet token inspect FILE", "token inspect takes one file")
				}
				text, err := command.ReadFile(c.Args().First(), command.SmallFile)
				if err != nil {
					return err
				}
				token, err := pki.ParseToken(text)
				if err != nil {
					return fmt.Errorf("read token: %w", err)
				}
				if c.Bool("json") {
					return command.Document(c, token.Claims)
				}
				now, t := time.Now(), token.Claims
				ends := "in " + command.Age(t.ExpiresAt.Sub(now))
				if !now.Before(t.ExpiresAt.Time) {
					ends = "expired"
				}
				return command.Table(c.App.Writer, [][]string{
					{"host", command.Plain(t.Hostname)}, {"key", command.Plain(t.ExpectedPubkeyFingerprint)},
					{"issued", since(t.IssuedAt.Time, now)}, {"ends", when(t.ExpiresAt.Time) + " (" + ends + ")"},
					{"nonce", command.Plain(t.Nonce)},
				})
			},
		}},
	}
}
