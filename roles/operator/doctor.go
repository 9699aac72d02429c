package operator

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// finding is one thing that doctor looked at. Level is ok, warning or fault; Fix is what to do about it.
type finding struct {
	Check string `json:"check"`
	Level string `json:"level"`
	Says  string `json:"says"`
	Fix   string `json:"fix,omitzero"`
}

const (
	findingOK      = "ok"
	findingWarning = "warning"
	findingFault   = "fault"
)

// clockSlack is how far this machine's clock may be from the control plane's.
const clockSlack = 30 * time.Second

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "look for what is wrong with this workstation and the control plane that it asks",
		Description: "Looks at the configuration, the operator's certificate and key, the way to the control plane, the\n" +
			"clock, the age of the release, certificates and hosts that are silent. Each finding says what to do.\n" +
			"Exit 1 when something is wrong. On a host: nixfleet agent status.\n\n" +
			"Example:\n   nixfleet doctor\n   nixfleet doctor --json",
		Flags:  append(connectionFlags(), command.JSONFlag(), command.NoColourFlag()),
		Action: doctor,
	}
}

func doctor(c *cli.Context) error {
	findings := examined(c, time.Now())
	worst := 0
	for _, f := range findings {
		if f.Level == findingFault {
			worst++
		}
	}
	if c.Bool("json") {
		if err := command.Document(c, map[string]any{"findings": findings}); err != nil {
			return err
		}
	} else {
		p := command.ColoursOf(c)
		colours := map[string]command.Colour{findingOK: command.Green, findingWarning: command.Yellow,
			findingFault: command.Red}
		var rows [][]string
		for _, f := range findings {
			rows = append(rows, []string{p.Paint(colours[f.Level], f.Level), f.Check, command.Plain(f.Says)})
			if f.Fix != "" {
				rows = append(rows, []string{"", "", "fix: " + f.Fix})
			}
		}
		if err := command.Table(c.App.Writer, rows); err != nil {
			return err
		}
	}
	if worst > 0 {
		return fmt.Errorf("%s", command.Plural(worst, "fault"))
	}
	return nil
}

// examined looks at one thing after the other, as long as what comes next can be looked at.
func examined(c *cli.Context, now time.Time) (out []finding) {
	add := func(check, level, says, fix string) { out = append(out, finding{check, level, says, fix}) }
	plane, err := connect(c)
	if err != nil {
		add("configuration", findingFault, err.Error(), cmp.Or(command.HintOf(err), "nixfleet config show"))
		return out
	}
	add("configuration", findingOK, "it names a control plane, and the operator's certificate is valid", "")
	if info, err := os.Stat(c.String("client-key")); err == nil && info.Mode().Perm()&0o077 != 0 {
		add("key", findingFault, fmt.Sprintf("%s has mode %04o and is open to others", c.String("client-key"),
			info.Mode().Perm()), "chmod 600 "+command.ShellWord(c.String("client-key")))
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		if os.Getenv(name) != "" {
			add("proxy", findingWarning, name+" is set; requests to the control plane may go by it", "unset "+name)
		}
	}
	who, err := plane.Whoami(c.Context)
	if err != nil {
		err = explained(err, "reach "+c.String("cp-url"))
		add("control plane", findingFault, err.Error(), command.HintOf(err))
		return out
	}
	add("control plane", findingOK, "it answers, and takes this workstation for "+who.CN, "")
	if skew := now.Sub(who.IssuedAt.Time); skew.Abs() > clockSlack {
		add("clock", findingFault, fmt.Sprintf("this machine's clock differs from the control plane's by %s",
			skew.Round(time.Second)), "timedatectl; set the clock of the one that is wrong")
	} else {
		add("clock", findingOK, "it agrees with the control plane's", "")
	}
	out = append(out, examinedReleases(c, plane, now)...)
	out = append(out, examinedCertificates(c, plane, now)...)
	return append(out, examinedHosts(c, plane)...)
}

func examinedReleases(c *cli.Context, plane *client.Client, now time.Time) (out []finding) {
	channels, err := plane.Channels(c.Context)
	if err != nil {
		return nil // a control plane of v1
	}
	for _, ch := range channels.Channels {
		f := finding{"release of " + command.Plain(ch.Name), findingOK, "it is fresh", ""}
		if ch.SignedAt != nil {
			window := fleet.Minutes(ch.FreshnessWindowMinutes)
			switch age := now.Sub(ch.SignedAt.Time); {
			case age > window:
				f.Level, f.Says = findingFault, fmt.Sprintf("it was signed %s ago, and agents refuse it after %s",
					command.Age(age), command.Age(window))
				f.Fix = "nixfleet release --resign, from a timer"
			case age > window/2:
				f.Level, f.Says = findingWarning, fmt.Sprintf("it was signed %s ago; agents refuse it after %s",
					command.Age(age), command.Age(window))
				f.Fix = "nixfleet release --resign, from a timer"
			}
		}
		out = append(out, f)
		if state := protocol.RolloutState(ch.RolloutState); state == protocol.RolloutHalted ||
			state == protocol.RolloutReverted {
			out = append(out, finding{"rollout of " + command.Plain(ch.Name), findingWarning, "it is " + string(state),
				"nixfleet rollout show " + command.Plain(ch.Name)})
		}
	}
	return out
}

func examinedCertificates(c *cli.Context, plane *client.Client, now time.Time) (out []finding) {
	answer, err := plane.Certificates(c.Context, 0)
	if err != nil {
		return nil
	}
	for _, cert := range answer.Certificates {
		kind := certificateNames[cert.Kind]
		switch left := cert.NotAfter.Sub(now); {
		case left <= 0:
			out = append(out, finding{"certificates", findingFault, "the " + kind.name + " " + command.Plain(cert.Name) +
				" has ended", kind.renew})
		case left < protocol.CertificateEndsSoon:
			out = append(out, finding{"certificates", findingWarning, "the " + kind.name + " " + command.Plain(cert.Name) +
				" ends in " + command.Age(left), kind.renew})
		}
	}
	if len(out) == 0 {
		out = append(out, finding{"certificates", findingOK, "none ends within 30 days", ""})
	}
	return out
}

func examinedHosts(c *cli.Context, plane *client.Client) (out []finding) {
	answer, err := plane.HostsPage(c.Context, client.HostsQuery{WorstFirst: true, Limit: 1})
	if err != nil || answer.Counts == nil {
		return nil
	}
	for _, f := range []struct {
		standing protocol.Standing
		level    string
	}{{protocol.StandsFailed, findingFault}, {protocol.StandsSilent, findingWarning}} {
		if n := answer.Counts.Of(f.standing); n > 0 {
			out = append(out, finding{"hosts", f.level, command.Plural(n, "host") + " " + standsText(n, f.standing),
				"nixfleet status --state " + string(f.standing)})
		}
	}
	if len(out) == 0 {
		out = append(out, finding{"hosts", findingOK, "none has failed or is silent", ""})
	}
	return out
}
