package operator

import (
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
)

func freezeCommand() *cli.Command {
	c := verb("freeze", "CHANNEL", "let nothing new start on a channel until a time, whichever releases come",
		"nixfleet freeze stable --until 2027-01-04 --reason 'holidays'", freeze,
		&cli.StringFlag{Name: "until", Usage: "`WHEN` it ends: a time such as 2027-01-04T06:00:00Z, a day (its beginning " +
			"in UTC), or so much from now, as in 36h or 14d"},
		&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the record"})
	c.Description = "Hosts that have begun go on, and those that have to go back do so. A host that you retry gets its " +
		"target,\nand a release that declares an emergency (channels.NAME.emergency) is not held.\n\n" + c.Description
	return c
}

func thawCommand() *cli.Command {
	return verb("thaw", "CHANNEL", "end the freeze of a channel before its time",
		"nixfleet thaw stable --reason 'back early'", thaw, &cli.StringFlag{Name: "reason", Usage: "`TEXT` for the record"})
}

// oneChannel is the only argument of freeze and thaw, which are recorded with a reason.
func oneChannel(c *cli.Context) (string, error) {
	name := c.Args().First()
	if c.NArg() != 1 || !fleet.ValidChannel(name) {
		return "", command.Usage(c.Command.HelpName+" --help", "it takes one channel name")
	}
	if c.String("reason") == "" {
		return "", command.Usage("", "--reason is missing: it is recorded beside your name")
	}
	return name, nil
}

func freeze(c *cli.Context) error {
	name, err := oneChannel(c)
	if err != nil {
		return err
	}
	until, ok := moment(c.String("until"), time.Now())
	if !ok {
		return command.Usage(c.Command.HelpName+" --help",
			"--until %q is not a time, a day or a number of hours or days, such as 2027-01-04 or 14d", c.String("until"))
	}
	plane, err := connect(c)
	if err != nil {
		return err
	}
	if err := plane.Channel(name).Freeze(c.Context, until, c.String("reason")); err != nil {
		return explained(err, "freeze channel "+name)
	}
	return done(c, map[string]any{"channel": name, "action": "freeze", "until": until.UTC().Format(time.RFC3339)},
		"channel %s is frozen until %s; end it: nixfleet thaw %s --reason TEXT", name, clock(until), name)
}

func thaw(c *cli.Context) error {
	name, err := oneChannel(c)
	if err != nil {
		return err
	}
	plane, err := connect(c)
	if err != nil {
		return err
	}
	if err := plane.Channel(name).Thaw(c.Context, c.String("reason")); err != nil {
		return explained(err, "thaw channel "+name)
	}
	return done(c, map[string]any{"channel": name, "action": "thaw"}, "channel %s is not frozen any more", name)
}

// moment reads a time, a day or a duration from now, to the second.
func moment(text string, now time.Time) (time.Time, bool) {
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(form, text); err == nil {
			return at, true
		}
	}
	if days, counted := strings.CutSuffix(text, "d"); counted {
		n, err := strconv.ParseUint(days, 10, 16)
		return now.AddDate(0, 0, int(n)).Truncate(time.Second), err == nil
	}
	long, err := time.ParseDuration(text)
	return now.Add(long).Truncate(time.Second), err == nil
}

func clock(at time.Time) string { return at.UTC().Format("2006-01-02 15:04 UTC") }
