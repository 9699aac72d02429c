package operator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// statusView is the fleet as a summary and a table.
type statusView struct {
	client  *client.Client
	query   client.HostsQuery
	colours command.Palette
	counts  protocol.HostCounts // of the last look
}

// chrome is how many lines of a screen are not hosts: summary, two empty ones, heading, the rest, the keys.
const chrome = 6

// picture is a screen of --watch.
func (v *statusView) picture(ctx context.Context, lines int) (string, error) {
	text, err := v.look(ctx, max(1, lines-chrome))
	if err != nil {
		return "", explained(err, "ask for the hosts")
	}
	return text + "\n" + v.colours.Paint(command.Dim, time.Now().Format("15:04:05")+"  q: quit"), nil
}

// look asks how the fleet is, and shows at most limit hosts of it; 0 for all.
func (v *statusView) look(ctx context.Context, limit int) (string, error) {
	q := v.query
	q.Limit = limit
	answer, err := v.client.HostsPage(ctx, q)
	if err != nil {
		return "", err
	}
	narrowed(answer, q)
	v.counts = *answer.Counts
	now := time.Now()
	var b strings.Builder
	b.WriteString(v.summary() + "\n")
	if len(answer.Hosts) == 0 {
		return b.String(), nil
	}
	channels := channelsOf(ctx, v.client, answer.Hosts)
	b.WriteString(frozenText(channels) + "\n")
	rows := v.rows(answer.Hosts, channels, now)
	if err := command.Table(&b, rows); err != nil {
		return "", err
	}
	if left := v.counts.Hosts - len(answer.Hosts); left > 0 {
		there := 0
		for i := range answer.Hosts {
			if answer.Hosts[i].Stands() == protocol.StandsConverged {
				there++
			}
		}
		fmt.Fprintf(&b, "... and %d more, %d of them as declared; --state and --channel narrow, --limit 0 shows all\n", left,
			v.counts.Converged-there)
	}
	return b.String(), nil
}

// summary counts the fleet in a line.
func (v *statusView) summary() string {
	parts := []string{v.colours.Paint(command.Green, fmt.Sprintf("%d as declared", v.counts.Converged))}
	for _, p := range []struct {
		n      int
		word   string
		colour command.Colour
	}{
		{v.counts.Moving, "moving", command.Yellow}, {v.counts.Waiting, "waiting", command.Yellow},
		{v.counts.Failed, "failed", command.Red}, {v.counts.Silent, "silent", command.Red},
	} {
		text := fmt.Sprintf("%d %s", p.n, p.word)
		if p.n > 0 {
			text = v.colours.Paint(p.colour, text)
		}
		parts = append(parts, text)
	}
	return command.Plural(v.counts.Hosts, "host") + ": " + strings.Join(parts, ", ")
}

// frozenText has a line for each channel that is frozen.
func frozenText(channels map[string]protocol.ChannelResponse) string {
	text := ""
	for _, name := range sortedKeys(channels) {
		if f := channels[name].Freeze; f != nil {
			text += fmt.Sprintf("channel %s is frozen until %s by %s: %s\n", command.Plain(name), clock(f.Until.Time),
				command.Plain(f.By), command.Plain(f.Reason))
		}
	}
	return text
}

func (v *statusView) rows(hosts []protocol.HostEntry, channels map[string]protocol.ChannelResponse,
	now time.Time) [][]string {
	rows := [][]string{{"HOST", "CHANNEL", "WAVE", "STATE", "RUNS", "SHOULD RUN", "LAST WORD"}}
	for i := range hosts {
		h := &hosts[i]
		channel := channels[h.Channel]
		text := stateText(h)
		if stale(h, channel, now) {
			text += " (stale)"
		}
		rows = append(rows, []string{
			command.Plain(h.Hostname), command.Plain(h.Channel), waveText(h.Wave, h.Canary),
			v.colours.Paint(stateColour(h), text), runsText(h, now), shouldText(h, channel, now), lastWord(h, now),
		})
	}
	return rows
}

// waveText counts waves from 1, as people do.
func waveText(wave *uint32, canary bool) string {
	if wave == nil {
		return "-"
	}
	text := fmt.Sprint(*wave + 1)
	if canary {
		text += " canary"
	}
	return text
}

// runsText is the commit of what a host runs, and for how long it has run it. What no release put there, and all that
// a v1 control plane knows, is the beginning of the closure's hash.
func runsText(h *protocol.HostEntry, now time.Time) string {
	text := "closure " + closureShort(h.CurrentClosureHash)
	if h.CurrentClosureHash == nil {
		return "-"
	}
	if r := h.Running; r != nil {
		if r.Commit != "" {
			text = command.Plain(command.Short(r.Commit))
		}
		text += ageText(r.Since, now)
	}
	return text
}

// shouldText is the commit of the release that declares a host, and the age of its signature.
func shouldText(h *protocol.HostEntry, channel protocol.ChannelResponse, now time.Time) string {
	if h.DeclaredClosureHash == nil {
		return "-"
	}
	if channel.DeclaredCICommit == nil || *channel.DeclaredCICommit == "" {
		return "closure " + closureShort(h.DeclaredClosureHash)
	}
	text := command.Plain(command.Short(*channel.DeclaredCICommit))
	if at := channel.SignedAt; at != nil {
		text += ageText(&at.Timestamp, now)
	}
	return text
}

func ageText(at *pki.Timestamp, now time.Time) string {
	if at == nil {
		return ""
	}
	return " (" + command.Age(now.Sub(at.Time)) + ")"
}

func lastWord(h *protocol.HostEntry, now time.Time) string {
	if h.LastCheckinAt == nil {
		return "never"
	}
	return command.Age(now.Sub(h.LastCheckinAt.Time)) + " ago"
}

// stateText is a host in a few words, with what is besides.
func stateText(h *protocol.HostEntry) string {
	text := command.Plain(h.Says())
	if h.Pin != nil {
		text += ", pinned"
	}
	if heldByRoot(h) {
		text += ", held by root"
	}
	if h.Trouble != nil {
		text += ", TROUBLE: " + command.Plain(*h.Trouble)
	}
	for _, n := range []struct {
		count uint32
		what  string
	}{{h.OutstandingComplianceFailures, "control"}, {h.OutstandingRuntimeGateErrors, "gate error"}} {
		if n.count > 0 {
			text += ", " + command.Plural(int(n.count), n.what) + " outstanding"
		}
	}
	return text
}

// heldByRoot: a host that quarantined its closure says so in the same member, and nobody holds it.
func heldByRoot(h *protocol.HostEntry) bool {
	if h.Held == nil {
		return false
	}
	_, quarantined := protocol.QuarantinedIn(*h.Held)
	return !quarantined
}

func stateColour(h *protocol.HostEntry) command.Colour {
	switch {
	case h.NeverSeen():
		return command.Dim
	case h.Revoked(), h.Trouble != nil:
		return command.Red
	}
	switch h.Stands() {
	case protocol.StandsFailed, protocol.StandsSilent:
		return command.Red
	case protocol.StandsConverged:
		if !heldByRoot(h) && h.Says() == protocol.AsDeclared {
			return command.Green
		}
	}
	return command.Yellow
}

// closureShort is the hash part's beginning: what tells two closures of one host apart, in a column.
func closureShort(base *string) string {
	if base == nil || *base == "" {
		return "-"
	}
	return command.Plain((*base)[:min(8, len(*base))])
}
