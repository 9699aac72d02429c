package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

func planCommand() *cli.Command {
	return &cli.Command{
		Name: "plan", Usage: "what would happen from now on, and when at the earliest",
		Description: "The control plane simulates what comes, on a copy of its state, by the rules that it decides by. It\n" +
			"assumes that every host that has checked in takes its update and stays healthy, and that the others stay\n" +
			"silent. With --release it simulates a signed release that is not published yet. Nothing is changed.\n\n" +
			"Example:\n   nixfleet plan\n   nixfleet plan --release releases --json",
		Flags: append(connectionFlags(), command.JSONFlag(),
			&cli.StringFlag{Name: "release", Usage: "`DIR` of a signed release, as nixfleet release writes it"}),
		Action: func(c *cli.Context) error {
			client, err := connect(c)
			if err != nil {
				return err
			}
			var body jsontext.Value
			client = client.Keeping(&body)
			ask := func() (*protocol.Plan, error) { return client.Plan(c.Context, nil) }
			if dir := c.String("release"); dir != "" {
				docs, err := fleet.Documents(os.DirFS(dir))
				if errors.Is(err, fs.ErrNotExist) {
					return command.Hinted(fmt.Errorf("read release in %s: %w", dir, err),
						"nixfleet release --release-dir %s makes one", dir)
				} else if err != nil {
					return fmt.Errorf("read release in %s: %w", dir, err)
				}
				ask = func() (*protocol.Plan, error) { return client.Plan(c.Context, docs) }
			}
			plan, err := ask()
			if err != nil {
				return explained(err, "ask for the plan")
			}
			if c.Bool("json") {
				return command.Text(c, body)
			}
			return printPlan(c, plan)
		},
	}
}

// printPlan shows waves, then hosts, both in time order, then who is blocked.
func printPlan(c *cli.Context, p *protocol.Plan) error {
	w := c.App.Writer
	if len(p.Moves)+len(p.Blocked) == 0 {
		_, err := fmt.Fprintln(w, "nothing would change: every host runs what it should")
		return err
	}
	in := func(t time.Time) string {
		switch d := t.Sub(p.At.Time).Round(time.Second); {
		case d > 0:
			return "+" + d.String()
		case d < 0:
			return "under way"
		}
		return "now"
	}
	channels := [][]string{{"CHANNEL", "ROLLOUT", "ENDS", "WHEN", "WHY IT STOPS"}}
	for _, x := range p.Channels {
		row := []string{command.Plain(x.Channel), command.Plain(command.Short(x.RolloutID)), command.Plain(x.State), "-", ""}
		if x.ConvergedAt != nil {
			row[3] = "done"
			if x.ConvergedAt.After(p.At.Time) {
				row[3] = in(x.ConvergedAt.Time)
			}
		}
		if x.Reason != nil {
			row[4] = command.Plain(x.Reason.Text)
		}
		channels = append(channels, row)
	}
	waves := [][]string{{"OPENS", "CHANNEL", "WAVE", "HOSTS", "SOAK"}}
	for _, x := range p.Waves {
		waves = append(waves, []string{in(x.At.Time), command.Plain(x.Channel), fmt.Sprint(x.Wave + 1), fmt.Sprint(x.Hosts),
			(time.Duration(x.SoakSecs) * time.Second).String()})
	}
	moves := [][]string{{"STARTS", "HOST", "CHANNEL", "WAVE", "FROM", "TO"}}
	for _, x := range p.Moves {
		moves = append(moves, []string{in(x.At.Time), command.Plain(x.Host), command.Plain(x.Channel), fmt.Sprint(x.Wave + 1),
			closureShort(x.From), closureShort(&x.To)})
	}
	blocked := [][]string{{"BLOCKED", "CHANNEL", "WAVE", "FROM", "TO", "WHY"}}
	for _, x := range p.Blocked {
		blocked = append(blocked, []string{command.Plain(x.Host), command.Plain(x.Channel), fmt.Sprint(x.Wave + 1),
			closureShort(x.From), closureShort(x.To),
			command.Plain(x.Reason.Text) + " [" + command.Plain(x.Reason.Code) + "]"})
	}
	between := ""
	for _, table := range [][][]string{channels, waves, moves, blocked} {
		if len(table) == 1 {
			continue
		}
		fmt.Fprint(w, between)
		if err := command.Table(w, table); err != nil {
			return err
		}
		between = "\n"
	}
	return nil
}
