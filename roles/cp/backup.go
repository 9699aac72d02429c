package cp

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/store"
)

const backupTimeout = 10 * time.Minute

func backupCommand() *cli.Command {
	return &cli.Command{
		Name:  "backup",
		Usage: "copy the state database while the control plane uses it",
		Description: "Example:\n   nixfleet cp backup --db-path /var/lib/nixfleet-cp/state.db " +
			"--output /backup/state-$(date +%F).db",
		Flags: command.Variables(variables,
			textFlag("db-path", defaultStateDir+"/state.db", "state database `FILE`"),
			&cli.StringFlag{
				Name: "output", EnvVars: []string{"NIXFLEET_CP_BACKUP_OUTPUT"},
				Usage: "write the copy to `FILE`, which must not exist",
			},
		),
		Action: func(c *cli.Context) error {
			if err := command.Needs(c, "output"); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context, backupTimeout)
			defer cancel()
			if err := store.BackupFile(ctx, c.String("db-path"), c.String("output")); err != nil {
				return failed(1, err, "")
			}
			_, err := fmt.Fprintf(c.App.Writer, "copied %s to %s\n", c.String("db-path"), c.String("output"))
			return err
		},
	}
}
