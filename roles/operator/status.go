package operator

import (
	"cmp"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// staleAfter is how many freshness windows a host may be silent before status
// marks it, as v1 does.
const staleAfter = 2

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "what every host runs and what it should run",
		Description: "A host is offline when it has missed its check-ins, and marked stale when it has been silent for " +
			"more\n" +
			"than two freshness windows of its channel. nixfleet host explain NAME says why a host waits.\n\n" +
			"Example:\n   nixfleet status\n   nixfleet status --json | jq '.hosts[] | select(.converged | not) | .hostname'",
		Flags: append(connectionFlags(), command.JSONFlag(),
			command.NoColourFlag()),
		Action: func(c *cli.Context) error {
			client, err := connect(c)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				answer, err := client.Raw(c.Context, "/v1/hosts")
				if err != nil {
					return explained(err, "ask for the hosts")
				}
				return command.Text(c, answer)
			}
			answer, err := client.Hosts(c.Context)
			if err != nil {
				return explained(err, "ask for the hosts")
			}
			windows := map[string]time.Duration{}
			for _, h := range answer.Hosts {
				if _, asked := windows[h.Channel]; asked {
					continue
				}
				// A channel that cannot be asked costs its stale marks, not the table.
				if ch, err := client.Channel(c.Context, h.Channel); err == nil {
					windows[h.Channel] = fleet.Minutes(ch.FreshnessWindowMinutes)
				} else {
					windows[h.Channel] = 0
				}
			}
			return command.Table(c.App.Writer, statusRows(answer.Hosts, windows, time.Now(), command.ColoursOf(c)))
		},
	}
}

func statusRows(
	hosts []protocol.HostEntry, windows map[string]time.Duration, now time.Time, p command.Palette,
) [][]string {
	rows := [][]string{{"HOST", "CHANNEL", "CURRENT", "DECLARED", "STATUS", "COMPLIANCE"}}
	for _, h := range hosts {
		text, colour := hostStatus(&h)
		if window := windows[h.Channel]; window > 0 && h.LastCheckinAt != nil &&
			now.Sub(h.LastCheckinAt.Time) > staleAfter*window {
			text, colour = text+" (stale)", command.Red
		}
		rows = append(rows, []string{
			command.Plain(h.Hostname), command.Plain(h.Channel), closureShort(h.CurrentClosureHash),
			closureShort(h.DeclaredClosureHash),
			p.Paint(colour, text), compliance(&h, p),
		})
	}
	return rows
}

// hostStatus is one host in a few words, the worst first.
func hostStatus(h *protocol.HostEntry) (text string, colour command.Colour) {
	state := command.Plain(h.Word())
	switch {
	case h.Reason != nil && h.Reason.Code == "revoked":
		return "revoked", command.Red
	case neverSeen(h):
		text, colour = "never seen", command.Dim
	case h.QuarantinedClosure != nil:
		text, colour = cmp.Or(state, "behind")+", quarantined", command.Red
	case state == string(protocol.HostFailed) || state == string(protocol.HostReverted):
		text, colour = state, command.Red
	case h.PendingReboot:
		text, colour = "reboot pending", command.Yellow
	case h.Converged:
		text, colour = cmp.Or(state, string(protocol.HostConverged)), command.Green
	default:
		text, colour = cmp.Or(state, "behind"), command.Yellow
		// What it waits for, in the word that host explain has a sentence for.
		if h.Reason != nil && h.Reason.Code != "" && (state == "" || state == string(protocol.HostQueued)) {
			text += ": " + command.Plain(h.Reason.Code)
		}
	}
	if h.Pin != nil {
		text += ", pinned"
	}
	held := h.Held != nil
	if held {
		text += ", held"
	}
	offline := h.Online != nil && !*h.Online && !neverSeen(h)
	if offline {
		text += ", offline"
	}
	if colour == command.Green && (held || offline) {
		colour = command.Yellow
	}
	return text, colour
}

// neverSeen: nothing is known of the host but its declaration.
func neverSeen(h *protocol.HostEntry) bool {
	return h.LastCheckinAt == nil && h.CurrentClosureHash == nil
}

func compliance(h *protocol.HostEntry, p command.Palette) string {
	if neverSeen(h) {
		return "-"
	}
	var failing []string
	for _, n := range []struct {
		count uint64
		what  string
	}{
		{uint64(h.OutstandingComplianceFailures), "control"},
		{uint64(h.OutstandingRuntimeGateErrors), "gate error"},
		{uint64(h.OutstandingHealthFailures), "probe"},
	} {
		switch {
		case n.count == 1:
			failing = append(failing, "1 "+n.what)
		case n.count > 1:
			failing = append(failing, fmt.Sprintf("%d %ss", n.count, n.what))
		}
	}
	if len(failing) == 0 {
		return p.Paint(command.Green, "ok")
	}
	return p.Paint(command.Red, command.OrNothing(failing))
}

// closureShort is the hash part's beginning and the name's end: what tells two
// closures of one host apart, in a column.
func closureShort(base *string) string {
	if base == nil || *base == "" {
		return "-"
	}
	return command.Plain((*base)[:min(8, len(*base))])
}
