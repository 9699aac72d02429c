package cp

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/store"
)

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name:  "restore",
		Usage: "put a backup in the place of the state database of a stopped control plane",
		Description: "The database of before stays beside it under another name. Its revocations and used tokens are\n" +
			"carried over, so that none is forgotten.\n\n" +
			"Example:\n   systemctl stop nixfleet-control-plane\n" +
			"   nixfleet cp restore --db-path /var/lib/nixfleet-cp/state.db --input /backup/state-2026-03-01.db",
		Flags: command.Variables(variables,
			textFlag("db-path", defaultStateDir+"/state.db", "state database `FILE`"),
			&cli.StringFlag{
				Name: "input", Required: true, EnvVars: []string{"NIXFLEET_CP_RESTORE_INPUT"},
				Usage: "the backup `FILE`, as nixfleet cp backup writes it",
			},
		),
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, backupTimeout)
			defer cancel()
			done, err := store.RestoreFile(ctx, c.String("input"), c.String("db-path"))
			if err != nil {
				return failed(1, err, "")
			}
			text := fmt.Sprintf("restored %s from %s\n", c.String("db-path"), c.String("input"))
			if done.Aside != "" {
				text += "the database of before is " + done.Aside + "\n"
			}
			switch {
			case done.Carried:
				text += "its revocations and used tokens were carried over\n"
			case done.Aside != "":
				text += "warning: it cannot be read: revocations and used tokens since the backup are missing\n"
			}
			_, err = fmt.Fprint(c.App.Writer, text)
			return err
		},
	}
}
