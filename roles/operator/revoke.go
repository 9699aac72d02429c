package operator

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol/client"
)

func revokeCommand() *cli.Command {
	return &cli.Command{
		Name: "revoke", Usage: "refuse a host's (or an operator's) certificates from now on", ArgsUsage: "NAME",
		Description: "Takes effect on the next request. The control plane keeps it in its database only: commit the " +
			"printed\n" +
			"line, so that it survives the loss of the database. To come back, the host needs a new token.\n\n" +
			"Exit 4: the fleet declares no host of that name, and nothing was revoked. The names of operators are not\n" +
			"declared: add --force.\n\n" +
			"Example:\n   nixfleet revoke web-07 --reason 'disk was stolen'",
		Flags: append(connectionFlags(),
			&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the record"},
			&cli.StringFlag{Name: "not-before", Usage: "refuse certificates issued before this `TIME`, RFC 3339 (default: now)"},
			&cli.BoolFlag{Name: "force", Usage: "revoke a name that the fleet does not declare, such as an operator's"},
			command.JSONFlag()),
		Action: revoke,
	}
}

func revoke(c *cli.Context) error {
	name := c.Args().First()
	if c.NArg() != 1 || name == "" {
		return command.Usage("nixfleet revoke NAME --reason TEXT", "revoke takes one name")
	}
	if c.String("reason") == "" {
		return command.Usage("", "--reason is missing: the list keeps it beside the name")
	}
	// A certificate issued in this very second carries it as notBefore.
	notBefore := pki.At(time.Now().UTC().Truncate(time.Second).Add(time.Second))
	if text := c.String("not-before"); text != "" {
		var err error
		if notBefore, err = pki.ParseTimestamp(text); err != nil {
			return command.Usage("write it as 2026-03-01T12:00:00Z", "--not-before: %w", err)
		}
		if notBefore.After(time.Now().Add(pki.ClockSlack)) {
			return command.Usage("leave it out to refuse all certificates of today",
				"--not-before %s is in the future: certificates that are issued until then would be refused, too", text)
		}
	}
	plane, err := connect(c)
	if err != nil {
		return err
	}
	if err := knownName(c, plane, name); err != nil {
		return err
	}
	if err := plane.Revocations().Add(c.Context, name, &notBefore, c.String("reason")); err != nil {
		return explained(err, "revoke "+name)
	}
	declaration := fmt.Sprintf("{ hostname = %s; notBefore = %s; reason = %s; }", nixString(name),
		nixString(notBefore.String()), nixString(c.String("reason")))
	if c.Bool("json") {
		return command.Document(c, map[string]any{
			"hostname": name, "notBefore": notBefore, "reason": c.String("reason"), "declaration": declaration,
		})
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s is revoked on the control plane: certificates issued before %s are refused\n"+
		"add to revocations of mkFleet, commit and release, so that it outlives the database:\n  %s\n"+
		"to let the host in again: nixfleet mint-token --hostname %s --host-pubkey FILE --org-root-key FILE\n",
		name, notBefore, declaration, name)
	return err
}

// exitUnknownName is the exit code of revoke for a name that the fleet does not declare.
const exitUnknownName = 4

// knownName refuses a name that is not a host of the fleet: one that was mistyped becomes a row like any other, and
// shuts out nobody. Operators are not declared, so their names need --force.
func knownName(c *cli.Context, plane *client.Client, name string) error {
	var unknown *client.Error
	if _, err := plane.Explain(c.Context, name); !errors.As(err, &unknown) || unknown.Code != "no-such-host" {
		return nil // what else goes wrong, the revocation says itself
	}
	if c.Bool("force") {
		progress(c, "warning: the fleet declares no host %s: unless an operator's certificate has that name, this refuses "+
			"nobody", name)
		return nil
	}
	return command.Coded(exitUnknownName, command.Hinted(
		fmt.Errorf("revoke %s: the fleet declares no host of that name, so nothing was revoked", name),
		"nixfleet status lists the hosts; if it is an operator's certificate: nixfleet revoke %s --force --reason %s",
		command.ShellWord(name), command.ShellWord(c.String("reason"))))
}
