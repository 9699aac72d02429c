package operator

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

func revocationsCommand() *cli.Command {
	return &cli.Command{
		Name: "revocations", Usage: "which certificates are refused, and taking that back",
		Description: "Example:\n   nixfleet revocations list",
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "every revocation, local and signed, and whom it concerns",
				Description: "A row that concerns nobody differs from the name of a host by case or blanks: it refuses no " +
					"certificate.\n\nExample:\n   nixfleet revocations list",
				Flags: append(connectionFlags(), command.JSONFlag()), Action: listRevocations,
			},
			{
				Name: "undo", ArgsUsage: "NAME", Usage: "take back the local revocations of a name",
				Description: "Recorded with your name and the reason. One of the signed list is lifted by a release without " +
					"it.\n\nExample:\n   nixfleet revocations undo web-07 --reason 'the disk was found'",
				Flags: append(connectionFlags(), &cli.StringFlag{Name: "reason", Usage: "`TEXT` for the record"},
					command.JSONFlag()),
				Action: undoRevocation,
			},
		},
	}
}

func listRevocations(c *cli.Context) error {
	plane, err := connect(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		answer, err := plane.Raw(c.Context, "/v1/revocations")
		if err != nil {
			return explained(err, "ask for the revocations")
		}
		return command.Text(c, answer)
	}
	answer, err := plane.Revocations().List(c.Context)
	if err != nil {
		return explained(err, "ask for the revocations")
	}
	rows := [][]string{{"NAME", "NOT BEFORE", "CONCERNS", "FROM", "BY", "REASON"}}
	for _, r := range answer.Revocations {
		notBefore := "unreadable: refuses all"
		if r.NotBefore != nil {
			notBefore = r.NotBefore.String()
		}
		whom := command.Plain(string(r.Concerns))
		if r.Meant != "" {
			whom += ", meant " + command.Plain(r.Meant)
		}
		name := command.Plain(r.Hostname)
		if r.Concerns == protocol.ConcernsNobody {
			name = fmt.Sprintf("%q", name) // blanks are seen
		}
		rows = append(rows, []string{name, notBefore, whom, command.Plain(r.Source), command.Plain(r.RevokedBy),
			command.Plain(r.Reason)})
	}
	return command.Table(c.App.Writer, rows)
}

func undoRevocation(c *cli.Context) error {
	name := c.Args().First()
	if c.NArg() != 1 || name == "" {
		return command.Usage("nixfleet revocations undo NAME --reason TEXT", "undo takes one name")
	}
	if c.String("reason") == "" {
		return command.Usage("", "--reason is missing: the record keeps it beside the name")
	}
	plane, err := connect(c)
	if err != nil {
		return err
	}
	done, err := plane.Revocations().Undo(c.Context, name, c.String("reason"))
	if err != nil {
		return explained(err, "undo the revocation of "+name)
	}
	if c.Bool("json") {
		return command.Document(c, done)
	}
	text := fmt.Sprintf("%d local revocations of %s taken back\n", done.Rows, name)
	if done.SignedNotBefore != nil {
		text += fmt.Sprintf("warning: the signed list still refuses certificates issued before %s: take the entry out of\n"+
			"revocations of the fleet and release\n", pki.At(done.SignedNotBefore.Time))
	}
	_, err = fmt.Fprint(c.App.Writer, text)
	return err
}
