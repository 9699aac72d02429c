package operator

import (
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

func canonicalizeCommand() *cli.Command {
	return &cli.Command{
		Name: "canonicalize", Usage: "print the canonical form (RFC 8785) of a JSON document",
		Description: "Reads standard input, writes the canonical bytes without a newline: what signatures are made over.\n" +
			"Exit 1: not acceptable JSON; 2: not UTF-8, or reading or writing failed.\n\n" +
			"Example:\n   nixfleet canonicalize < fleet.resolved.json | sha256sum",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "hash", Usage: "print the lower-case hex SHA-256 instead"}},
		Action: func(c *cli.Context) error {
			in, err := io.ReadAll(io.LimitReader(c.App.Reader, pki.MaxDocument+1))
			if err != nil {
				return command.Coded(2, fmt.Errorf("read standard input: %w", err))
			}
			out, err := pki.Canonicalize(in)
			if err != nil {
				err = fmt.Errorf("canonicalize: %w", err)
				// A lone surrogate is UTF-8 as long as it is escaped: bad JSON, no bad bytes.
				if len(in) <= pki.MaxDocument && !utf8.Valid(in) {
					return command.Coded(2, command.Hinted(err, "JSON is UTF-8; iconv -t UTF-8 converts a file"))
				}
				return command.Hinted(err, "no signature is made over a document that readers could understand in two ways")
			}
			if c.Bool("hash") {
				out = []byte(pki.HashHex(out) + "\n")
			}
			if _, err := c.App.Writer.Write(out); err != nil {
				return command.Coded(2, fmt.Errorf("write standard output: %w", err))
			}
			return nil
		},
	}
}
